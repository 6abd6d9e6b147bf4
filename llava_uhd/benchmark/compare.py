"""The rows of `llava-uhd bench`: one computation the reference way and this package's, side by side.

Plain is the reference formulation of `reference.py`, on the same weights and inputs, of the same dtype.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import flops
from ..model.hiwin import HiWinProjector
from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
from ..model.vision_tower import encode_views
from . import reference
from .inputs import Images, image_features, plain_image_features, prepare
from .measure import Run, alternate, matmul_rate, relative_error
from .sizes import Sizes, build


@dataclass(frozen=True)
class Setting:
    """Device, dtype and number of runs of a measurement.

    Attributes:
        device: device to measure.
        dtype: dtype of weights and inputs.
        runs: number of runs of each way; the median counts.
        rate: FLOP per second of a matrix product on this device.
    """

    device: torch.device
    dtype: torch.dtype
    runs: int
    rate: float

    @classmethod
    def on(cls, device: torch.device, dtype: torch.dtype, runs: int, side: int) -> "Setting":
        """Measure the rate with square matrices of `side`."""
        return cls(device, dtype, runs, matmul_rate(device, dtype, side))


@dataclass(frozen=True)
class BenchRow:
    """One line of the table: medians of alternating runs. Bytes are a peak above weights (and gradients).

    Attributes:
        relative_error: L2 error of this package's result against the plain one; in a training step the larger of the
            tokens' and the gradients'.
        gflop, plain_gflop: operations of one run, counted from the shapes.
        share_of_matmul_rate: gflop over ours_s, as a share of the rate of a matrix product.
        kept_bytes: folded weights, held beside the weights from one inference call to the next.
        first_s: the first inference call, which folds.
        encoder_s, projector_s: parts of fused, each run by itself.
        tokens: number of generated tokens.
    """

    name: str
    plain_s: float
    ours_s: float
    ratio: float
    relative_error: float
    gflop: float
    plain_gflop: float
    share_of_matmul_rate: float
    plain_share_of_matmul_rate: float
    plain_peak_bytes: int | None
    ours_peak_bytes: int | None
    kept_bytes: int = 0
    first_s: float | None = None
    encoder_s: float | None = None
    projector_s: float | None = None
    tokens: int | None = None


def compare(
    name: str, plain: Run, fused: Run, setting: Setting, gflop: float, plain_gflop: float, parts: dict[str, Run]
) -> tuple[BenchRow, torch.Tensor, torch.Tensor]:
    """Measure both ways, and `parts` of fused beside them; return the row and the results of both ways."""
    expected = plain()
    start = time.perf_counter()
    fused()
    first = time.perf_counter() - start
    actual = fused()
    for run in parts.values():
        run()
    taken = alternate({"plain": plain, "fused": fused, **parts}, setting.runs, setting.device)
    seconds: dict[str, Any] = {f"{part}_s": taken[part].seconds for part in parts}
    row = BenchRow(
        name=name,
        plain_s=taken["plain"].seconds,
        ours_s=taken["fused"].seconds,
        ratio=taken["plain"].seconds / taken["fused"].seconds,
        relative_error=relative_error(actual, expected),
        gflop=gflop / 1e9,
        plain_gflop=plain_gflop / 1e9,
        share_of_matmul_rate=gflop / taken["fused"].seconds / setting.rate,
        plain_share_of_matmul_rate=plain_gflop / taken["plain"].seconds / setting.rate,
        plain_peak_bytes=taken["plain"].peak_bytes,
        ours_peak_bytes=taken["fused"].peak_bytes,
        first_s=first,
        **seconds,
    )
    return row, actual, expected


def replaced(row: BenchRow, **changes: object) -> BenchRow:
    """Return the row with some of its values changed."""
    return BenchRow(**{**vars(row), **changes})


def random_views(sizes: Sizes, views: int, setting: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw features as a tower returns them, (N, D, h, w) with the channels innermost, and pixels."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = sizes.grid
    features = torch.randn(views, rows * columns, sizes.vision_hidden, generator=generator)
    pixels = torch.randn(views, 3, 14 * rows, 14 * columns, generator=generator)
    features, pixels = (tensor.to(setting.device, setting.dtype) for tensor in (features, pixels))
    return features.transpose(1, 2).unflatten(2, sizes.grid), pixels


def hiwin_of(model: LlavaUhdForConditionalGeneration) -> HiWinProjector:
    """Return the model's HiWin projector."""
    projector = model.model.multi_modal_projector
    assert isinstance(projector, HiWinProjector)
    return projector


def published_forward(projector: HiWinProjector) -> Callable:
    """Return a replacement of `HiWinProjector.forward`: the same tokens by the reference, group after group."""

    def forward(features: torch.Tensor | Sequence[torch.Tensor], pixels: torch.Tensor | Sequence[torch.Tensor]):
        if isinstance(features, torch.Tensor) and isinstance(pixels, torch.Tensor):
            return reference.tokens(projector, features, pixels)
        return [reference.tokens(projector, *group) for group in zip(features, pixels, strict=True)]

    return forward


@torch.no_grad()
def projector_row(sizes: Sizes, views: int, setting: Setting) -> BenchRow:
    """Measure pyramid and projector on random features of square views."""
    projector = hiwin_of(build(sizes, setting.device, setting.dtype))
    features, pixels = random_views(sizes, views, setting)
    row, _, _ = compare(
        f"projector, {views} view(s) of {sizes.grid[0]}x{sizes.grid[1]}",
        lambda: reference.tokens(projector, features, pixels),
        lambda: projector(features, pixels),
        setting,
        views * flops.fused_projector(sizes.config(), sizes.grid).total,
        views * flops.reference_projector(sizes.config(), sizes.grid).total,
        {},
    )
    return replaced(row, kept_bytes=projector.folded_weights.nbytes)


def encode_all(model: LlavaUhdForConditionalGeneration, images: Images) -> dict[tuple[int, int], torch.Tensor]:
    """Compute the tower's features of all views, by their shape."""
    views = images.inputs["pixel_values"].split([rows * columns for rows, columns in images.shapes])
    features = {}
    for shape in set(images.shapes):
        patches = torch.stack([view for view, of_view in zip(views, images.shapes, strict=True) if of_view == shape])
        features[shape] = encode_views(model.model.vision_tower, patches, shape, model.config.vision_feature_layer)
    return features


@torch.no_grad()
def vision_row(sizes: Sizes, image: tuple[int, int], max_slices: int, setting: Setting) -> BenchRow:
    """Measure pixels of an image to its tokens; the encoder and the projector also by themselves."""
    model = build(sizes, setting.device, setting.dtype)
    images = prepare(sizes, model, [image], max_slices, setting.device, setting.dtype)
    features = encode_all(model, images)
    pixels = {
        shape: torch.randn(len(of_shape), 3, 14 * shape[0], 14 * shape[1]).to(setting.device, setting.dtype)
        for shape, of_shape in features.items()
    }
    projector = hiwin_of(model)

    def project_all() -> torch.Tensor:
        return torch.cat([projector(features[shape], pixels[shape]).flatten(0, 1) for shape in features])

    def encode() -> torch.Tensor:
        return torch.cat([of_shape.flatten() for of_shape in encode_all(model, images).values()])

    row, _, _ = compare(
        f"vision, {image[0]}x{image[1]}, {len(images.shapes)} views",
        lambda: plain_image_features(model, images),
        lambda: image_features(model, images),
        setting,
        flops.vision_flops(sizes.config(), images.shapes),
        flops.vision_flops(sizes.config(), images.shapes, reference=True),
        {"encoder": encode, "projector": project_all},
    )
    return replaced(row, kept_bytes=projector.folded_weights.nbytes)


@torch.no_grad()
def prefill_row(sizes: Sizes, image: tuple[int, int], max_slices: int, setting: Setting) -> BenchRow:
    """Measure pixels to the first token's logits, prompt and language model included."""
    model = build(sizes, setting.device, setting.dtype, with_text=True)
    images = prepare(sizes, model, [image], max_slices, setting.device, setting.dtype)
    length = images.input_ids.shape[1]
    text = flops.language_flops(sizes.config(), length, 1)

    def plain() -> torch.Tensor:
        features = plain_image_features(model, images)
        return model(input_ids=images.input_ids, image_features=features, logits_to_keep=1).logits

    def fused() -> torch.Tensor:
        return model(input_ids=images.input_ids, **images.inputs, logits_to_keep=1).logits

    row, _, _ = compare(
        f"prefill, {image[0]}x{image[1]}, {length} tokens, {sizes.text_layers} text layers",
        plain,
        fused,
        setting,
        flops.vision_flops(sizes.config(), images.shapes) + text,
        flops.vision_flops(sizes.config(), images.shapes, reference=True) + text,
        {},
    )
    return replaced(row, kept_bytes=hiwin_of(model).folded_weights.nbytes)


@torch.no_grad()
def generate_row(sizes: Sizes, image: tuple[int, int], max_slices: int, new_tokens: int, setting: Setting) -> BenchRow:
    """Measure pixels to `new_tokens` greedy tokens; the error is that of the first token's logits."""
    model = build(sizes, setting.device, setting.dtype, with_text=True)
    images = prepare(sizes, model, [image], max_slices, setting.device, setting.dtype)
    length = images.input_ids.shape[1]
    config = sizes.config()
    text = flops.language_flops(config, length, 1) + sum(
        flops.language_flops(config, 1, 1, past) for past in range(length, length + new_tokens - 1)
    )

    def generate(**image_inputs: torch.Tensor) -> torch.Tensor:
        out = model.generate(
            input_ids=images.input_ids,
            attention_mask=torch.ones_like(images.input_ids),
            **image_inputs,
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return out.logits[0]

    row, _, _ = compare(
        f"generate, {image[0]}x{image[1]}, {length} + {new_tokens} tokens, {sizes.text_layers} text layers",
        lambda: generate(image_features=plain_image_features(model, images)),
        lambda: generate(**images.inputs),
        setting,
        flops.vision_flops(sizes.config(), images.shapes) + text,
        flops.vision_flops(sizes.config(), images.shapes, reference=True) + text,
        {},
    )
    return replaced(row, kept_bytes=hiwin_of(model).folded_weights.nbytes, tokens=new_tokens)


def train_step_row(sizes: Sizes, views: int, setting: Setting) -> BenchRow:
    """Measure forward and backward pass of pyramid and projector, in training mode, tower and up-sampler frozen.

    Both ways draw the same dropout. Peaks are above the weights and their gradients, which each run finds and drops.
    """
    projector = hiwin_of(build(sizes, setting.device, setting.dtype)).train()
    projector.upsampler.requires_grad_(False)
    projector.positions.requires_grad_(False)
    features, pixels = random_views(sizes, views, setting)
    direction = torch.randn(views, sizes.query_grid**2, sizes.hidden).to(setting.device, setting.dtype)
    learnt = {name: p for name, p in projector.named_parameters() if p.requires_grad}

    def step(tokens: Callable[[], torch.Tensor]) -> torch.Tensor:
        projector.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        out = tokens()
        out.backward(direction)
        return out.detach()

    def plain() -> torch.Tensor:
        return step(lambda: reference.tokens(projector, features, pixels))

    def fused() -> torch.Tensor:
        return step(lambda: projector(features, pixels))

    plain()
    expected = {name: p.grad.clone() for name, p in learnt.items() if p.grad is not None}
    fused()
    actual = {name: p.grad for name, p in learnt.items() if p.grad is not None}
    difference = sum(
        float((actual.pop(name).double() - grad.double()).square().sum()) for name, grad in expected.items()
    )
    norm = sum(float(grad.double().square().sum()) for grad in expected.values())
    expected.clear()
    row, _, _ = compare(
        f"train-step, {views} view(s) of {sizes.grid[0]}x{sizes.grid[1]}, frozen up-sampler",
        plain,
        fused,
        setting,
        flops.projector_training_step(sizes.config(), sizes.grid, views, reference=False),
        flops.projector_training_step(sizes.config(), sizes.grid, views, reference=True),
        {},
    )
    return replaced(row, first_s=None, relative_error=max(row.relative_error, (difference / norm) ** 0.5))
