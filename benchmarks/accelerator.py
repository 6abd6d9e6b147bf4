"""Operations, bytes and launches of each part of a request, and the least time they take on an accelerator.

    python benchmarks/accelerator.py --count

Prints a Markdown table, calculated from shapes; only the launches come from a run, of a narrow model on the CPU. What
is assumed of the accelerator are options.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llava_uhd.benchmark import flops
from llava_uhd.benchmark.inputs import prepare
from llava_uhd.benchmark.sizes import Sizes, build
from llava_uhd.model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
from llava_uhd.model.vision_tower import num_layers_used

BYTES = 2  # of a bf16 value


class LaunchCounter(TorchDispatchMode):
    """Count operations that compute: neither views nor bare allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and "empty" not in func.name() and func.name() != "aten::_unsafe_view":
            self.launches += 1
        return func(*args, **(kwargs or {}))


def launches(run: Callable[[], Any]) -> int:
    """Count the launches of a second call: the first folds weights and fills caches."""
    run()
    with LaunchCounter() as counter:
        run()
    return counter.launches


@dataclass(frozen=True)
class Part:
    """One part of a request: its operations, fewest bytes (weights, inputs and outputs once) and launches."""

    name: str
    operations: float
    bytes: float
    launches: int


@torch.no_grad()
def count(sizes: Sizes, image: tuple[int, int]) -> list[Part]:
    """Count the parts of one request with one image of (width, height)."""
    narrow = replace(
        sizes, hidden=128, heads=1, vision_hidden=64, vision_intermediate=128, vision_heads=1, vocabulary=512
    )
    cpu = torch.device("cpu")
    model = build(narrow, cpu, torch.float32, with_text=True)
    images = prepare(narrow, model, [image], 6, cpu, torch.float32)
    inner, inputs = model.model, images.inputs
    views = inner.group_views(len(inputs["pixel_values"]), inputs["view_shapes"], inputs["num_views"], inputs["grids"])
    vision = launches(lambda: inner.image_tokens(inputs["pixel_values"], views))

    encoder = 0
    for group in views.groups:
        shape = group.shape
        same = images.shapes.count(shape)
        patches = torch.zeros(same, shape[0] * shape[1], *inputs["pixel_values"].shape[1:])
        encoder += launches(partial(inner.encode, patches, shape))
    tokens = images.input_ids.shape[1]
    embedded = torch.zeros(1, tokens, narrow.hidden)
    prefill = launches(lambda: inner.language_model(inputs_embeds=embedded, use_cache=True))
    cache = inner.language_model(inputs_embeds=embedded, use_cache=True).past_key_values
    step = launches(lambda: inner.language_model(inputs_embeds=embedded[:, :1], past_key_values=cache))

    with torch.device("meta"):
        full = LlavaUhdForConditionalGeneration(sizes.config(with_text=True))
    weights = {name: sum(p.numel() for p in part.parameters()) * BYTES for name, part in full.model.named_children()}
    head = full.lm_head.weight.numel() * BYTES
    embedding = full.get_input_embeddings().get_parameter("weight").numel() * BYTES
    positions = sum(rows * columns for rows, columns in images.shapes)
    pixels, features = positions * 588 * BYTES, positions * sizes.vision_hidden * BYTES
    image_tokens = len(images.shapes) * sizes.query_grid**2 * sizes.hidden * BYTES
    keys = 2 * sizes.text_layers * tokens * sizes.hidden * BYTES
    text = weights["language_model"] - embedding + head
    return [
        Part(
            "encoder",
            sum(
                flops.encoder(sizes, shape, num_layers_used(sizes.vision_layers, model.config.vision_feature_layer))
                for shape in images.shapes
            ),
            weights["vision_tower"] + pixels + features,
            encoder,
        ),
        Part(
            "projector",
            sum(flops.folded_projector(sizes, shape).total for shape in images.shapes),
            weights["multi_modal_projector"] + pixels + features + image_tokens,
            vision - encoder,
        ),
        Part(f"prefill, {tokens} tokens", flops.language_model(sizes, tokens), text + keys, prefill),
        Part("one new token", flops.language_model(sizes, 1, tokens), text + keys, step),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", action="store_true", required=True, help="print the calculated table")
    parser.add_argument("--tflops", type=float, default=800.0, help="rate of bf16 products")
    parser.add_argument("--terabytes", type=float, default=3.0, help="a second, of the memory")
    parser.add_argument("--launch-us", type=float, default=4.0, help="of one launch outside a CUDA graph")
    options = parser.parse_args()
    print("| part | GFLOP | MB | launches | products ms | memory ms | launches ms | floor ms | measured |")
    print("|---|---|---|---|---|---|---|---|---|")
    for part in count(Sizes(), (1008, 672)):
        times = (
            part.operations / options.tflops / 1e9,
            part.bytes / options.terabytes / 1e9,
            part.launches * options.launch_us / 1e3,
        )
        shown = " | ".join(f"{time:.2f}" for time in (*times, max(times)))
        print(
            f"| {part.name} | {part.operations / 1e9:.1f} | {part.bytes / 1e6:.0f} | {part.launches} | {shown} "
            "| not measured |"
        )


if __name__ == "__main__":
    main()
