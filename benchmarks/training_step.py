"""A training step of stage 1 or 2 at real width: packed samples beside a plain loop, random weights and images.

    python benchmarks/training_step.py --stage instruct --layers 2
    python benchmarks/training_step.py --stage align --layers 32 --samples 32 --device cuda --dtype bf16

The packed step makes one sequence of the samples and never makes whole logits (`training/loss.py`,
`data/collation.py`). The plain loop takes sample after sample, adds up their gradients, asks the model for its own
loss over whole logits, and computes pyramid and projector by the reference formulation
(`llava_uhd/benchmark/reference.py`).
Both make the same step with AdamW on the same samples; the losses printed must agree.
"""

import argparse
import gc
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from llava_uhd import LlavaUhdConfig, LlavaUhdForConditionalGeneration, LlavaUhdImageProcessor
from llava_uhd.benchmark.compare import published_forward
from llava_uhd.model.hiwin import HiWinProjector
from llava_uhd.model.layout import TokenType, plan_layout
from llava_uhd.model.modeling_llava_uhd import token_grid
from llava_uhd.training.data.collation import Collator
from llava_uhd.training.data.encoding import Encoded
from llava_uhd.training.labels import IGNORE
from llava_uhd.training.loss import use_training_forward
from llava_uhd.training.parts import train_only
from llava_uhd.training.recipe import load_recipe
from llava_uhd.training.watch import ThroughputMeter


def build(options: argparse.Namespace) -> LlavaUhdForConditionalGeneration:
    """A model of the published widths with few layers."""
    config = LlavaUhdConfig(
        vision_config={
            "hidden_size": options.vision_width,
            "intermediate_size": 4 * options.vision_width,
            "num_hidden_layers": options.vision_layers,
            "num_attention_heads": options.vision_width // 64,
            "image_size": 336,
            "patch_size": 14,
        },
        text_config={
            "hidden_size": options.width,
            "intermediate_size": options.width * 43 // 16,
            "num_hidden_layers": options.layers,
            "num_attention_heads": options.width // 128,
            "vocab_size": 32000,
        },
    )
    torch.manual_seed(0)
    model = LlavaUhdForConditionalGeneration(config)
    recipe = load_recipe(f"vicuna-7b-{options.stage}")
    train_only(model, config, list(recipe.optimization.learning_rates))
    return model.to(options.device).eval()  # without dropout, so that the losses can be compared


def make_samples(config: LlavaUhdConfig, count: int, stage: str) -> list[Encoded]:
    """Images of 640 x 480 with a caption (stage 1) or a conversation (stage 2) of random tokens."""
    rng = np.random.default_rng(0)
    processor = LlavaUhdImageProcessor(max_slices=1 if stage == "align" else config.max_slices)
    num_text, samples = 26 if stage == "align" else 256, []
    separators = {
        TokenType.SLICE_SEPARATOR: config.slice_separator_id,
        TokenType.ROW_SEPARATOR: config.row_separator_id,
    }
    for _ in range(count):
        drawn = Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8))
        template = plan_layout(processor.plan(640, 480), token_grid(config), config.layout).template
        image = [separators.get(token_type, config.image_token_id) for token_type in template]
        text = rng.integers(0, 29000, num_text).tolist()
        ids = torch.tensor([1, *image, *text])
        labels = ids.clone()
        labels[: len(image) + 1 + num_text // 3] = IGNORE
        samples.append(Encoded(ids, labels, dict(processor(drawn, return_tensors="pt"))))
    return samples


def measure(
    options: argparse.Namespace, name: str, prepare: Callable[[LlavaUhdForConditionalGeneration], Callable]
) -> None:
    model = build(options)
    samples = make_samples(model.config, options.samples, options.stage)
    step = prepare(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    trained = list(load_recipe(f"vicuna-7b-{options.stage}").optimization.learning_rates)
    is_cuda = options.device.startswith("cuda")
    meter, seconds, loss = ThroughputMeter(model.config, trained, 1, None), 0.0, 0.0
    for repeat in range(options.repeats + 1):
        started = time.perf_counter()
        with torch.autocast(torch.device(options.device).type, torch.bfloat16, enabled=options.dtype == "bf16"):
            loss = step(samples)
        optimizer.step()
        optimizer.zero_grad()
        if is_cuda:
            torch.cuda.synchronize()
        if repeat:  # the first one warms up
            seconds += time.perf_counter() - started
            meter.add(Collator(0)(samples))
    peak = torch.cuda.max_memory_allocated() / 2**30 if is_cuda else float("nan")
    rates = f"{meter.samples / seconds:.3f} | {meter.tokens / seconds:.1f} | {meter.flops / seconds / 1e12:.3f}"
    print(f"| {name} | {rates} | {peak:.1f} | {loss:.4f} |", flush=True)
    # A replaced forward pass and its model hold each other: without this the next model comes on top of this one.
    del model, optimizer, step
    gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--stage", choices=("align", "instruct"), default="align")
    parser.add_argument("--layers", type=int, default=2, help="of the language model; 32 published")
    parser.add_argument("--vision-layers", type=int, default=3, help="of the tower; 24 published")
    parser.add_argument("--vision-width", type=int, default=1024, help="of the tower, a multiple of 64")
    parser.add_argument("--width", type=int, default=4096, help="of the language model, a multiple of 128")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()

    def to_device(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(options.device) for name, tensor in batch.items()}

    def packed(model: LlavaUhdForConditionalGeneration) -> Callable:
        use_training_forward(model, loss_chunk=1024)

        def step(samples: list[Encoded]) -> float:
            loss = model(**to_device(Collator(0, pack=True)(samples))).loss
            loss.backward()
            return loss.item()

        return step

    def plain(model: LlavaUhdForConditionalGeneration) -> Callable:
        projector = model.model.multi_modal_projector
        assert isinstance(projector, HiWinProjector)
        projector.__dict__["forward"] = published_forward(projector)

        def step(samples: list[Encoded]) -> float:
            learned = sum(int(sample.labels.ne(IGNORE).sum()) for sample in samples)
            total = 0.0
            for sample in samples:
                batch = to_device({**Collator(0)([sample])})
                del batch["target_positions"]  # the model's own forward pass finds them
                share = int(sample.labels.ne(IGNORE).sum()) / learned
                loss = share * model(**batch, use_cache=False).loss
                loss.backward()
                total += loss.item()
            return total

        return step

    print("| loop | samples/s | tokens/s | TFLOP/s | peak GiB | loss |\n|---|---|---|---|---|---|")
    measure(options, "packed", packed)
    measure(options, "plain", plain)


if __name__ == "__main__":
    main()
