"""The panel beside the chat: an image's slices and pyramid, and which windows a word of the answer came from.

Every picture comes with a sentence that says the same, for those who do not see it.
"""

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..inspection.attribution import Method, Word, answer_words, attribute, image_heats, overlay
from ..inspection.explanation import explain_image
from ..inspection.figure import principal_colors, pyramid_figure, view_pyramid
from ..inspection.legibility import legibility_note
from ..inspection.slices import draw_slices
from ..model.hiwin import HiWinProjector
from ..model.images import decode_image
from ..planning import ImagePlanner
from ..serving.engine import Engine
from ..serving.prompts import SHAPE_INPUTS
from .session import Session, page_dpi, with_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rendered(figure: "Figure") -> Image.Image:
    """A figure as a picture for the page."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file)


def slices_picture(engine: Engine, session: Session, index: int) -> tuple[Image.Image, str]:
    """An image of the conversation with its slices, and the sentence."""
    from matplotlib.figure import Figure

    picture = decode_image(session.images[index])
    figure = Figure(figsize=(4.5, 4), dpi=150, layout="constrained")
    draw_slices(figure.subplots(), picture, engine.processor, session.max_slices)
    seen = explain_image(engine.processor, picture, session.max_slices)
    cut = (
        f"cut into {seen['grid'][0]} x {seen['grid'][1]} slices, each seen at "
        f"{seen['slice_size'][0]} x {seen['slice_size'][1]}, and an overview of "
        if seen["grid"]
        else "seen as one overview of "
    )
    width, height = seen["overview_size"]
    planner = ImagePlanner.from_processor(engine.processor)
    small = legibility_note(planner, *picture.size, session.max_slices, page_dpi(session.images[index]))
    return rendered(figure), (
        f"{picture.width} x {picture.height} pixels, {cut}{width} x {height}: "
        f"**{seen['num_image_tokens']} image tokens** in {seen['num_views']} view{'s'[: seen['num_views'] != 1]}."
        + (f" **Note:** {small}." if small else "")
    )


def pyramid_picture(engine: Engine, session: Session, index: int) -> tuple[Image.Image | None, str]:
    """The pyramid of an image's overview, and the sentence; no picture where the projector uses no pyramid."""
    projector = engine.model.model.multi_modal_projector
    if not isinstance(projector, HiWinProjector):
        return None, "This model's projector uses no pyramid."
    picture = decode_image(session.images[index])
    colours = principal_colors(engine.run(lambda: view_pyramid(engine.model, engine.processor, picture)))
    sizes = ", ".join(f"{level}x with {map_.shape[1]} x {map_.shape[0]}" for level, map_ in colours.items())
    return rendered(pyramid_figure(colours)), f"Levels of the overview's pyramid, in positions: {sizes}."


def words(engine: Engine, session: Session) -> list[Word]:
    """The words of the last answer."""
    return answer_words(engine.processor.tokenizer, session.answer_ids)


def heat_picture(engine: Engine, session: Session, index: int, word: int, method: Method) -> tuple[Image.Image, str]:
    """An image with the windows that a word of the last answer came from, and the sentence.

    Raises:
        ValueError: the answer has no such word.
    """
    all_words = words(engine, session)
    if not 0 <= word < len(all_words):
        raise ValueError(f"the answer has {len(all_words)} words, and none of number {word + 1}")
    chosen = all_words[word]
    prompt = engine.prompts.build(with_bytes(session.last_question), session.max_slices)
    shapes = {name: np.concatenate([image.inputs[name] for _, image in prompt.images]) for name in SHAPE_INPUTS}

    def weights() -> np.ndarray:
        inputs = {"input_ids": prompt.input_ids.to(engine.model.device), "image_features": engine.encode(prompt)}
        return attribute(engine.model, inputs, session.answer_ids, chosen.tokens, method)

    heat = image_heats(engine.processor, shapes, engine.run(weights))[index]
    picture = decode_image(session.images[index])
    painted = Image.fromarray((overlay(picture, heat) * 255).astype(np.uint8))
    combined = heat.combined(*picture.size)
    row, column = np.unravel_index(int(combined.argmax()), combined.shape)
    share = sum(float(part.sum()) for part in (heat.slices, heat.overview) if part is not None)
    return painted, (
        f"“{chosen.text}” weighs the windows around {column / picture.width:.0%} from the left and "
        f"{row / picture.height:.0%} from the top most; this image has {share:.0%} of all the weight."
    )
