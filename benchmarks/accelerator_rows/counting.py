"""Operations, bytes and launches of each part of a request, and the least time they take on an accelerator.

Counted at real size on PyTorch's meta device, which has shapes and no values: what would read a value back from the
device fails there.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers.initialization import no_init_weights

from llava_uhd.benchmark.inputs import prepare
from llava_uhd.benchmark.sizes import Sizes
from llava_uhd.flops import language_flops, projector_flops, tower_flops
from llava_uhd.model.modeling_llava_uhd import LlavaUhdForConditionalGeneration

BYTES = 2  # of a bf16 value
META = torch.device("meta")


class _AttentionAsOne(TorchFunctionMode):
    """Count scaled dot product attention as the one kernel that it is on an accelerator."""

    def __init__(self, counter: "OperationCounter"):
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention or self.counter.paused:
            return func(*args, **(kwargs or {}))
        self.counter.paused = True
        try:
            out = func(*args, **(kwargs or {}))
        finally:
            self.counter.paused = False
        query, key, value = args[:3]
        scores = query.shape[:-1].numel() * key.shape[-2]
        count = 2 * scores * (key.shape[-1] + value.shape[-1])
        if (kwargs or {}).get("is_causal") and query.shape[-2] > 1:
            count /= 2
        self.counter.add("scaled_dot_product_attention", (query, key, value, out), count)
        return out


class OperationCounter(TorchDispatchMode):
    """Count operations that compute, neither views nor bare allocations, with their operands and products.

    Attributes:
        launches: number of operations.
        bytes: bytes of all operands and results, each once per operation.
        flop: operations of matrix products, convolutions and attention, by the dtype of their first operand.
        bytes_of: bytes by name of the operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.bytes, self.paused = 0, 0, False
        self.flop: Counter[torch.dtype] = Counter()
        self.bytes_of: Counter[str] = Counter()
        self._attention = _AttentionAsOne(self)

    def add(self, name: str, tensors: Any, flop: float) -> None:
        """Count one launch."""
        self.launches += 1
        count = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.bytes += count
        self.bytes_of[name] += count
        if flop:
            self.flop[next(iter(tensors)).dtype] += flop

    def __enter__(self) -> "OperationCounter":
        self._attention.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._attention.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.paused or func.is_view or "empty" in func.name() or func.name() == "aten::_unsafe_view":
            return out
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        if not tensors:
            return out
        count = flop_registry.get(func._overloadpacket)
        self.add(func.name(), tensors, count(*args, **(kwargs or {}), out_val=out) if count else 0)
        return out


def counted(run: Callable[[], Any]) -> OperationCounter:
    """Count a second call: the first folds weights and fills caches."""
    run()
    with OperationCounter() as counter:
        run()
    return counter


@dataclass(frozen=True)
class Part:
    """One part of a request.

    Attributes:
        name: name of the part.
        flop: operations calculated from the sizes.
        fewest_bytes: weights, inputs and outputs once.
        counted: operations of eager mode.
    """

    name: str
    flop: float
    fewest_bytes: float
    counted: OperationCounter = field(repr=False)


@dataclass(frozen=True)
class Rates:
    """Rates of an accelerator: FLOP per second in bf16 and in fp32, bytes per second, seconds of a launch."""

    bf16: float = 800e12
    fp32: float = 50e12
    bytes: float = 3e12
    launch: float = 4e-6

    def products(self, part: Part) -> float:
        """Return the seconds of the products that run, each at the rate of its dtype."""
        return sum(
            flop / (self.fp32 if dtype == torch.float32 else self.bf16) for dtype, flop in part.counted.flop.items()
        )


def fewest_vision_bytes(sizes: Sizes, shapes: list[tuple[int, int]]) -> dict[str, float]:
    """Return the fewest bytes that encoder and projector move: bf16 weights, inputs and outputs once."""
    with META:
        model = LlavaUhdForConditionalGeneration(sizes.config(with_text=False)).model
    weights = {name: sum(p.numel() for p in part.parameters()) * BYTES for name, part in model.named_children()}
    positions = sum(rows * columns for rows, columns in shapes)
    pixels, features = positions * 588 * BYTES, positions * sizes.vision_hidden * BYTES
    image_tokens = len(shapes) * sizes.query_grid**2 * sizes.hidden * BYTES
    return {
        "encoder": weights["vision_tower"] + pixels + features,
        "projector": weights["multi_modal_projector"] + pixels + features + image_tokens,
    }


def meta_model(sizes: Sizes, with_text: bool) -> LlavaUhdForConditionalGeneration:
    """Build a bf16 model on the meta device."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with META, no_init_weights():
            return LlavaUhdForConditionalGeneration(sizes.config(with_text)).eval()
    finally:
        torch.set_default_dtype(default)


@torch.no_grad()
def count(sizes: Sizes, image: tuple[int, int], max_slices: int = 6) -> list[Part]:
    """Count the parts of one request with one image of (width, height)."""
    model = meta_model(sizes, with_text=True)
    inner, language_model = model.model, model.model.language_model
    images = prepare(sizes, model, [image], max_slices, META, torch.bfloat16)
    inputs = images.inputs
    views = inner.group_views(len(inputs["pixel_values"]), inputs["view_shapes"], inputs["num_views"], inputs["grids"])
    pixels = inputs["pixel_values"]

    def encode() -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [inner.encode(pixels[group.patch_indices.to(META)], group.shape) for group in views.groups]

    encoded = encode()
    tokens = images.input_ids.shape[1]
    embedded = torch.zeros(1, tokens, sizes.hidden, dtype=torch.bfloat16, device=META)
    cache = language_model(inputs_embeds=embedded, use_cache=True).past_key_values

    # Weights on the meta device have no values, so the model would take the formula; the count is of the fused path.
    with patch("llava_uhd.model.hiwin.reason_not_to_fuse", return_value=None):
        projector = counted(lambda: inner.multi_modal_projector(*map(list, zip(*encoded, strict=True))))

    fewest = fewest_vision_bytes(sizes, images.shapes)
    embedding = model.get_input_embeddings().get_parameter("weight").numel()
    text = sum(p.numel() for p in language_model.parameters()) - embedding + model.lm_head.weight.numel()
    keys = 2 * sizes.text_layers * tokens * sizes.hidden
    config = model.config

    def prefill(length: int, **kwargs: Any) -> torch.Tensor:
        hidden = language_model(inputs_embeds=embedded[:, :length], use_cache=True, **kwargs).last_hidden_state
        return model.lm_head(hidden[:, -1:])

    return [
        Part(
            "encoder",
            sum(tower_flops(config, shape) for shape in images.shapes),
            fewest["encoder"],
            counted(encode),
        ),
        Part(
            "projector",
            sum(projector_flops(config, shape).total for shape in images.shapes),
            fewest["projector"],
            projector,
        ),
        Part(
            f"prefill, {tokens} tokens",
            language_flops(config, tokens, 1),
            (text + keys) * BYTES,
            counted(lambda: prefill(tokens)),
        ),
        Part(
            "one new token",
            language_flops(config, 1, 1, tokens),
            (text + keys) * BYTES,
            counted(lambda: prefill(1, past_key_values=cache)),
        ),
    ]


def table(parts: list[Part], rates: Rates) -> str:
    """Return the Markdown table of floors, and of what the code runs on paper."""
    lines = [
        "| part | GFLOP | of them fp32 | MB fewest | MB moved | launches | floor ms | runs in, ms | of the floor "
        "| with launches, ms | measured |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for part in parts:
        counted_part = part.counted
        floor = max(part.flop / rates.bf16, part.fewest_bytes / rates.bytes)
        runs = max(rates.products(part), counted_part.bytes / rates.bytes)
        eager = max(runs, counted_part.launches * rates.launch)
        total, fp32 = sum(counted_part.flop.values()), counted_part.flop[torch.float32]
        lines.append(
            f"| {part.name} | {total / 1e9:.1f} | {fp32 / 1e9:.1f} | {part.fewest_bytes / 1e6:.0f} "
            f"| {counted_part.bytes / 1e6:.0f} | {counted_part.launches} | {1000 * floor:.2f} | {1000 * runs:.2f} "
            f"| {runs / floor:.1f} x | {1000 * eager:.2f} | not measured |"
        )
    return "\n".join(lines)
