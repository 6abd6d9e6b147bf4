"""The page in a real browser: headless Chromium, driven as a person would use it."""

import os
import re
import shutil
from pathlib import Path

import pytest

from llava_uhd import LlavaUhdProcessor
from llava_uhd.generation.prompt import question_message
from llava_uhd.loading import abilities, load
from llava_uhd.serving.engine import Engine, EngineOptions
from llava_uhd.serving.generation import Sampling
from llava_uhd.web.examples import write_examples
from llava_uhd.web.page import NO_HEAT, NO_IMAGE, Handlers, build_page, describe_model, launch_page
from llava_uhd.web.session import Session
from tests.conftest import build_model, random_image, small_config
from tests.documents import write_pdf, write_tiff
from tests.serving.running import until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
in_a_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, such as Debian's package chromium"),
]


@pytest.fixture(scope="module")
def engine(qwen_tokenizer):
    config = small_config()
    processor = LlavaUhdProcessor.from_config(config, qwen_tokenizer, "qwen")
    with Engine(build_model(config, seed=4), processor, EngineOptions(batch_size=2, max_new_tokens=12)) as engine:
        yield engine


@pytest.fixture
def file(tmp_path):
    random_image(300, 200).save(tmp_path / "image.png")
    return str(tmp_path / "image.png")


# Without a browser


def ask(handlers: Handlers, text: str, files: list[str], session: Session, slices: int = 0):
    """The last thing the page shows: (shown, session)."""
    *_, (_, shown, session) = handlers.respond({"text": text, "files": files}, [], session, slices, 0.0)
    return shown, session


def test_turns_images_and_the_panel(engine, file, tmp_path):
    handlers = Handlers(engine)
    shown, session = ask(handlers, "What is this?", [file], Session())
    assert [message["role"] for message in shown] == ["user", "user", "assistant"]
    random_image(30, 40, 1).save(tmp_path / "second.png")
    _, session = ask(handlers, "And this?", [str(tmp_path / "second.png")], session)
    assert len(session.messages) == 4 and len(session.images) == 2 and session.answer_ids
    image, word, *views = handlers.look(session)
    assert image.value == 1 and len(image.choices) == 2 and word.choices and "one overview" in views[1]
    assert handlers.forget()[:2] == ([], Session()) and handlers.forget()[4:] == (*NO_IMAGE, None, NO_HEAT)
    slices, sentence, pyramid, levels = handlers.views(session, 0)
    assert slices.size == (675, 600) and "cut into 3 x 2 slices" in sentence and "63 image tokens" in sentence
    assert pyramid.width > 100 and "1x with 4 x 3, 2x with 8 x 6" in levels
    assert "one overview" in handlers.views(session, 1)[1]
    for method in ("rollout", "gradient"):
        heat, sentence = handlers.heat(session, 0, 0, method)
        assert heat.size == (300, 200) and re.search(r"from the left and \d+% from the top", sentence)
    assert handlers.heat(session, 0, 999, "rollout")[0] is None
    assert handlers.views(session, None) == NO_IMAGE
    assert handlers.heat(session, None, None, "rollout") == (None, NO_HEAT)


def test_slices_are_a_setting(engine, file):
    handlers = Handlers(engine)
    _, session = ask(handlers, "What is this?", [file], Session(), slices=1)
    assert "9 image tokens" in handlers.views(session, 0)[1]


def test_errors_in_words_leave_the_conversation_as_it_was(engine, file, tmp_path):
    handlers = Handlers(engine)
    _, session = ask(handlers, "What is this?", [file], Session())
    (tmp_path / "broken.png").write_bytes(b"no image")
    for text, files, said in [
        ("What?", [str(tmp_path / "broken.png")], "image 2 is not an image"),
        ("", [file], "type a question"),
        ("word " * 3000, [], "context of 2048"),
        ("What?", [str(tmp_path / "gone.png")], "its log says"),
    ]:
        shown, after = ask(handlers, text, files, session)
        assert said in shown[-1]["content"] and after is session
        assert str(tmp_path) not in shown[-1]["content"]


@pytest.mark.parametrize("name, count", [("five.pdf", 5), ("three.tif", 3)])
def test_every_page_of_a_document_is_an_image(engine, tmp_path, name, count):
    handlers = Handlers(engine)
    file = str((write_pdf if name.endswith("pdf") else write_tiff)(tmp_path / name, count))
    _, session = ask(handlers, "What is this?", [file], Session(), slices=2)
    assert len(session.images) == count and len(handlers.look(session)[0].choices) == count
    figure, sentence, *_ = handlers.views(session, count - 1)
    assert figure is not None and bool(re.search(r"a page of 21\d x 29\d mm seen at", sentence)) == name.endswith(
        "pdf"
    )
    message = {"text": "And this?", "files": [file]}
    *_, (_, shown, later) = handlers.respond(message, [], session, 2, 0.0, "2-3")
    assert len(later.images) == count + 2
    *_, (_, shown, after) = handlers.respond(message, [], session, 2, 0.0, "9")
    assert f"{name} has {count} pages, and no page 9" in shown[-1]["content"] and after is session
    assert str(tmp_path) not in shown[-1]["content"]


def test_the_model_and_its_abilities_are_named(engine):
    said = describe_model(engine, "tiny", abilities("tiny"))
    assert "**tiny** answers" in said and "at most 6 slices of 56 x 56 pixels" in said and "receipts" in said
    assert "does not say" in describe_model(engine, "mine", None)


def test_stopping_cancels_the_answer(engine, file):
    options = EngineOptions(batch_size=1, max_new_tokens=1500)
    with Engine(engine.model, engine.processor, options) as long_winded:
        steps = Handlers(long_winded).respond({"text": "What?", "files": [file]}, [], Session(), 0, 0.0)
        next(steps)
        next(steps)
        steps.close()
        until(lambda: long_winded.stats().cancelled == 1)


def test_examples_have_a_question_each(tmp_path):
    examples = write_examples(tmp_path)
    assert len(examples) == 4 and all(question and Path(file).is_file() for question, file in examples)


# In a browser


@pytest.fixture(scope="module")
def url(engine, tmp_path_factory):
    page = build_page(engine, tmp_path_factory.mktemp("examples"), "tiny", abilities("tiny"))
    yield launch_page(page, "127.0.0.1", 0, 2**20)
    page.close()


@pytest.fixture
def browser(url):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


def upload(page, *files: str) -> None:
    page.locator("#question input[type=file]").set_input_files(list(files))
    page.locator("#question .thumbnail-item, #question .thumbnail-image").first.wait_for()


def type_question(page, text: str) -> None:
    page.locator("#question textarea").fill(text)
    page.keyboard.press("Enter")


class TestInBrowser:
    pytestmark = in_a_browser

    def test_upload_question_answer_panel_and_heat_map(self, engine, url, browser, file):
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        page.goto(url)
        upload(page, file)
        type_question(page, "What is this?")
        _, session = ask(Handlers(engine), "What is this?", [file], Session())
        answer = session.messages[-1]["content"][0]["text"]
        page.locator("#slices-text", has_text="63 image tokens").wait_for()
        assert re.findall(r"\w{3,}", answer)[0] in page.locator("#chat .bot").last.inner_text()
        assert "1x with 4 x 3" in page.locator("#pyramid-text").inner_text()
        page.get_by_alt_text("The image with its slices outlined").wait_for()
        page.get_by_alt_text("The pyramid's levels in false colors").wait_for()
        word = page.get_by_label("Where did this word come from?")
        word.focus()  # with the keyboard alone
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.locator("#heat-text", has_text="from the left").wait_for()
        page.get_by_alt_text("The image, warm where the word came from").wait_for()

        type_question(page, "And the total?")
        page.locator("#chat .bot").nth(1).wait_for()
        page.locator("#heat-text", has_text="After an answer").wait_for()
        page.locator("#clear").click()
        page.locator("#slices-text", has_text="After an answer").wait_for()
        assert page.locator("#chat .bot").count() == 0

    def test_the_icon_of_the_chat_forgets_the_images_as_well(self, engine, url, browser, file):
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        page.goto(url)
        upload(page, file)
        type_question(page, "What is this?")
        page.locator("#slices-text", has_text="63 image tokens").wait_for()
        page.get_by_role("button", name="Clear").click()
        page.locator("#slices-text", has_text="After an answer").wait_for()
        type_question(page, "What is this?")
        page.locator("#chat .bot").wait_for()
        expected = engine.submit([question_message([], "What is this?")], Sampling()).result().text
        page.locator("#chat .bot", has_text=(expected or "(nothing)").split()[0]).wait_for()
        assert "After an answer" in page.locator("#slices-text").inner_text()

    def test_nothing_on_the_page_can_only_fail(self, url, browser, file):
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        page.goto(url)
        introduction = page.locator("#introduction").inner_text()
        assert "tiny answers" in introduction and "receipts" in introduction
        for panel in ("slices", "pyramid", "heat"):
            assert "After an answer" in page.locator(f"#{panel}-text").inner_text()
        upload(page, file)
        type_question(page, "What is this?")
        page.locator("#slices-text", has_text="63 image tokens").wait_for()
        names = page.evaluate(
            "[...document.querySelectorAll('button')].filter(e => e.offsetParent !== null)"
            ".map(e => e.ariaLabel || e.title || e.innerText || '')"
        )
        assert not [name for name in names if "share" in name.lower()], names
        fonts = page.evaluate("getComputedStyle(document.querySelector('h1')).fontFamily")
        assert fonts.startswith("system-ui")

    def test_the_pages_of_a_pdf_and_of_a_tiff_can_be_looked_at(self, url, browser, tmp_path):
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        page.goto(url)
        page.locator("#question input[type=file]").set_input_files(
            [str(write_pdf(tmp_path / "five.pdf", 5)), str(write_tiff(tmp_path / "three.tif", 3))]
        )
        page.wait_for_timeout(500)
        type_question(page, "What is this?")
        page.locator("#slices-text", has_text="image tokens").wait_for()
        page.get_by_label("Look at").click()
        choices = page.get_by_role("option")
        assert choices.count() == 8 and choices.nth(4).inner_text() == "image 5"
        choices.nth(4).click()
        page.locator("#slices-text", has_text=re.compile(r"a page of 21\d x 29\d mm")).wait_for()

    def test_an_error_is_shown_in_words(self, url, browser, tmp_path):
        (tmp_path / "broken.png").write_bytes(b"no image")
        page = browser.new_page()
        page.goto(url)
        page.locator("#question input[type=file]").set_input_files(str(tmp_path / "broken.png"))
        page.wait_for_timeout(500)
        type_question(page, "What is this?")
        page.locator("#chat", has_text="is not an image").wait_for()
        assert "Traceback" not in page.content() and "/tmp" not in page.locator("#chat").inner_text()

    def test_examples_and_a_phone(self, url, browser):
        page = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True)
        page.goto(url)
        page.locator("#chat").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        chat, panel = page.locator("#chat").bounding_box(), page.locator("#which-image").bounding_box()
        assert panel["y"] > chat["y"] + chat["height"] and panel["x"] < 60
        page.locator(".gallery-item, .gallery button").first.tap()
        page.locator("#question .thumbnail-item, #question .thumbnail-image").first.wait_for()
        assert page.locator("#question textarea").input_value()

    def test_everything_has_a_name_for_screen_readers(self, url, browser):
        page = browser.new_page()
        page.goto(url)
        page.locator("#chat").wait_for()
        assert page.get_by_role("heading", name="LLaVA-UHD").count() == 1
        # Examples are drawn after the page.
        page.wait_for_function("[...document.querySelectorAll('.gallery-item')].every(e => e.firstElementChild)")
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('button, input, textarea, select')]
                .filter(e => e.offsetParent !== null)
                .filter(e => !(e.labels?.length || e.ariaLabel || e.title || e.innerText?.trim() || e.placeholder
                               || e.getAttribute('aria-labelledby')))
                .map(e => e.outerHTML.slice(0, 200))"""
        )
        assert nameless == []

    def test_screenshot_with_tiny(self, browser, tmp_path):
        """LLAVA_UHD_SCREENSHOT=docs/web.png keeps the screenshot."""
        with Engine(*load("tiny"), EngineOptions(batch_size=2)) as engine:
            page_ = build_page(engine, tmp_path, "tiny", abilities("tiny"))
            address = launch_page(page_, "127.0.0.1", 0, 2**24)
            page = browser.new_page(viewport={"width": 1280, "height": 1480})
            page.goto(address)
            page.locator(".gallery-item, .gallery button").first.click()
            page.locator("#question .thumbnail-item, #question .thumbnail-image").first.wait_for()
            page.locator("#question textarea").focus()
            page.keyboard.press("Enter")
            page.get_by_alt_text("The pyramid's levels in false colors").wait_for()
            page.get_by_label("Where did this word come from?").focus()
            page.keyboard.press("ArrowDown")
            page.keyboard.press("Enter")
            page.get_by_alt_text("The image, warm where the word came from").wait_for()
            page.wait_for_timeout(1000)
            page.screenshot(path=os.environ.get("LLAVA_UHD_SCREENSHOT", tmp_path / "web.png"))
            page_.close()
