"""The verbs `serve` and `chat` as commands: pipes, signals, exit codes."""

import io
import json
import signal
import subprocess
import sys
import threading

import openai
import pytest
from PIL import Image
from rich.console import Console

from llava_uhd import cli
from llava_uhd.serving.chat import Chat, split_paths
from llava_uhd.serving.generation import Sampling
from tests.conftest import random_image
from tests.documents import write_pdf, write_tiff
from tests.serving.running import as_openai, until
from tests.serving.test_engine import CONVERSATIONS


@pytest.fixture(scope="module")
def folder(loaded, tmp_path_factory):
    """Return a model folder with an image in it."""
    path = tmp_path_factory.mktemp("small")
    for part in loaded:
        part.save_pretrained(path)
    random_image(300, 200).save(path / "an image.png")
    return path


@pytest.fixture
def chat(monkeypatch, capsys, folder):
    """Runs `llava-uhd chat` in this process with lines on stdin: (exit code, stdout, stderr)."""

    def run(lines: list[str], *arguments: str) -> tuple[int, str, str]:
        command = ["llava-uhd", "chat", "--model", str(folder), "--max-new-tokens", "5", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code or 0, *capsys.readouterr()

    return run


def test_a_piped_conversation_prints_answers_alone(chat, folder, engine, tmp_path):
    image = folder / "an image.png"
    lines = [f"/image '{image}'", "What is this?", "And the total?", f"/save {tmp_path / 'chat.json'}",
             f"/save {tmp_path / 'chat.md'}", "/slices", "/exit", "never asked"]  # fmt: skip
    code, out, err = chat(lines)
    assert code == 0 and f"{image}: 300 x 200 pixels, 3 x 2 slices and the overview, 63 tokens" in err
    saved = json.loads((tmp_path / "chat.json").read_text())
    assert [message["role"] for message in saved] == ["user", "assistant"] * 2
    assert saved[0]["content"] == [{"type": "image", "path": str(image)}, {"type": "text", "text": "What is this?"}]
    messages, answers = [], []
    for message in saved:
        if message["role"] == "user":
            content = [{**part, "image": image} if part["type"] == "image" else part for part in message["content"]]
            messages.append({**message, "content": content})
            answers.append(engine.submit(messages, Sampling(max_new_tokens=5)).result().text)
        else:
            messages.append(message)
            assert message["content"][0]["text"] == answers[-1]
    assert out == "".join(f"{answer}\n" for answer in answers)
    assert f"![]({image})" in (tmp_path / "chat.md").read_text() and answers[0] in (tmp_path / "chat.md").read_text()


def test_json_and_images_on_the_command_line(chat, folder):
    image = folder / "an image.png"
    code, out, err = chat(["/slices 1", f"/image '{image}'", "/clear", "What?"], image, "--json")
    assert code == 0 and len(out.splitlines()) == 1
    conversation = json.loads(out)
    assert len(conversation["messages"]) == 2 and conversation["messages"][0]["content"][0]["type"] == "text"
    assert "63 tokens" in err and "the overview alone, 9 tokens" in err
    code, out, _ = chat(["What?"], image, "--json")
    assert code == 0 and json.loads(out)["messages"][0]["content"][0] == {"type": "image", "path": str(image)}


@pytest.mark.parametrize("word", ["quit", "exit", "/quit", "QUIT"])
def test_quit_ends_the_chat(chat, word):
    code, out, _ = chat([word, "never asked"], "--json")
    assert code == 0 and json.loads(out)["messages"] == []


def test_questions_that_are_not_utf_8_are_refused(chat, monkeypatch):
    lines = io.TextIOWrapper(io.BytesIO(b"na\xefve?\n"), encoding="utf-8")
    with monkeypatch.context() as patched:
        patched.setattr(io, "StringIO", lambda _: lines)
        code, _, err = chat([])
    assert code == 1 and "error: stdin is not text in UTF-8: " in err and "Traceback" not in err


def test_pages_of_documents(chat, tmp_path):
    pdf, tiff = write_pdf(tmp_path / "five.pdf", 5), write_tiff(tmp_path / "three.tif", 3)
    code, out, err = chat(["What?"], pdf, tiff, "--pages", "2-3", "--max-slices", "4", "--json")
    paths = [part["path"] for part in json.loads(out)["messages"][0]["content"] if part["type"] == "image"]
    expected = [(pdf, 2, 5), (pdf, 3, 5), (tiff, 2, 3), (tiff, 3, 3)]
    assert code == 0 and paths == [f"{file}, page {number} of {count}" for file, number, count in expected]
    assert err.count("slices and the overview") == 4
    code, out, _ = chat(["What?"], pdf, tiff, "--max-slices", "1", "--json")
    paths = [part["path"] for part in json.loads(out)["messages"][0]["content"] if part["type"] == "image"]
    assert code == 0 and paths == [
        f"{file}, page {n} of {count}" for file, count in ((pdf, 5), (tiff, 3)) for n in range(1, count + 1)
    ]
    code, out, err = chat([f"/image {tiff}", "/slices"], "--max-slices", "2")
    assert code == 0 and err.count("page 3 of 3: 496 x 702 pixels") == 2


def test_backslashes_of_windows_paths_stay():
    line = r'C:\Users\me\a.png "C:\my scans\b.pdf"'
    assert split_paths(line, windows=True) == [r"C:\Users\me\a.png", r"C:\my scans\b.pdf"]
    assert split_paths("a.png 'b c.png'", windows=False) == ["a.png", "b c.png"]


@pytest.mark.parametrize(
    "line, said",
    [
        ("/image none.png", "none.png"),
        ("/image", "name one or more files"),
        ("/image 'open", "No closing quotation"),
        ("/image ~no-such-user/a.png", "~no-such-user"),
        ("/slices none", "at least 1"),
        ("/slices 0", "at least 1"),
        ("/slices ²", "at least 1, or auto, got '²'"),
        ("/drop x", "/drop is a command without argument, got 'x'"),
        ("/save", "name a file"),
        ("/save /nowhere/at/all.json", "/nowhere"),
        ("/sing", "there is no command /sing"),
        ("word " * 3000, "context of 2048"),
    ],
)
def test_a_failed_line_says_why_and_the_conversation_goes_on(engine, capsys, line, said):
    out = io.StringIO()
    conversation = Chat(engine, Sampling(max_new_tokens=3), None, Console(file=out))
    conversation.run([line, "And now?"])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == conversation.failures == 1 and said in errors[0]
    assert len(conversation.messages) == 2 and out.getvalue().strip()


def test_a_refused_image_is_not_asked_about_and_added_ones_can_be_left_out(engine, capsys, tmp_path):
    Image.new("RGB", (200_000, 1)).save(tmp_path / "narrow.png")
    Image.new("RGB", (300, 200)).save(tmp_path / "page.png")
    conversation = Chat(engine, Sampling(max_new_tokens=3), None, Console(file=io.StringIO()))
    conversation.run([f"/image {tmp_path}/page.png {tmp_path}/narrow.png", "What is it?"])
    assert conversation.failures == 1 and "too narrow" in capsys.readouterr().err
    assert len(conversation.messages) == 2 and len(conversation.messages[0]["content"]) == 1
    conversation.run([f"/image {' '.join([f'{tmp_path}/page.png'] * 40)}", "What?", "/drop", "And now?"])
    assert conversation.failures == 2 and len(conversation.messages) == 4, capsys.readouterr().err


def test_options_without_an_effect_or_an_end_are_bad_use(chat, monkeypatch, capsys):
    code, _, err = chat([], "--pages", "1-3")
    assert code == 2 and "--pages chooses pages of the files" in " ".join(err.replace("\u2502", " ").split())
    for option in ("--deadline", "--body-timeout", "--image-timeout", "--head-timeout"):
        monkeypatch.setattr(sys, "argv", ["llava-uhd", "serve", option, "inf"])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert exit_.value.code == 2 and option in capsys.readouterr().err


def test_a_failure_makes_the_exit_code_1_at_the_end(chat):
    code, out, err = chat(["/image none.png", "Still there?"])
    assert code == 1 and out.strip() and "error: " in err and "Traceback" not in err


def test_on_a_terminal_answers_are_rendered(engine):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=60)
    conversation = Chat(engine, Sampling(), None, console)
    conversation.show(iter(["# Total\n\n", "It is **12", "**."]))
    shown = screen.getvalue()
    assert "\x1b[" in shown and "12" in shown and "**" not in shown.rpartition("Total")[2]


@pytest.fixture
def serving(folder):
    """`llava-uhd serve` as a process of its own; (process, client)."""
    tool = [sys.executable, "-m", "llava_uhd.cli"]
    command = [*tool, "serve", "--model", str(folder), "--port", "0", "--json", "--batch-size", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        ready = json.loads(process.stdout.readline())
        assert ready["model"] == folder.name
        yield process, openai.OpenAI(base_url=ready["url"], api_key="none", max_retries=0), ready["model"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.mark.slow
def test_serve_finishes_running_requests_before_it_ends(serving):
    process, client, name = serving
    messages = as_openai(CONVERSATIONS[0])
    short = client.chat.completions.create(model=name, messages=messages, max_tokens=3)
    assert short.usage.completion_tokens == 3
    answers: list = []

    def ask() -> None:
        answers.append(client.chat.completions.create(model=name, messages=messages, max_tokens=600))

    stream = client.chat.completions.create(model=name, messages=messages, max_tokens=600, stream=True)
    next(iter(stream))
    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: '"running":2' in client.get("../health", cast_to=str).replace(" ", ""))
    process.send_signal(signal.SIGTERM)
    asking.join()
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert answers[0].usage.completion_tokens == 600 and streamed == answers[0].choices[0].message.content
    assert process.wait(20) == 0
    assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_web_starts_and_says_where(folder):
    import httpx

    command = [sys.executable, "-m", "llava_uhd.cli", "web", "--model", str(folder), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        ready = json.loads(process.stdout.readline())
        assert ready["model"] == folder.name
        page = httpx.get(ready["url"])
        assert page.status_code == 200 and "LLaVA-UHD" in page.text
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stdout.read() == "" and "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        (["serve", "--model", "nowhere", "--port", "0"], 1, "nowhere"),
        (["serve", "--port", "70000"], 2, "equal to"),
        (["serve", "--batch-size", "0"], 2, "equal to"),
        (["chat", "--temperature", "3"], 2, "equal to"),
        (["chat", "--model", "nowhere"], 1, "nowhere"),
        (["web", "--model", "nowhere", "--port", "0"], 1, "nowhere"),
        (["web", "--max-upload-mb", "0"], 2, "or equal"),
    ],
)
def test_bad_use(monkeypatch, capsys, arguments, code, said):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "argv", ["llava-uhd", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    out, err = capsys.readouterr()
    assert exit_.value.code == code and out == "" and said in err and "Traceback" not in err


def test_a_stop_signal_while_the_server_starts_ends_it():
    script = """
import os, signal
from fastapi import FastAPI
from llava_uhd.serving import running
freeze = running.freeze_objects
running.freeze_objects = lambda: (freeze(), os.kill(os.getpid(), signal.SIGTERM))
running.run_server(FastAPI(), "127.0.0.1", 0, 1.0, print)
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60).returncode == 0
