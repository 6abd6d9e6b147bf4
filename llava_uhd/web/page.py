"""Web page: a chat and a panel of figures, side by side or stacked on a narrow screen.

Needs gradio and matplotlib (`pip install llava-uhd[web]`).
"""

import logging
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from ..inspection.attribution import METHODS, Method
from ..model.images import IMAGE_EXTENSIONS
from ..planning import ImagePlanner
from ..serving.engine import Engine
from ..serving.generation import Cancelled, DeadlineExceeded, EngineBusy, EngineClosed, Result, Sampling
from . import panel
from .examples import write_examples
from .session import Session, unfold, with_bytes

log = logging.getLogger(__name__)

IMAGE_TYPES = [*IMAGE_EXTENSIONS, ".pdf"]
KEPT_FOR = (3600, 24 * 3600)  # uploads are looked through every hour and deleted after a day
# An image in the chat has a button that shares it through a service that is not there; no option removes it.
CSS = "footer, button[aria-label='Share'], button[title='Share'] {display: none !important}"
FONT = ["system-ui", "sans-serif"]  # one font for all letters, and none to fetch
IMAGE_OPTIONS: dict[str, Any] = {
    "type": "pil",
    "interactive": False,
    "buttons": ["fullscreen"],
    "height": 260,
    "show_label": False,  # it would cover the image; the description stands above
}
INTRODUCTION = """\
# LLaVA-UHD
Add images, PDF or TIFF files, ask, and see the slices of each image and the attribution of each word of the answer.

{description}"""
# What the panels are for, while they are empty.
NO_SLICES = "**Slices.** After an answer: the slices of the image and their resolution."
NO_PYRAMID = "**Pyramid.** After an answer: the features of the whole image at each level, in false colors."
NO_HEAT = "**Heat map.** After an answer: choose one of its words to see which part of the image it came from."
NO_IMAGE = (None, NO_SLICES, None, NO_PYRAMID)

Shown = list[dict[str, Any]]


def in_words(error: Exception) -> str:
    """Return a message for the user that explains a failed request."""
    if isinstance(error, EngineBusy):
        return f"Too many people are asking just now. Please try again in {error.retry_after} seconds."
    if isinstance(error, DeadlineExceeded):
        return "That took too long, and was given up. A shorter question or fewer slices may help."
    if isinstance(error, EngineClosed):
        return "The server is shutting down."
    if isinstance(error, Cancelled):
        return "Stopped."
    if isinstance(error, ValueError):
        return f"I cannot answer that: {error}."
    log.error("unforeseen error", exc_info=error)
    return "Something went wrong on the server; its log says what."


class Handlers:
    """Event handlers of the page."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.planner = ImagePlanner.from_processor(engine.processor)

    def respond(
        self,
        message: dict[str, Any],
        shown: Shown,
        session: Session,
        max_slices: float,
        temperature: float,
        pages: str | None = None,
    ) -> Iterator[tuple[Any, Shown, Session]]:
        """Stream the answer to a question: yield the text box, the chat and the session."""
        question, files = (message.get("text") or "").strip(), message.get("files") or []
        said: Shown = [{"role": "user", "content": {"path": file}} for file in files]
        said += [{"role": "user", "content": question}] if question else []
        slices = int(max_slices) or None
        shown = [*shown, *said]
        if not question:
            shown.append({"role": "assistant", "content": "Please type a question as well."})
            yield gr.MultimodalTextbox(value={"text": "", "files": files}), shown, session
            return
        yield gr.MultimodalTextbox(value=None), shown, session
        answer, generation = "", None
        try:
            images = unfold(files, (pages or "").strip() or None, self.planner.num_pixels(slices))
            next_session = session.answered(images, question, "", [], slices)
            asked = with_bytes(next_session.last_question)
            generation = self.engine.submit(asked, Sampling(temperature=temperature), max_slices=slices)
            for event in generation.events():
                if isinstance(event, Result):
                    session = session.answered(images, question, event.text, event.token_ids, slices)
                    answer = event.text or "(nothing)"
                    guess = event.confidence(self.engine.calibration).note
                    if guess is not None:  # shown, and no part of the conversation
                        answer += f"\n\n*This is {guess}.*"
                else:
                    answer += event
                yield gr.skip(), [*shown, {"role": "assistant", "content": answer}], session
        except Exception as error:
            yield gr.skip(), [*shown, {"role": "assistant", "content": in_words(error)}], session
        finally:
            if generation is not None:
                generation.cancel()

    def look(self, session: Session) -> tuple[Any, ...]:
        """Return the panel after an answer: choices of images and words, the last image's views, no heat map."""
        images = [(f"image {number + 1}", number) for number in range(len(session.images))]
        in_answer = panel.words(self.engine, session) if images else []
        words = [(f"{number + 1}. {word.text}", number) for number, word in enumerate(in_answer)]
        last = len(images) - 1 if images else None
        image, word = gr.Dropdown(choices=images, value=last), gr.Dropdown(choices=words, value=None)
        return image, word, *self.views(session, last), None, NO_HEAT

    def forget(self) -> tuple[Any, ...]:
        """Return the initial chat, session and panel."""
        return [], Session(), *self.look(Session())

    def views(self, session: Session, index: int | None) -> tuple[Any, str, Any, str]:
        """Return slices and pyramid of the selected image, each with a description."""
        if index is None or index >= len(session.images):
            return NO_IMAGE
        return *panel.slices_image(self.engine, session, index), *panel.pyramid_image(self.engine, session, index)

    def heat(self, session: Session, index: int | None, word: int | None, method: Method) -> tuple[Any, str]:
        """Return the heat map of the selected word over the selected image, with a description."""
        if index is None or word is None or index >= len(session.images):
            return None, NO_HEAT
        try:
            return panel.heat_image(self.engine, session, index, word, method)
        except Exception as error:
            return None, in_words(error)


def describe_model(engine: Engine, name: str, abilities: str | None) -> str:
    """Return the sentences that name the model and what it can do.

    Args:
        engine: engine with the model.
        name: name of the model.
        abilities: description of what the model reads; None if its folder has none.
    """
    planner = ImagePlanner.from_processor(engine.processor)
    millions = sum(weight.numel() for weight in engine.model.parameters()) / 1e6
    return (
        f"**{name}** answers: {millions:,.1f} million parameters, at most {planner.max_slices} slices of "
        f"{planner.view_size} x {planner.view_size} pixels per image. "
        + (abilities or "Its folder does not say what it was trained to read.")
    )


def build_page(
    engine: Engine, examples_folder: Path, name: str = "The model", abilities: str | None = None
) -> gr.Blocks:
    """Return the page of an engine; example images are written into the folder.

    Args:
        engine: engine with the model.
        examples_folder: folder to write the example images to.
        name: name of the model.
        abilities: description of what the model reads, see `describe_model`.
    """
    handlers = Handlers(engine)
    examples = [[{"text": question, "files": [file]}] for question, file in write_examples(examples_folder)]
    with gr.Blocks(title="LLaVA-UHD", analytics_enabled=False, delete_cache=KEPT_FOR) as page:
        session = gr.State(Session())
        gr.Markdown(INTRODUCTION.format(description=describe_model(engine, name, abilities)), elem_id="introduction")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                chat = gr.Chatbot(
                    label="Conversation",
                    height=460,
                    elem_id="chat",
                    buttons=["copy", "copy_all"],  # sharing needs a service that is not there
                    placeholder="Add an image or a document below, and ask about it.",
                )
                box = gr.MultimodalTextbox(
                    label="Your question",
                    placeholder="Add images, and ask about them",
                    file_types=IMAGE_TYPES,
                    file_count="multiple",
                    sources=["upload"],
                    elem_id="question",
                    stop_btn=True,
                )
                gr.Examples(examples, inputs=[box], label="Try one of these")
                clear = gr.Button("New conversation", elem_id="clear")
                with gr.Accordion("Settings", open=False):
                    slices = gr.Slider(
                        0, 12, value=0, step=1, label="Most slices per image", info="0: as the model was trained"
                    )
                    temperature = gr.Slider(
                        0, 2, value=0, step=0.1, label="Temperature", info="0: always the most likely words"
                    )
                    pages = gr.Textbox(
                        label="Pages", info="Of PDF and TIFF files, such as 2 or 1,3-5; empty: all", elem_id="pages"
                    )
            with gr.Column(scale=2, min_width=320):
                image = gr.Dropdown([], label="Look at", elem_id="which-image", interactive=True)
                slices_text = gr.Markdown(NO_SLICES, elem_id="slices-text")
                slices_image = gr.Image(label="Slices", alt_text="The image with its slices outlined", **IMAGE_OPTIONS)
                pyramid_text = gr.Markdown(NO_PYRAMID, elem_id="pyramid-text")
                pyramid_image = gr.Image(
                    label="Pyramid of the overview", alt_text="The pyramid's levels in false colors", **IMAGE_OPTIONS
                )
                word = gr.Dropdown([], label="Where did this word come from?", elem_id="which-word", interactive=True)
                method = gr.Radio(
                    list(METHODS),
                    value=METHODS[0],
                    label="Measured by",
                    info="rollout: where attention could have carried it from; gradient: what would change it most. "
                    "Neither is proof.",
                )
                heat_text = gr.Markdown(NO_HEAT, elem_id="heat-text")
                heat_image = gr.Image(
                    label="Heat map", alt_text="The image, warm where the word came from", **IMAGE_OPTIONS
                )

        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        views = [slices_image, slices_text, pyramid_image, pyramid_text]
        whole_panel = [image, word, *views, heat_image, heat_text]
        heat: dict[str, Any] = {
            "fn": handlers.heat,
            "inputs": [session, image, word, method],
            "outputs": [heat_image, heat_text],
        }
        inputs = [box, chat, session, slices, temperature, pages]
        answered = box.submit(handlers.respond, inputs, [box, chat, session], concurrency_limit=None, **quiet)
        looked = answered.then(handlers.look, session, whole_panel, **quiet)
        image.input(handlers.views, [session, image], views, **quiet).then(**heat, **quiet)
        word.input(**heat, **quiet)
        method.input(**heat, **quiet)
        box.stop(None, cancels=[answered], **quiet)
        for cleared in (clear.click, chat.clear):  # the button, and the chat's own icon
            cleared(handlers.forget, None, [chat, session, *whole_panel], cancels=[answered, looked], **quiet)
    return page


def launch_page(page: gr.Blocks, host: str, port: int, max_file_bytes: int) -> str:
    """Serve the page on threads of its own, at any free port if `port` is 0: its URL."""
    _, url, _ = page.queue(default_concurrency_limit=4).launch(
        server_name=host,
        server_port=port or _free_port(host),
        max_file_size=max_file_bytes,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        css=CSS,
        theme=gr.themes.Default(font=FONT, font_mono=["monospace"]),
        footer_links=[],
    )
    return url


def run_until_stopped(page: gr.Blocks) -> None:
    """Wait for SIGINT or SIGTERM, and take the page down."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    page.close(verbose=False)


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as server:
        return server.getsockname()[1]
