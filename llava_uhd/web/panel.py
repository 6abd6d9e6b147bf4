"""Panel beside the chat: slices and pyramid of an image, and the attribution of a word of the answer.

Every figure comes with a description for users of screen readers.
"""

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..generation.prompt import SHAPE_INPUTS
from ..inspection.attribution import Method, Word, answer_words, attribute, image_heats, overlay
from ..inspection.explanation import explain_image
from ..inspection.figure import principal_colors, pyramid_figure, view_pyramid
from ..inspection.legibility import legibility_note
from ..inspection.slices import draw_slices
from ..model.hiwin import HiWinProjector
from ..model.images import decode_image
from ..planning import ImagePlanner
from ..serving.engine import Engine
from .session import Session, page_dpi, with_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rendered(figure: "Figure") -> Image.Image:
    """Render a figure as an image."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file)


def slices_image(engine: Engine, session: Session, index: int) -> tuple[Image.Image, str]:
    """Return an image of the conversation with its slices outlined, and a description."""
    from matplotlib.figure import Figure

    image = decode_image(session.images[index])
    figure = Figure(figsize=(4.5, 4), dpi=150, layout="constrained")
    draw_slices(figure.subplots(), image, engine.processor, session.max_slices)
    plan = explain_image(engine.processor, image, session.max_slices)
    views = (
        f"cut into {plan['grid'][0]} x {plan['grid'][1]} slices, each seen at "
        f"{plan['slice_size'][0]} x {plan['slice_size'][1]}, and an overview of "
        if plan["grid"]
        else "seen as one overview of "
    )
    width, height = plan["overview_size"]
    planner = ImagePlanner.from_processor(engine.processor)
    small = legibility_note(planner, image, session.max_slices, page_dpi(session.images[index]))
    return rendered(figure), (
        f"{image.width} x {image.height} pixels, {views}{width} x {height}: "
        f"**{plan['num_image_tokens']} image tokens** in {plan['num_views']} view{'s'[: plan['num_views'] != 1]}."
        + (f" **Note:** {small}." if small else "")
    )


def pyramid_image(engine: Engine, session: Session, index: int) -> tuple[Image.Image | None, str]:
    """Return the pyramid of an image's overview and a description; no image if the projector has no pyramid."""
    projector = engine.model.model.multi_modal_projector
    if not isinstance(projector, HiWinProjector):
        return None, "This model's projector uses no pyramid."
    image = decode_image(session.images[index])
    colors = principal_colors(
        engine.run(lambda: view_pyramid(engine.model, engine.processor, image, max_slices=session.max_slices))
    )
    sizes = ", ".join(f"{level}x with {map_.shape[1]} x {map_.shape[0]}" for level, map_ in colors.items())
    return rendered(pyramid_figure(colors)), f"Levels of the overview's pyramid, in positions: {sizes}."


def words(engine: Engine, session: Session) -> list[Word]:
    """Return the words of the last answer."""
    return answer_words(engine.processor.tokenizer, session.answer_ids)


def heat_image(engine: Engine, session: Session, index: int, word: int, method: Method) -> tuple[Image.Image, str]:
    """Return an image under the attribution of a word of the last answer, and a description.

    Raises:
        ValueError: the answer has no such word.
    """
    all_words = words(engine, session)
    if not 0 <= word < len(all_words):
        raise ValueError(f"the answer has {len(all_words)} words, and none of number {word + 1}")
    chosen = all_words[word]
    prompt = engine.prompts.build(with_bytes(session.last_question), session.max_slices)
    shapes = {name: np.concatenate([encoded.inputs[name] for encoded in prompt.images]) for name in SHAPE_INPUTS}

    def weights() -> np.ndarray:
        inputs = {
            "input_ids": prompt.input_ids.to(engine.model.device),
            "image_features": engine.generator.encode(prompt.images)[0],
        }
        return attribute(engine.model, inputs, session.answer_ids, chosen.tokens, method)

    heats = image_heats(engine.processor, shapes, engine.run(weights), session.images, session.max_slices)
    heat = heats[index]
    image = decode_image(session.images[index])
    painted = Image.fromarray((overlay(image, heat) * 255).astype(np.uint8))
    combined = heat.combined(*image.size)
    row, column = np.unravel_index(int(combined.argmax()), combined.shape)
    share = sum(float(part.sum()) for part in (heat.slices, heat.overview) if part is not None)
    return painted, (
        f"“{chosen.text}” weighs the windows around {column / image.width:.0%} from the left and "
        f"{row / image.height:.0%} from the top most; this image has {share:.0%} of all the weight."
    )
