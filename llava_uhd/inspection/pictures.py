"""The pictures by name, for the command line: `llava-uhd explain image.png --picture windows --save windows.png`."""

from typing import TYPE_CHECKING, Any

from ..answering import prepare, question_message
from ..model.images import decode_image
from .attribution import answer_words, attribute, attribution_figure, image_heats
from .figure import explanation_figure, principal_colours, pyramid_figure, view_pyramid
from .kernels import kernel_figure, point_kernels
from .slices import slice_figure
from .window_attention import window_attention, window_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor

PICTURES = ("explanation", "slices", "pyramid", "kernels", "windows", "answer")


def picture(
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
    """One of `PICTURES`.

    Args:
        name: which.
        model: loaded.
        processor: of the model.
        image: whatever the image processor takes.
        max_slices: most slices; None as trained.
        point: of the overview, for `kernels`.
        question: for `answer`.
        word: for `answer`, the word of the answer that is looked at; None for all of them.
        method: for `answer`, see `attribution`.

    Raises:
        ValueError: unknown name, no question, or a word that the answer has not.
    """
    if name == "explanation":
        return explanation_figure(model, processor, image, max_slices)
    if name == "slices":
        return slice_figure(processor, image, max_slices)
    if name == "pyramid":
        return pyramid_figure(principal_colours(view_pyramid(model, processor, image)))
    if name == "kernels":
        return kernel_figure(point_kernels(model, processor, image, point))
    if name == "windows":
        return window_figure(window_attention(model, processor, image))
    if name == "answer":
        return answer_figure(model, processor, image, max_slices, question, word, method)
    raise ValueError(f"there is no picture {name!r}; there is {', '.join(PICTURES)}")


def answer_figure(
    model: "LlavaUhdForConditionalGeneration",
    processor: "LlavaUhdProcessor",
    image: Any,
    max_slices: int | None = None,
    question: str | None = None,
    word: str | None = None,
    method: str = "rollout",
    max_new_tokens: int = 64,
) -> "Figure":
    """Ask a question, and show which windows the answer, or one word of it, came from; see `picture`."""
    if not question:
        raise ValueError("the picture of an answer needs a question")
    decoded = decode_image(image)
    options = {} if max_slices is None else {"max_slices": max_slices}
    inputs = prepare(model, processor, [question_message([decoded], question)], max_new_tokens, **options)
    generated = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    answer_ids = generated[0, inputs["input_ids"].shape[1] :].tolist()
    words = answer_words(processor.tokenizer, answer_ids)
    answer = " ".join(each.text for each in words)
    chosen = words if word is None else [each for each in words if word.lower() in each.text.lower()][:1]
    if not chosen:
        raise ValueError(f"the answer is {answer!r}, and has no word like {word!r}")
    tokens = sorted({token for each in chosen for token in each.tokens})
    heats = image_heats(processor, inputs, attribute(model, inputs, answer_ids, tokens, method))
    looked_at = f"“{chosen[0].text}”" if word else "the answer"
    return attribution_figure([decoded], heats, f"{question} {answer}\nwhere {looked_at} came from, by {method}")
