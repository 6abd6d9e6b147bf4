"""Attribution of an answer's words to windows of the image. Every image token is one window of one view.

Two methods; neither proves what the model used:

- `rollout`: attention rollout through the language model's layers (Abnar and Zuidema, arXiv 2005.00928): heads are
  averaged, the residual path counts one half, and the layers' matrices are multiplied. It shows where information
  could have flowed. It ignores the values and the importance of heads, favors tokens that all positions attend to,
  and treats sliding-window layers as full attention.
- `gradient`: gradient times input of the token's logit with respect to the image features, absolute and summed over
  channels: the first-order effect of a window on this token. It is noisy, and small where the model is confident.

Both apply to windows after the projector, whose features also contain context from the vision tower's attention.

Shapes: T image tokens of the conversation, G query grid.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ..model.images import decode_image
from ..model.layout import layout_views
from .attention_record import recording
from .slices import WHOLE, Box, canvas_box

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image
    from transformers import PreTrainedTokenizerBase

    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor

Method = Literal["rollout", "gradient"]
METHODS: tuple[Method, ...] = ("rollout", "gradient")
IMAGE_INPUTS = ("pixel_values", "view_shapes", "num_views", "grids")


@dataclass(frozen=True)
class Word:
    """Word of an answer, with the indices of its tokens in the answer."""

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class ImageHeat:
    """Weight of each window of one image; over all images of a conversation the weights sum to 1.

    Attributes:
        slices: (rows, columns) weights of the slices' windows, arranged as in the image; None without slices.
        overview: (rows, columns) weights of the overview's windows.
        canvas: box that the windows cover; beyond the image where it is padded.
    """

    slices: np.ndarray | None
    overview: np.ndarray
    canvas: Box = WHOLE

    def combined(self, width: int, height: int) -> np.ndarray:
        """Return (height, width) weights over the image: the sum of slices and overview, resized bilinearly."""
        from PIL import Image

        total = np.zeros((height, width))
        left, top, right, bottom = self.canvas
        for part in (self.slices, self.overview):
            if part is not None:
                rows, columns = part.shape[0] / (bottom - top), part.shape[1] / (right - left)  # of the image's size
                box = (-left * columns, -top * rows, (1 - left) * columns, (1 - top) * rows)
                windows = Image.fromarray(part.astype(np.float32))
                spread = windows.resize((width, height), Image.Resampling.BILINEAR, box)
                total += np.asarray(spread) * part.size
        return total


def answer_words(tokenizer: "PreTrainedTokenizerBase", answer_ids: Sequence[int]) -> list[Word]:
    """Return the words of an answer in order. A token across two words belongs to both, a special token to none."""
    text = tokenizer.decode(answer_ids, skip_special_tokens=True)
    spans, end = [], 0
    for index in range(len(answer_ids)):
        start = end
        so_far = tokenizer.decode(answer_ids[: index + 1], skip_special_tokens=True)
        end = max(len(commonprefix([so_far, text])), start)
        # The first bytes of a multi-byte character decode to nothing yet; they belong to that character.
        spans.append((start, max(end, start + 1)))
    special = set(tokenizer.all_special_ids)
    words = []
    for match in re.finditer(r"\S+", text):
        first, last = match.span()
        tokens = [
            index
            for index, (start, end) in enumerate(spans)
            if start < last and end > first and answer_ids[index] not in special
        ]
        words.append(Word(match.group(), tuple(tokens)))
    return words


def attribute(
    model: "LlavaUhdForConditionalGeneration",
    inputs: Any,
    answer_ids: Sequence[int],
    tokens: Sequence[int],
    method: str = "rollout",
) -> np.ndarray:
    """Return the (T,) weights of the image tokens for some tokens of an answer: non-negative, summing to 1.

    Args:
        model: loaded model.
        inputs: inputs of one conversation, see `generation.prompt.prepare`; `image_features` may replace pixels.
        answer_ids: token ids of the answer.
        tokens: indices into `answer_ids`.
        method: one of `METHODS`.

    Raises:
        ValueError: unknown method, a conversation without image, or no such token.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not tokens or not all(0 <= token < len(answer_ids) for token in tokens):
        raise ValueError(f"the answer has {len(answer_ids)} tokens, and these were asked for: {list(tokens)}")
    prompt = inputs["input_ids"]
    is_image = (prompt[0] == model.config.image_token_id).cpu()
    if not is_image.any():
        raise ValueError("the conversation has no image to attribute an answer to")
    answer = torch.tensor([list(answer_ids)], device=prompt.device)
    sequence = torch.cat([prompt, answer], dim=1)
    with torch.no_grad():
        features = inputs.get("image_features")
        if features is None:
            images = {name: inputs[name] for name in IMAGE_INPUTS}
            features = torch.cat(model.get_image_features(**images).pooler_output)
    # A token is predicted at the position before it.
    positions = [prompt.shape[1] + token - 1 for token in tokens]
    if method == "rollout":
        weights = _rollout(model, sequence, features, positions)[
            torch.nn.functional.pad(is_image, (0, len(answer_ids)))
        ]
    else:
        weights = _gradient(model, sequence, features, positions, [answer_ids[token] for token in tokens])
    weights = weights.double()
    return (weights / weights.sum().clamp(min=1e-300)).cpu().numpy()


@torch.no_grad()
def _rollout(
    model: "LlavaUhdForConditionalGeneration", sequence: torch.Tensor, features: torch.Tensor, positions: list[int]
) -> torch.Tensor:
    """Return the (L,) rollout weights of all tokens, averaged over the given positions."""
    with recording(model) as recorded:
        model(input_ids=sequence, image_features=features, use_cache=False, logits_to_keep=1, recorded=recorded)
    share = torch.zeros(sequence.shape[1], device=recorded[0].device)
    share[positions] = 1 / len(positions)
    for weights in reversed(recorded):
        share = (share + share @ weights) / 2
    return share.cpu()


def _gradient(
    model: "LlavaUhdForConditionalGeneration",
    sequence: torch.Tensor,
    features: torch.Tensor,
    positions: list[int],
    predicted: list[int],
) -> torch.Tensor:
    """Return (T,) |gradient · feature| of the sum of the predicted tokens' logits."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = features.detach().clone().requires_grad_()
        at = torch.tensor(positions, device=sequence.device)
        outputs = model(input_ids=sequence.clone(), image_features=leaf, use_cache=False, logits_to_keep=at)
        logits = outputs.logits[0].float()
        score = logits[torch.arange(len(positions)), torch.tensor(predicted, device=logits.device)].sum()
        (gradient,) = torch.autograd.grad(score, leaf)
    return (gradient.float() * leaf.detach().float()).sum(dim=1).abs().cpu()


def image_heats(
    processor: "LlavaUhdProcessor",
    inputs: Any,
    weights: np.ndarray,
    images: Sequence[Any] | None = None,
    max_slices: int | None = None,
) -> list[ImageHeat]:
    """Arrange the (T,) weights of `attribute` by image, view and window.

    Args:
        processor: processor of the model.
        inputs: `view_shapes`, `num_views` and `grids` of the conversation's images.
        weights: (T,) weights of all image tokens in the order of the sequence.
        images: the conversation's images; needed where the processor pads them, to tell where they lie in the views.
        max_slices: maximum number of slices they were cut into; None for the model's own.

    Raises:
        ValueError: there are more or fewer weights than image tokens, or images.
    """
    pads = processor.image_processor.pad_to_grid or processor.image_processor.pad_to_square
    count_of_images = len(inputs["num_views"])
    if pads and (images is None or len(images) != count_of_images):
        raise ValueError(
            f"this processor pads images: give all {count_of_images} to tell where they lie in their views"
        )
    canvases = [canvas_box(processor, decode_image(image), max_slices) for image in images or ()] if pads else []
    shapes = [(rows, columns) for rows, columns in inputs["view_shapes"].tolist()]
    heats, view, used = [], 0, 0
    for number, (count, (columns, rows)) in enumerate(
        zip(inputs["num_views"].tolist(), inputs["grids"].tolist(), strict=True)
    ):
        slice_shape, overview_shape = shapes[view], shapes[view + count - 1]
        layout = layout_views((columns, rows), slice_shape, overview_shape, processor.token_grid, processor.layout)
        in_view_order = np.zeros(layout.num_image_tokens)
        part = weights[used : used + layout.num_image_tokens]
        if len(part) < layout.num_image_tokens:
            raise ValueError(f"there are {len(weights)} weights, fewer than the images have tokens")
        in_view_order[list(layout.order)] = part
        token_rows, token_columns = processor.token_grid.shape(slice_shape)
        size = rows * columns * token_rows * token_columns
        slices = in_view_order[:size].reshape(rows, columns, token_rows, token_columns).transpose(0, 2, 1, 3)
        heats.append(
            ImageHeat(
                slices.reshape(rows * token_rows, columns * token_columns) if size else None,
                in_view_order[size:].reshape(processor.token_grid.shape(overview_shape)),
                canvases[number] if pads else WHOLE,
            )
        )
        view, used = view + count, used + layout.num_image_tokens
    if used != len(weights):
        raise ValueError(f"there are {len(weights)} weights, but the images have {used} tokens")
    return heats


def overlay(image: "Image.Image", heat: ImageHeat) -> np.ndarray:
    """Return (height, width, 3) in [0, 1]: the image in gray under a yellow-to-red map of the weights."""
    from matplotlib import colormaps

    weights = heat.combined(*image.size)
    strength = weights / max(weights.max(), 1e-12)
    gray = np.asarray(image.convert("L"), dtype=float)[..., None].repeat(3, axis=2) / 255
    warm = colormaps["YlOrRd"](strength)[..., :3]  # dark where the weight is high: visible on white paper, too
    share = 0.75 * strength[..., None]
    return gray * (1 - share) + warm * share


def attribution_figure(images: Sequence[Any], heats: Sequence[ImageHeat], title: str = "") -> "Figure":
    """Draw a row per image: the weights over it, and the windows of its slices and of its overview."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2 * len(heats)), dpi=150, layout="constrained")
    largest = max(float(part.max()) for heat in heats for part in (heat.slices, heat.overview) if part is not None)
    for axes, source, heat in zip(figure.subplots(len(heats), 3, squeeze=False), images, heats, strict=True):
        image = decode_image(source)
        axes[0].imshow(overlay(image, heat))
        axes[0].set_title("over the image")
        width, height = image.size
        left, top, right, bottom = heat.canvas
        for axis, part, name in ((axes[1], heat.slices, "slices"), (axes[2], heat.overview, "overview")):
            if part is not None:
                extent = (left * width, right * width, bottom * height, top * height)
                axis.imshow(part, cmap="inferno", vmin=0, vmax=largest, extent=extent)
                axis.set(xlim=(0, width), ylim=(height, 0))
                axis.set_title(f"{name}: {part.sum():.0%}")
        for axis in axes:
            axis.set_axis_off()
    figure.suptitle(title)
    return figure
