"""Fine-tune with TRL: supervised or by preferences, the whole model, LoRA or prompt tuning.

    pip install 'llava-uhd[train]' 'trl>=1.16'
    python examples/finetune_with_trl.py sft --adapter lora --out trl-run

The data are documents drawn on the spot; the answers to learn are whole sentences instead of the model's short ones.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftConfig, PromptTuningConfig
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from llava_uhd import load
from llava_uhd.synthetic import make_document, render

ADAPTERS: dict[str, PeftConfig | None] = {
    "none": None,
    "lora": LoraConfig(r=16, target_modules=r".*language_model.*\.(q|k|v|o)_proj", task_type="CAUSAL_LM"),
    "prompt": PromptTuningConfig(num_virtual_tokens=8, task_type="CAUSAL_LM"),
}


def make_samples(count: int) -> list[dict]:
    """Draw documents; return an image, a question, its answer as a sentence and its short answer for each."""
    documents = [make_document("trl", index) for index in range(count)]
    return [
        {
            "image": render(document.page),
            "question": document.questions[0].text,
            "sentence": f"The answer is {document.questions[0].answer}.",
            "short": document.questions[0].answer,
        }
        for document in documents
    ]


def message(role: str, text: str) -> list[dict]:
    """Return one message of a conversation."""
    return [{"role": role, "content": text}]


def train(model: str | PreTrainedModel, options: argparse.Namespace) -> tuple[list[float], PreTrainedModel]:
    """Train; return the logged losses and the model, adapters merged into it where they can be."""
    samples = make_samples(options.samples)
    settings = dict(
        output_dir=str(options.out),
        max_steps=options.steps,
        per_device_train_batch_size=4,
        learning_rate=options.learning_rate,
        max_length=None,  # an image must not be cut
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
    )
    if options.trainer == "sft":
        rows = [
            {
                "images": [sample["image"]],
                "messages": message("user", sample["question"]) + message("assistant", sample["sentence"]),
            }
            for sample in samples
        ]
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**settings, assistant_only_loss=True),
            train_dataset=Dataset.from_list(rows),
            peft_config=ADAPTERS[options.adapter],
        )
    else:
        rows = [
            {
                "images": [sample["image"]],
                "prompt": message("user", sample["question"]),
                "chosen": message("assistant", sample["sentence"]),
                "rejected": message("assistant", sample["short"]),
            }
            for sample in samples
        ]
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(**settings),
            train_dataset=Dataset.from_list(rows),
            peft_config=ADAPTERS[options.adapter],
        )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trained = trainer.model
    return losses, trained.merge_and_unload() if options.adapter == "lora" else trained


def main() -> None:
    """Train, save and print the loss of the first and of the last step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("trainer", choices=("sft", "dpo"))
    parser.add_argument("--model", help="model folder or hub id; default: the built-in model")
    parser.add_argument("--adapter", choices=sorted(ADAPTERS), default="lora")
    parser.add_argument("--samples", type=int, default=32, help="number of documents")
    parser.add_argument("--steps", type=int, default=8, help="number of steps of 4 documents")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=Path("trl-run"), help="folder of the trained model")
    options = parser.parse_args()
    processor = load(options.model or "tiny", "cpu")[1]
    losses, model = train(options.model or load("tiny", "cpu", "float32")[0], options)
    model.save_pretrained(options.out)
    processor.save_pretrained(options.out)
    print(f"loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last; {options.out}")


if __name__ == "__main__":
    main()
