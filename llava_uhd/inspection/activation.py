"""Activation of an answer's tokens by level of the pyramid (as in Figure 7 of the LLaVA-UHD v2 paper).

The paper does not say how its activations are computed. Here it is gradient times input: the gradient of the tokens'
logits with respect to the map of a level, times the map, absolute and summed over channels. Maps are taken apart, so a
level counts for what the projector reads from it directly, not for the levels that are up-sampled from it. Like any
gradient it says what a small change would do, and is noisy.

Shapes: N views of one shape, V views of an image, C channels, H W map of a level.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..generation.prompt import prepare, question_message
from ..generation.sampling import MAX_NEW_TOKENS
from ..model.hiwin import HiWinProjector
from ..model.images import decode_image
from .attribution import IMAGE_INPUTS, answer_words
from .slices import WHOLE, Box, canvas_box
from .view import hiwin_projector

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor


@dataclass(frozen=True)
class LevelActivation:
    """Activation of an answer's tokens on one level of an image's views.

    Attributes:
        level: factor of the level.
        slices: (rows, columns) of the slices' maps laid out as the slices lie in the image; None without slices.
        overview: (rows, columns) of the overview's map.
    """

    level: int
    slices: np.ndarray | None
    overview: np.ndarray

    @property
    def total(self) -> float:
        """Sum over slices and overview."""
        return float(self.overview.sum() + (0 if self.slices is None else self.slices.sum()))


@dataclass(frozen=True)
class Activation:
    """Activation of the chosen word, or of the whole answer, on every level.

    Attributes:
        answer: the answer.
        word: word that was looked at; None for the whole answer.
        levels: activation by level, ascending.
        canvas: box that the maps cover; beyond the image where it is padded.
    """

    answer: str
    word: str | None
    levels: list[LevelActivation]
    canvas: Box = WHOLE

    def shares(self) -> dict[int, float]:
        """Return the share of each level in the sum over all levels."""
        whole = sum(level.total for level in self.levels)
        return {level.level: level.total / max(whole, 1e-300) for level in self.levels}


class _LeafMaps(nn.Module):
    """An up-sampler whose maps are leaves of the graph, recorded group by group."""

    def __init__(self, upsampler: nn.Module):
        super().__init__()
        self.upsampler = upsampler
        self.recorded: list[list[torch.Tensor]] = []

    def forward(self, features: torch.Tensor, pixels: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            maps = self.upsampler(features, pixels)
        self.recorded.append([map_.detach().clone().requires_grad_() for map_ in maps])
        return self.recorded[-1]


@contextmanager
def _leaf_maps(projector: HiWinProjector) -> Iterator[_LeafMaps]:
    """Let the projector read recorded leaves; an up-sampler that it does not know keeps it from fusing."""
    upsampler = projector.upsampler
    leaves = _LeafMaps(upsampler)
    projector.upsampler = leaves  # type: ignore[assignment]
    try:
        yield leaves
    finally:
        projector.upsampler = upsampler


def level_activation(
    model: "LlavaUhdForConditionalGeneration", inputs: Any, answer_ids: Sequence[int], tokens: Sequence[int]
) -> list[LevelActivation]:
    """Compute the activation of some tokens of an answer to a question about one image.

    Args:
        model: loaded model with a HiWin projector.
        inputs: inputs of the conversation, see `answering.prepare`.
        answer_ids: token ids of the answer.
        tokens: indices into `answer_ids`.

    Raises:
        ValueError: the projector uses no pyramid, the conversation has not one image, or no such token.
    """
    projector = hiwin_projector(model)
    if len(inputs["num_views"]) != 1:
        raise ValueError(f"expected a conversation about one image, got {len(inputs['num_views'])} images")
    if not tokens or not all(0 <= token < len(answer_ids) for token in tokens):
        raise ValueError(f"the answer has {len(answer_ids)} tokens, and these were asked for: {list(tokens)}")
    images = {name: inputs[name] for name in IMAGE_INPUTS}
    prompt = inputs["input_ids"]
    sequence = torch.cat([prompt, torch.tensor([list(answer_ids)], device=prompt.device)], dim=1)
    kept = torch.tensor([prompt.shape[1] + token - 1 for token in tokens], device=prompt.device)
    with torch.inference_mode(False), torch.enable_grad(), _leaf_maps(projector) as leaves:
        features = torch.cat(model.get_image_features(**images).pooler_output)
        outputs = model(input_ids=sequence, image_features=features, use_cache=False, logits_to_keep=kept)
        logits = outputs.logits[0].float()
        predicted = torch.tensor([answer_ids[token] for token in tokens], device=logits.device)
        flat = [map_ for group in leaves.recorded for map_ in group]
        gradients = torch.autograd.grad(logits.gather(1, predicted[:, None]).sum(), flat)
    found = [
        (gradient.float() * map_.detach().float()).sum(dim=1).abs()
        for gradient, map_ in zip(gradients, flat, strict=True)
    ]
    count = len(projector.levels)
    by_group = [found[start : start + count] for start in range(0, len(found), count)]
    groups = model.model.group_views(len(images["pixel_values"]), *(images[name] for name in IMAGE_INPUTS[1:])).groups
    # Views in the order of their patches: the slices, row by row, then the overview.
    first_patch = torch.cat([group.patch_indices[:, 0] for group in groups])
    order = first_patch.argsort().tolist()
    columns, rows = inputs["grids"][0].tolist()
    levels = []
    for index, level in enumerate(projector.levels):
        views = [view.cpu().numpy() for group in by_group for view in group[index]]
        *slices, overview = [views[place] for place in order]
        raster = np.block([slices[row * columns : (row + 1) * columns] for row in range(rows)]) if slices else None
        levels.append(LevelActivation(level, raster, overview))
    return levels


def answer_activation(
    model: "LlavaUhdForConditionalGeneration",
    processor: "LlavaUhdProcessor",
    image: Any,
    question: str,
    word: str | None = None,
    max_slices: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Activation:
    """Ask a question, and compute the activation of the answer, or of one word of it, by level.

    Args:
        model: loaded model with a HiWin projector.
        processor: processor of the model.
        image: anything that the image processor takes.
        question: question about the image.
        word: word of the answer to look at; None for all of it.
        max_slices: maximum number of slices; None as trained.
        max_new_tokens: longest answer, in tokens.

    Raises:
        ValueError: the projector uses no pyramid, or the answer has no such word.
    """
    hiwin_projector(model)
    decoded = decode_image(image)
    options = {} if max_slices is None else {"max_slices": max_slices}
    inputs = prepare(model, processor, [question_message([decoded], question)], max_new_tokens, **options)
    generated = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    answer_ids = generated[0, inputs["input_ids"].shape[1] :].tolist()
    words = answer_words(processor.tokenizer, answer_ids)
    answer = " ".join(each.text for each in words)
    chosen = words if word is None else [each for each in words if word.lower() in each.text.lower()][:1]
    if not chosen:
        raise ValueError(f"the answer is {answer!r}" + ("" if word is None else f", and has no word like {word!r}"))
    tokens = sorted({token for each in chosen for token in each.tokens})
    levels = level_activation(model, inputs, answer_ids, tokens)
    canvas = canvas_box(processor, decoded, max_slices)
    return Activation(answer, None if word is None else chosen[0].text, levels, canvas)


def activation_figure(image: Any, activation: Activation, title: str = "") -> "Figure":
    """Draw the image and, level by level, the activation over slices (upper row) and overview (lower row)."""
    from matplotlib.figure import Figure

    pixels = np.asarray(decode_image(image))
    shares, levels = activation.shares(), activation.levels
    figure = Figure(figsize=(3 * (len(levels) + 1), 6), dpi=130, layout="constrained")
    axes = figure.subplots(2, len(levels) + 1, squeeze=False)
    axes[0, 0].imshow(pixels)
    axes[0, 0].set_title("image")
    height, width = pixels.shape[:2]
    left, top, right, bottom = activation.canvas
    for column, level in enumerate(levels, start=1):
        for row, part in enumerate((level.slices, level.overview)):
            if part is not None:
                extent = (left * width, right * width, bottom * height, top * height)
                axes[row, column].imshow(part, cmap="inferno", extent=extent)
                axes[row, column].set(xlim=(0, width), ylim=(height, 0))
        axes[0, column].set_title(f"{level.level}x, slices: {shares[level.level]:.0%} of all")
        axes[1, column].set_title(f"{level.level}x, overview")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle(title)
    return figure
