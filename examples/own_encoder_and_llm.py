"""Put an encoder and a language model of one's own together, train the projector between them, save, load and ask.

    python examples/own_encoder_and_llm.py --vision-tower google/siglip-base-patch16-224 \
        --language-model Qwen/Qwen3-0.6B --out own-model

Without names, small ones with random weights are made first: what they answer means nothing, but every step is real.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from llava_uhd import LlavaUhdForConditionalGeneration, load

QUESTION = "Which color is the square?"
COLORS = ("red", "green", "blue")
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- "<|im_start|>" + message["role"] + "\\n" + message["content"] + "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}
"""


def make_small_parts(folder: Path) -> tuple[str, str]:
    """Write a small SigLIP and a small Qwen3 with a byte-level tokenizer; return their folders."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        token: index for index, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters])
    }
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    language_model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=264,  # some rows more than tokens, as in Qwen3
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=2048,
            eos_token_id=2,
            pad_token_id=0,
            tie_word_embeddings=True,
        )
    )
    vision_tower = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=64,
            patch_size=16,
        )
    )
    language_model.save_pretrained(folder / "language-model")
    tokenizer.save_pretrained(folder / "language-model")
    vision_tower.save_pretrained(folder / "vision-tower")
    return str(folder / "vision-tower"), str(folder / "language-model")


def square(color: str) -> Image.Image:
    """Draw a square of a color on a white page."""
    page = Image.new("RGB", (120, 90), "white")
    ImageDraw.Draw(page).rectangle((30, 20, 80, 70), fill=color)
    return page


def training_step(model, processor, color: str) -> torch.Tensor:
    """Return the loss of one answer; labels are the tokens after the prompt."""
    content = [{"type": "image", "image": square(color)}, {"type": "text", "text": QUESTION}]
    question = {"role": "user", "content": content}
    answer = {"role": "assistant", "content": color}
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    prompt = processor.apply_chat_template([question], add_generation_prompt=True, **options)
    inputs = processor.apply_chat_template([question, answer], **options)
    labels = inputs["input_ids"].clone()
    labels[:, : prompt["input_ids"].shape[1]] = -100
    return model(**inputs.to(model.device), labels=labels.to(model.device)).loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vision-tower", help="CLIP or SigLIP: folder or hub id")
    parser.add_argument("--language-model", help="any causal language model: folder or hub id")
    parser.add_argument("--steps", type=int, default=20, help="training steps (default: 20)")
    parser.add_argument("--out", type=Path, default=Path("own-model"), help="folder to write (default: own-model)")
    args = parser.parse_args()

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if args.vision_tower is None or args.language_model is None:
            args.vision_tower, args.language_model = make_small_parts(Path(folder))
        model, processor = LlavaUhdForConditionalGeneration.from_parts(
            vision_tower=args.vision_tower,
            language_model=args.language_model,
            projector={"levels": [1, 2], "query_grid": 4},
            dtype=torch.float32,
        )
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.model.multi_modal_projector.parameters(), lr=1e-3)
    for step in range(args.steps):
        loss = training_step(model, processor, COLORS[step % len(COLORS)])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}: loss {loss.item():.3f}")

    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    model, processor = load(str(args.out))
    content = [{"type": "image", "image": square("red")}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    answer = model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
    print("answer:", repr(processor.decode(answer, skip_special_tokens=True)))


if __name__ == "__main__":
    main()
