"""Train with TRL's own trainers: by path and by object, every form of data, full, LoRA, prompt tuning, DPO.

    python -m tests.ecosystem.trl

What is compared: which tokens the labels name, with every chat template; the loss that the trainer logs at its first
step, with the model's own loss of the same tokens; and that every combination trains a step to a finite loss.
"""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftConfig, PeftModel, PromptTuningConfig
from transformers import Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.chat_template_utils import has_generation_markers
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from llava_uhd.loading import load
from llava_uhd.model.chat_templates import CHAT_TEMPLATES
from llava_uhd.synthetic import make_document, render

from .vllm.models import vicuna_like

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "trl.md"
GUIDE_CODE = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
UNMARKED = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{% endfor %}"
ENDS = {"vicuna": "eos", "qwen": "<|im_end|>", "plain": "\n", "tiny": "eos"}
ROWS = 4
BATCH = 2


def message(role: str, text: str, image: bool = False) -> dict[str, Any]:
    """A message with its content as parts."""
    parts = [{"type": "image", "text": None}] if image else []
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def data(form: str) -> Dataset:
    """Documents with a question each, in one of TRL's forms."""
    rows = []
    for index in range(ROWS):
        document = make_document("trl", index)
        question, answer = document.questions[0].text, document.questions[0].answer
        question_turn, answer_turn = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
        row: dict[str, Any] = {"images": [render(document.page)]}
        if form == "parts":
            row["messages"] = [message("user", question, image=True), message("assistant", answer)]
        elif form == "strings":
            row["messages"] = [question_turn, answer_turn]
        elif form == "text":
            row = {"messages": [question_turn, answer_turn]}
        elif form == "completion":
            row |= {"prompt": [question_turn], "completion": [answer_turn]}
        else:
            row |= {
                "prompt": [question_turn],
                "chosen": [answer_turn],
                "rejected": [{"role": "assistant", "content": "nothing"}],
            }
        rows.append(row)
    return Dataset.from_list(rows)


def settings(out: Path, **options: Any) -> dict[str, Any]:
    """Options of every trainer: one step on the CPU, in the order of the data."""
    common = dict(
        output_dir=str(out), per_device_train_batch_size=BATCH, max_steps=1, logging_steps=1, learning_rate=1e-5,
        report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    return common | options


def logged(trainer: Trainer) -> float:
    """Train; return the loss of the first step.

    Raises:
        AssertionError: it is not finite.
    """
    trainer.train()
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert math.isfinite(loss), loss
    return loss


def check_templates() -> None:
    """Check that `assistant_only_loss` keeps the answers with their ends as labels in every template."""
    _, processor = load("tiny", "cpu")
    rows = list(data("strings"))
    for name, template in CHAT_TEMPLATES.items():
        assert has_generation_markers(template), name
        processor.chat_template = template
        collator = DataCollatorForVisionLanguageModeling(processor, assistant_only_loss=True)
        batch = collator([dict(row) for row in rows])
        for row, labels in zip(rows, batch["labels"], strict=True):
            text = processor.decode(labels[labels != -100])
            end = processor.tokenizer.eos_token if ENDS[name] == "eos" else ENDS[name]
            assert text.strip() == (row["messages"][1]["content"] + end).strip(), (name, text)


class RecordingTrainer(SFTTrainer):
    """SFTTrainer that computes the loss of its last batch from the model's logits, too: `expected`."""

    expected = math.nan

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        image_token = self.processing_class.image_token_id
        assert (inputs["input_ids"] == image_token).any() and not (inputs["labels"] == image_token).any()
        torch.manual_seed(0)  # the up-sampler drops channels in training
        with torch.no_grad():
            logits = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
        torch.manual_seed(0)
        targets = inputs["labels"][:, 1:].flatten()
        self.expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets).item()
        return super().compute_loss(model, inputs, *args, **kwargs)


def check_losses(model: Any, processor: Any, out: Path) -> dict[str, float]:
    """The first loss that each trainer logs is the model's own loss of the tokens that count."""
    losses = {}
    for form, options in {
        "messages": ("strings", {}),
        "messages as parts": ("parts", {}),
        "assistant_only_loss": ("strings", {"assistant_only_loss": True}),
        "prompt and completion": ("completion", {}),
    }.items():
        rows, extra = options
        dataset = data(rows)
        trainer = RecordingTrainer(
            model=model,
            args=SFTConfig(**settings(out, max_length=None, learning_rate=0.0, **extra)),
            train_dataset=dataset,
            processing_class=processor,
        )
        losses[form] = logged(trainer)
        assert math.isclose(losses[form], trainer.expected, rel_tol=1e-3), (form, losses[form], trainer.expected)
    assert losses["messages"] == losses["messages as parts"]
    return losses


def collate(processor: Any) -> Any:
    """A collator as users of `transformers.Trainer` write it: labels are a copy of the input ids."""

    def collator(rows: list[dict]) -> Any:
        conversations = [
            [message("user", row["messages"][0]["content"], image=True), row["messages"][1]] for row in rows
        ]
        inputs = processor.apply_chat_template(
            conversations,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"images": [row["images"] for row in rows], "padding": True},
        )
        labels = inputs["input_ids"].clone()
        labels[inputs["attention_mask"] == 0] = -100
        inputs["labels"] = labels
        return inputs

    return collator


def check_combinations(folder: Path, out: Path) -> int:
    """Every combination trains a step; return how many there are."""
    lora = LoraConfig(r=4, target_modules=r".*language_model.*(q_proj|v_proj)", task_type="CAUSAL_LM")
    prompt = PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    adapters: dict[str, PeftConfig | None] = {"full": None, "lora": lora, "prompt tuning": prompt}
    processor = load(str(folder), "cpu")[1]
    count = 0
    for by_path in (True, False):
        for adapter in adapters.values():
            for form in ("strings", "completion", "text", "preference"):
                model = str(folder) if by_path else load(str(folder), "cpu", "float32")[0]
                # Prompt tuning embeds the image token, which lies outside the vocabulary here.
                if adapter is prompt and form != "text":
                    model = load(str(folder), "cpu", "float32")[0]
                    model.resize_token_embeddings(processor.image_token_id + 1)
                options = {} if by_path and isinstance(model, str) else {"processing_class": processor}
                kind, config = (DPOTrainer, DPOConfig) if form == "preference" else (SFTTrainer, SFTConfig)
                args = config(**settings(out, max_length=None))
                logged(kind(model=model, args=args, train_dataset=data(form), peft_config=adapter, **options))
                count += 1
    model = load(str(folder), "cpu", "float32")[0]
    args = TrainingArguments(**settings(out, remove_unused_columns=False))
    logged(Trainer(model=model, args=args, train_dataset=data("strings"), data_collator=collate(processor)))
    return count + 1


def check_refusals(out: Path) -> None:
    """A prompt cut within an image and a chat template without marks are refused, each with its reason."""
    cut = SFTConfig(**settings(out, max_length=64))
    unmarked = SFTConfig(**settings(out, max_length=None, assistant_only_loss=True))
    for args, chat_template, reason in ((cut, None, "was cut to"), (unmarked, UNMARKED, "generation")):
        model, processor = load("tiny", "cpu", "float32")
        processor.chat_template = chat_template or processor.chat_template
        try:
            SFTTrainer(model=model, args=args, train_dataset=data("strings"), processing_class=processor).train()
        except ValueError as error:
            assert re.search(reason, str(error)), error
        else:
            raise AssertionError(f"trained although it should be refused: {reason}")


def run_guide(model_folder: Path, out: Path) -> None:
    """Run the code that the guide shows, on images named by their paths."""
    (code,) = [code for code in GUIDE_CODE.findall(GUIDE.read_text()) if "SFTTrainer(" in code]
    lines = []
    for index, row in enumerate(data("strings")):
        path = out / f"{index}.png"
        row["images"][0].save(path)
        lines.append(json.dumps({"images": [str(path)], "messages": row["messages"]}) + "\n")
    file = out / "train.jsonl"
    file.write_text("".join(lines))
    for shown, used in (
        ('"FOLDER"', repr(str(model_folder))),
        ('"train.jsonl"', repr(str(file))),
        ('output_dir="trl-run"', f"output_dir={str(out / 'guide')!r}, max_steps=1, use_cpu=True, bf16=False"),
    ):
        assert shown in code, shown
        code = code.replace(shown, used)
    exec(compile(code, str(GUIDE), "exec"), {})


def run_example(out: Path) -> list[str]:
    """Run the script of the guide, as it stands there and with its other options; return what it prints."""
    printed = []
    for trainer, adapter in (("sft", "lora"), ("dpo", "lora"), ("sft", "none"), ("sft", "prompt")):
        command = [sys.executable, str(ROOT / "examples" / "finetune_with_trl.py"), trainer, "--adapter", adapter]
        folder = out / f"{trainer}-{adapter}"
        result = subprocess.run(
            [*command, "--out", str(folder)], check=True, stdout=subprocess.PIPE, text=True, cwd=out
        )
        line = result.stdout.strip().splitlines()[-1]
        shown = re.match(r"loss ([0-9.]+) at the first step, ([0-9.]+) at the last; ", line)
        assert shown is not None, line
        first, last = float(shown[1]), float(shown[2])
        assert math.isfinite(last) and (adapter == "prompt" or last < first), line
        if adapter == "prompt":  # an adapter of PEFT's, which the model is loaded without
            PeftModel.from_pretrained(load("tiny", "cpu")[0], folder)
        else:
            load(str(folder), "cpu")
        printed.append(f"{trainer} {adapter} {first:.2f} to {last:.2f}")
    return printed


def main() -> None:
    """Compare; print one line."""
    torch.manual_seed(0)
    with TemporaryDirectory() as temporary:
        out = Path(temporary)
        check_templates()
        losses = check_losses(*load("tiny", "cpu", "float32"), out / "losses")
        check_refusals(out / "refusals")
        count = check_combinations(vicuna_like(out / "vicuna"), out / "combinations")
        run_guide(out / "vicuna", out)
        printed = run_example(out)
    shown = ", ".join(f"{form} {loss:.3f}" for form, loss in losses.items())
    print(
        f"labels of {len(CHAT_TEMPLATES)} chat templates are the answers; first loss is the model's own ({shown}); "
        f"{count} of {count} combinations train, image token outside the vocabulary; script: {', '.join(printed)}"
    )


if __name__ == "__main__":
    main()
