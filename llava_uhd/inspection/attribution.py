"""Which windows of the image an answer's words came from. Every image token is one window of one view.

Two measures, neither of them proof of what the model used:

- `rollout`: attention rollout through the language model's layers (Abnar and Zuidema, arXiv 2005.00928): heads are
  averaged, half of each layer passes by on the residual path, and the layers' matrices are multiplied. It says where
  information could have flowed. It does not know what the values carried, nor which heads mattered, it favours tokens
  that everybody attends to, and layers with a sliding window are treated as if they saw everything.
- `gradient`: gradient times input of the token's logit with respect to the image features, absolute and summed over
  channels. It says what a small change of a window would do to this very token. It is noisy, and says little where
  the model is sure of itself.

Both look at the windows after the projector: a window's features also hold what the vision tower saw around it.

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
    """A word of an answer, and the places of its tokens among the answer's tokens."""

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class ImageHeat:
    """How much each window of one image counts; over all images of a conversation the weights sum to 1.

    Attributes:
        slices: (rows, columns) of the slices' windows laid out as the slices lie in the image; None without slices.
        overview: (rows, columns) of the overview's windows.
    """

    slices: np.ndarray | None
    overview: np.ndarray

    def combined(self, width: int, height: int) -> np.ndarray:
        """(height, width) weights over the image: slices and overview, each at its own resolution, added."""
        from PIL import Image

        total = np.zeros((height, width))
        for part in (self.slices, self.overview):
            if part is not None:
                spread = Image.fromarray(part.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
                total += np.asarray(spread) * part.size
        return total


def answer_words(tokenizer: "PreTrainedTokenizerBase", answer_ids: Sequence[int]) -> list[Word]:
    """The words of an answer, in order. A token with parts of two words belongs to both; special tokens to none."""
    text = tokenizer.decode(answer_ids, skip_special_tokens=True)
    spans, end = [], 0
    for index in range(len(answer_ids)):
        start = end
        so_far = tokenizer.decode(answer_ids[: index + 1], skip_special_tokens=True)
        end = max(len(commonprefix([so_far, text])), start)
        # The first bytes of a character show nothing yet; they belong to the character.
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
    """How much each image token counts for some tokens of an answer: (T,), not negative, summing to 1.

    Args:
        model: loaded.
        inputs: of one conversation, see `answering.prepare`; `image_features` may stand in place of the pixels.
        answer_ids: what the model answered.
        tokens: places in `answer_ids`.
        method: see above.

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
    # A token is predicted at the place before it.
    places = [prompt.shape[1] + token - 1 for token in tokens]
    if method == "rollout":
        weights = _rollout(model, sequence, features, places)[torch.nn.functional.pad(is_image, (0, len(answer_ids)))]
    else:
        weights = _gradient(model, sequence, features, places, [answer_ids[token] for token in tokens])
    weights = weights.double()
    return (weights / weights.sum().clamp(min=1e-300)).cpu().numpy()


@torch.no_grad()
def _rollout(
    model: "LlavaUhdForConditionalGeneration", sequence: torch.Tensor, features: torch.Tensor, places: list[int]
) -> torch.Tensor:
    """(L,) share of every token in what the places hold, averaged over the places."""
    with recording(model) as recorded:
        model(input_ids=sequence, image_features=features, use_cache=False, logits_to_keep=1, recorded=recorded)
    share = torch.zeros(sequence.shape[1], device=recorded[0].device)
    share[places] = 1 / len(places)
    for weights in reversed(recorded):
        share = (share + share @ weights) / 2
    return share.cpu()


def _gradient(
    model: "LlavaUhdForConditionalGeneration",
    sequence: torch.Tensor,
    features: torch.Tensor,
    places: list[int],
    predicted: list[int],
) -> torch.Tensor:
    """(T,) |gradient · feature| of the sum of the predicted tokens' logits."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = features.detach().clone().requires_grad_()
        kept = torch.tensor(places, device=sequence.device)
        outputs = model(input_ids=sequence.clone(), image_features=leaf, use_cache=False, logits_to_keep=kept)
        logits = outputs.logits[0].float()
        score = logits[torch.arange(len(places)), torch.tensor(predicted, device=logits.device)].sum()
        (gradient,) = torch.autograd.grad(score, leaf)
    return (gradient.float() * leaf.detach().float()).sum(dim=1).abs().cpu()


def image_heats(processor: "LlavaUhdProcessor", inputs: Any, weights: np.ndarray) -> list[ImageHeat]:
    """The (T,) weights of `attribute` put where the windows lie, image by image.

    Args:
        processor: of the model.
        inputs: `view_shapes`, `num_views` and `grids` of the conversation's images.
        weights: of all image tokens in the order of the sequence.

    Raises:
        ValueError: there are more or fewer weights than image tokens.
    """
    shapes = [(rows, columns) for rows, columns in inputs["view_shapes"].tolist()]
    heats, view, used = [], 0, 0
    for count, (columns, rows) in zip(inputs["num_views"].tolist(), inputs["grids"].tolist(), strict=True):
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
            )
        )
        view, used = view + count, used + layout.num_image_tokens
    if used != len(weights):
        raise ValueError(f"there are {len(weights)} weights, but the images have {used} tokens")
    return heats


def overlay(picture: "Image.Image", heat: ImageHeat) -> np.ndarray:
    """(height, width, 3) in [0, 1]: the image grey, from yellow to dark red where its windows count."""
    from matplotlib import colormaps

    weights = heat.combined(*picture.size)
    strength = weights / max(weights.max(), 1e-12)
    grey = np.asarray(picture.convert("L"), dtype=float)[..., None].repeat(3, axis=2) / 255
    warm = colormaps["YlOrRd"](strength)[..., :3]  # dark where it counts: seen on white paper, too
    share = 0.75 * strength[..., None]
    return grey * (1 - share) + warm * share


def attribution_figure(pictures: Sequence[Any], heats: Sequence[ImageHeat], title: str = "") -> "Figure":
    """A row per image: the heat over it, and the windows of its slices and of its overview."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2 * len(heats)), dpi=150, layout="constrained")
    largest = max(float(part.max()) for heat in heats for part in (heat.slices, heat.overview) if part is not None)
    for axes, source, heat in zip(figure.subplots(len(heats), 3, squeeze=False), pictures, heats, strict=True):
        picture = decode_image(source)
        axes[0].imshow(overlay(picture, heat))
        axes[0].set_title("over the image")
        width, height = picture.size
        for axis, part, name in ((axes[1], heat.slices, "slices"), (axes[2], heat.overview, "overview")):
            if part is not None:
                extent = (0.0, float(width), float(height), 0.0)
                axis.imshow(part, cmap="inferno", vmin=0, vmax=largest, extent=extent)
                axis.set_title(f"{name}: {part.sum():.0%}")
        for axis in axes:
            axis.set_axis_off()
    figure.suptitle(title)
    return figure
