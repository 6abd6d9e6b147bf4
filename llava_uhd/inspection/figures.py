"""Figures by name, for the command line: `llava-uhd explain image.png --figure windows --save windows.png`."""

from typing import TYPE_CHECKING, Any

from ..generation.prompt import prepare, question_message
from ..generation.sampling import MAX_NEW_TOKENS
from ..model.images import decode_image
from .attribution import answer_words, attribute, attribution_figure, image_heats
from .figure import explanation_figure, principal_colors, pyramid_figure, view_pyramid
from .kernels import kernel_figure, point_kernels
from .output import FIGURES, check_figure
from .slices import slice_figure
from .window_attention import window_attention, window_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor

__all__ = ["FIGURES", "answer_figure", "make_figure"]


def make_figure(
    name: str,
    model: "LlavaUhdForConditionalGeneration",
    processor: "LlavaUhdProcessor",
    image: Any,
    max_slices: int | None = None,
    point: tuple[float, float] = (0.5, 0.5),
    question: str | None = None,
    word: str | None = None,
    method: str = "rollout",
) -> "Figure":
    """Draw one of `FIGURES`.

    Args:
        name: name of the figure.
        model: loaded model.
        processor: processor of the model.
        image: path, URL, bytes, array or PIL image.
        max_slices: maximum number of slices; None for the model's own.
        point: (x, y) in the overview, from 0 to 1; used by `kernels`.
        question: question about the image; used by `answer`.
        word: word of the answer to attribute, None for the whole answer; used by `answer`.
        method: attribution method, one of `attribution.METHODS`; used by `answer`.

    Raises:
        ValueError: unknown name, missing question, or a word that is not in the answer.
    """
    check_figure(name, question)
    if name == "explanation":
        return explanation_figure(model, processor, image, max_slices)
    if name == "slices":
        return slice_figure(processor, image, max_slices)
    if name == "pyramid":
        return pyramid_figure(principal_colors(view_pyramid(model, processor, image, max_slices=max_slices)))
    if name == "kernels":
        return kernel_figure(point_kernels(model, processor, image, point, max_slices=max_slices))
    if name == "windows":
        return window_figure(window_attention(model, processor, image, max_slices=max_slices))
    return answer_figure(model, processor, image, max_slices, question, word, method)


def answer_figure(
    model: "LlavaUhdForConditionalGeneration",
    processor: "LlavaUhdProcessor",
    image: Any,
    max_slices: int | None = None,
    question: str | None = None,
    word: str | None = None,
    method: str = "rollout",
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> "Figure":
    """Ask a question and draw the attribution of the answer, or of one word of it; see `make_figure`."""
    check_figure("answer", question)
    assert question is not None
    decoded = decode_image(image)
    options = {} if max_slices is None else {"max_slices": max_slices}
    inputs = prepare(model, processor, [question_message([decoded], question)], max_new_tokens, **options)
    generated = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    answer_ids = generated[0, inputs["input_ids"].shape[1] :].tolist()
    words = answer_words(processor.tokenizer, answer_ids)
    answer = " ".join(each.text for each in words)
    selected = words if word is None else [each for each in words if word.lower() in each.text.lower()][:1]
    if not selected:
        raise ValueError(f"the answer is {answer!r}, which does not contain {word!r}")
    tokens = sorted({token for each in selected for token in each.tokens})
    weights = attribute(model, inputs, answer_ids, tokens, method)
    heats = image_heats(processor, inputs, weights, [decoded], max_slices)
    attributed = f"“{selected[0].text}”" if word else "the answer"
    return attribution_figure([decoded], heats, f"{question} {answer}\nattribution of {attributed} by {method}")
