"""The command line as a user meets it: what is printed where, and the exit codes."""

import io
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import llava_uhd
from llava_uhd import LlavaUhdProcessor, cli
from tests.conftest import build_model, random_image, small_config
from tests.documents import write_encrypted_pdf, write_pdf, write_tiff


@pytest.fixture(scope="module")
def folder(tmp_path_factory, qwen_tokenizer):
    """A model folder with random weights, and an image beside it."""
    path = tmp_path_factory.mktemp("model")
    config = small_config()
    build_model(config).save_pretrained(path)
    LlavaUhdProcessor.from_config(config, qwen_tokenizer, "qwen").save_pretrained(path)
    random_image(300, 200).save(path / "image.png")
    return path


def test_ask_streams_the_answer_it_returns_as_json(run, folder):
    arguments = ("ask", folder / "image.png", "What is this?", "--model", folder, "--max-new-tokens", "6")
    code, streamed, _ = run(*arguments)
    assert code == 0
    code, out, _ = run(*arguments, "--json")
    answer = json.loads(out)
    assert code == 0 and answer["answer"] == streamed.strip()
    assert answer["grids"] == [[3, 2]] and answer["num_views"] == [7] and answer["num_image_tokens"] == 63
    code, out, _ = run(*arguments, "--json", "--max-slices", "1")
    assert code == 0 and json.loads(out)["num_image_tokens"] == 9 and json.loads(out)["grids"] == [None]


def test_ask_about_two_images(run, folder):
    image = folder / "image.png"
    code, out, _ = run("ask", image, image, "Same?", "--model", folder, "--max-new-tokens", "2", "--json")
    assert code == 0 and json.loads(out)["num_image_tokens"] == 126


def test_explain(run, folder, tmp_path):
    code, out, _ = run("explain", folder / "image.png", "--model", folder, "--json", "--save", tmp_path / "fig.png")
    assert code == 0
    assert json.loads(out) == {
        "size": [300, 200],
        "grid": [3, 2],
        "slice_size": [56, 56],
        "overview_size": [56, 42],
        "num_views": 7,
        "num_image_tokens": 63,
        "sequence_length": 70,
        "layout": "stitched",
    }
    assert (tmp_path / "fig.png").read_bytes().startswith(b"\x89PNG")
    windows = ("--figure", "windows", "--save", tmp_path / "windows.png")
    assert run("explain", folder / "image.png", "--model", folder, *windows)[0] == 0
    assert (tmp_path / "windows.png").read_bytes() != (tmp_path / "fig.png").read_bytes()
    selfie = ("--figure", "selfie", "--save", tmp_path / "selfie.png")
    code, _, err = run("explain", folder / "image.png", "--model", folder, *selfie)
    assert code == 1 and "unknown figure 'selfie'" in err
    code, out, _ = run("explain", folder / "image.png", "--model", folder)
    assert code == 0 and "3 x 2" in out


def test_a_figure_that_cannot_be_written_is_reported_before_the_model_is_loaded(run, folder, monkeypatch, tmp_path):
    def load(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("llava_uhd.loading.load", load)
    receipt = ("examples/receipt.png", "What is the total?")
    for arguments, said in [
        (("explain", receipt[0], "--save", "figure.xyz"), "figure.xyz: the name must end with ."),
        (("explain", receipt[0], "--save", tmp_path), "must end with"),
        (("explain", receipt[0], "--save", "a.png", "--figure", "selfie"), "unknown figure 'selfie'"),
        (("explain", receipt[0], "--save", "a.png", "--figure", "answer"), "needs a question"),
        (("probe", "activation", *receipt, "--save", "figure.xyz"), "the name must end with"),
        (("probe", "activation", "gone.png", receipt[1]), "gone.png"),
    ]:
        code, out, err = run(*arguments)
        assert (code, out) == (1, "") and err.startswith("error: ") and said in err, (arguments, err)
    figure = tmp_path / "new" / "folder" / "slices.png"
    monkeypatch.undo()
    arguments = ("--model", folder, "--figure", "slices", "--save", figure)
    assert run("explain", folder / "image.png", *arguments)[0] == 0
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_failures_are_one_line_and_exit_1(run, folder, tmp_path):
    image = folder / "image.png"
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "folder").mkdir()
    write_encrypted_pdf(tmp_path / "secret.pdf")
    write_pdf(tmp_path / "long.pdf", 3)
    for arguments, said in [
        ((tmp_path / "none.png", "q", "--model", folder), "none.png"),
        ((tmp_path / "empty.png", "q", "--model", folder), "empty.png"),
        ((tmp_path / "cut.png", "q", "--model", folder), "cut.png"),
        ((tmp_path / "text.png", "q", "--model", folder), "text.png"),
        ((image, "q", "--model", tmp_path / "nowhere"), "nowhere"),
        ((image, "q", "--model", tmp_path / "folder"), "config.json"),
        ((image, "q", "--model", folder, "--dtype", "int3"), "int3"),
        ((image, "q", "--model", folder, "--device", "toaster"), "toaster"),
        ((image, "q", "--model", folder, "--device", "meta"), "meta"),
        ((image, "q", "--model", folder, "--pages", "2"), "no page 2"),
        ((tmp_path / "secret.pdf", "q", "--model", folder), "secret.pdf is encrypted"),
        ((tmp_path / "long.pdf", "q", "--model", folder, "--max-pages", "2"), "long.pdf has 3 pages; at most 2"),
        ((image, "q" * 3000, "--model", folder), "2048"),
        ((image, "q", "--model", folder, "--max-new-tokens", "5000"), "5000"),
    ]:
        code, out, err = run("ask", *arguments)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, out, len(lines)) == (1, "", 1) and said in lines[0], (arguments, code, out, err)
        assert "Traceback" not in err


def test_bad_use_exits_2(run, folder):
    for arguments in (
        ["ask", "what?"],
        ["ask"],
        ["ask", folder / "image.png", "q", "--max-slices", "0"],
        ["ask", folder / "image.png", "q", "--max-new-tokens", "0"],
        ["ask", folder / "image.png", "q", "--max-pages", "0"],
        ["explain"],
        ["explain", folder / "image.png", "--figure", "slices"],
        ["explain", folder / "image.png", "--question", "What?"],
        ["explain", folder / "image.png", "--figure", "slices", "--save", "x.png", "--point", "0.1", "0.2"],
        ["sing"],
    ):
        assert run(*arguments)[0] == 2


def test_debug_shows_the_traceback(monkeypatch, folder):
    monkeypatch.setattr(sys, "argv", ["llava-uhd", "ask", "none.png", "q", "--model", str(folder), "--debug"])
    with pytest.raises(ValueError, match=r"none\.png"):
        cli.main()


def test_help_imports_neither_torch_nor_transformers():
    script = (
        "import sys; sys.argv = ['llava-uhd', '--help']\n"
        "from llava_uhd.cli import main\n"
        "try:\n    main()\nfinally:\n    print(sorted({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.splitlines()[-1] == "[]" and "ask" in result.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a PyTorch without CUDA")
def test_a_device_that_is_not_there_is_one_line(run, folder):
    code, out, err = run("ask", folder / "image.png", "q", "--model", folder, "--device", "cuda")
    assert (code, out) == (1, "") and "error: device 'cuda' cannot be used" in err and "Traceback" not in err


@pytest.mark.parametrize("name, count", [("five.pdf", 5), ("three.tif", 3)])
def test_ask_about_all_pages_and_some(run, folder, tmp_path, name, count):
    write = write_pdf if name.endswith(".pdf") else write_tiff
    file = write(tmp_path / name, count)
    arguments = ("ask", file, "How many?", "--model", folder, "--max-new-tokens", "3", "--json", "--max-slices", "4")
    code, out, _ = run(*arguments)
    answer = json.loads(out)
    assert code == 0 and len(answer["num_views"]) == len(answer["grids"]) == count
    assert answer["pages"] == [f"{file}, page {number} of {count}" for number in range(1, count + 1)]
    assert answer["images"] == [str(file)]
    for option in ("--pages", "--page"):
        code, out, _ = run(*arguments, option, "3,1")
        assert code == 0 and json.loads(out)["pages"] == [answer["pages"][2], answer["pages"][0]]


def test_what_cannot_be_meant_is_refused_before_the_model_is_loaded(run, monkeypatch, tmp_path):
    monkeypatch.setattr("llava_uhd.loading.load", None)
    code, _, err = run("explain", "examples/receipt.png", "--save", tmp_path / "a.png", "--figure", "kernels",
                       "--point", "2", "0.5")  # fmt: skip
    assert code == 2 and "from 0 to 1, got 2 0.5" in err


def test_half_a_character_is_refused_and_a_home_folder_is_found(run, monkeypatch, tmp_path):
    code, _, err = run("ask", "examples/receipt.png", "Wie \udcff?", "--model", "tiny")
    assert code == 1 and "is no valid Unicode: half a character at 4" in err
    monkeypatch.setenv("HOME", str(tmp_path))
    pdf = write_pdf(tmp_path / "report.pdf", 2)
    for name in ("~/report.pdf", f"file://{pdf}"):
        code, out, err = run("explain", name, "--page", "2", "--model", "tiny")
        assert code == 0, err


def test_pages_beyond_the_context_are_refused_before_the_model_is_loaded(run, monkeypatch, tmp_path):
    def load(*_):
        raise RuntimeError("the model was loaded")

    pdf = write_pdf(tmp_path / "report.pdf", 5)
    with monkeypatch.context() as patched:
        patched.setattr("llava_uhd.loading.load", load)
        for verb, question, fitting in (("ask", ["What?"], 3), ("chat", [], 5)):  # `ask` leaves room for 512 tokens
            code, out, err = run(verb, pdf, *question, "--model", "tiny")
            assert (code, out) == (1, "") and "error: 5 images take 2365 tokens" in err and "2048" in err
            assert f"--max-slices {fitting} leaves room, or choose pages" in err
        code, _, err = run("ask", *[pdf] * 8, "What?", "--model", "tiny", "--max-slices", "1")
        assert code == 1 and "40 images take" in err and "no number of slices leaves room" in err
        assert err.count("small print") == 1 and "page 1 of 5 and 39 more: " in err
        # The advice is not sought among more numbers than there are slices.
        code, _, err = run("ask", "examples/receipt.png", "What?", "--model", "tiny", "--max-slices", "1024")
        assert code == 1 and "--max-slices" in err and "leaves room" in err
        assert run("ask", pdf, "What?", "--model", "tiny", "--max-slices", "1025")[0] == 2
    code, out, err = run("ask", pdf, "What?", "--model", "tiny", "--max-slices", "5", "--max-new-tokens", "1")
    assert code == 0, err


def test_explain_a_page(run, folder, tmp_path):
    file = write_tiff(tmp_path / "three.tif", 3)
    code, out, _ = run("explain", file, "--model", folder, "--page", "2", "--json")
    assert code == 0 and json.loads(out)["size"] == [496, 702]
    code, _, err = run("explain", file, "--model", folder)
    assert code == 1 and "three.tif has 3 pages" in err and "--page" in err


def test_a_wrong_path_is_reported_before_the_model_is_loaded(run, folder, monkeypatch):
    def load(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("llava_uhd.loading.load", load)
    for verb, *arguments in (["ask", "none.png", "q"], ["chat", "none.png"]):
        code, out, err = run(verb, *arguments, "--model", folder)
        assert (code, out) == (1, "") and "error: there is no file none.png" in err


def test_a_busy_port_is_reported_before_the_model_is_loaded(run, folder, monkeypatch):
    def load(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("llava_uhd.loading.load", load)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for verb in ("serve", "web"):
            code, out, err = run(verb, "--model", folder, "--port", port)
            assert (code, out) == (1, "") and f"error: cannot listen on 127.0.0.1 port {port}" in err
            assert "--port" in err and "Traceback" not in err


def test_an_image_from_stdin_or_from_a_pipe(run, folder, monkeypatch, tmp_path):
    content = (folder / "image.png").read_bytes()
    arguments = ("What?", "--model", folder, "--max-new-tokens", "3", "--json")
    expected = json.loads(run("ask", folder / "image.png", *arguments)[1])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    code, out, err = run("ask", "-", *arguments)
    assert code == 0, err
    assert json.loads(out)["answer"] == expected["answer"] and json.loads(out)["images"] == ["-"]
    code, _, err = run("ask", "-", *arguments)
    assert code == 1 and "error: stdin is empty" in err
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    writer.start()
    code, out, err = run("explain", tmp_path / "pipe", "--model", folder, "--json")
    writer.join()
    assert code == 0 and json.loads(out)["num_views"] == expected["num_views"][0], err


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        (("ask", "image.png", " "), 2, "the question is empty"),
        (("explain", "image.png", "--figure", "answer", "--question", " ", "--save", "a.png"), 2, "is empty"),
        (("probe", "activation", "image.png", " "), 2, "the question is empty"),
        (("ask", "What?", "image.png"), 2, "the question comes last"),
        (("ask", "image.png", "What?", "--model", "image.png"), 1, "image.png is a file: name the folder"),
        (("data", "check", "image.png"), 1, "image.png is not text: expected JSON"),
        (("data", "check", "."), 1, "there are no tars at ., and it is no Parquet file"),
    ],
)
def test_a_mistaken_file_or_question_is_named(run, folder, monkeypatch, arguments, code, said):
    monkeypatch.chdir(folder)
    model = () if "--model" in arguments or arguments[0] == "data" else ("--model", str(folder))
    found, out, err = run(*arguments, *model)
    assert (found, out) == (code, "") and said in " ".join(err.replace("│", " ").split()), err


def test_former_options_work_and_warn(run, folder):
    code, _, err = run("explain", "none.png", "--picture", "slices")  # former name
    assert code == 2 and "is now --figure\n" in err and "--figure slices needs a file" in err
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for verb in ("serve", "web"):
            code, _, err = run(verb, "--model", folder, "--port", listener.getsockname()[1], "--max-waiting", "3")
            assert code == 1 and "warning: --max-waiting is now --max-queue-size\n" in err
            assert "max-waiting" not in run(verb, "--help")[1]


def test_version(run):
    assert run("--version") == (0, f"llava-uhd {llava_uhd.__version__}\n", "")


def test_the_package_is_a_module_to_run():
    done = subprocess.run([sys.executable, "-m", "llava_uhd", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "Usage: llava-uhd" in done.stdout
    assert (Path(llava_uhd.__file__).parent / "py.typed").is_file()


def test_quiet_leaves_stderr_to_errors(folder):
    command = [sys.executable, "-m", "llava_uhd", "--quiet", "ask", str(folder / "image.png"), "What?"]
    options = ["--model", str(folder), "--max-new-tokens", "3"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.strip()
    command.remove("--quiet")
    quiet = {**os.environ, "LLAVA_UHD_QUIET": "1"}
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=quiet)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.strip()
    command.insert(3, "--quiet")
    done = subprocess.run([*command, "--model", "nowhere/at/all"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


def test_a_bug_is_not_shown_as_a_mistake_of_the_user(run, folder, monkeypatch):
    monkeypatch.setattr("llava_uhd.generation.prompt.build_prompt", lambda *_, **__: {}["inputs"])
    code, out, err = run("ask", folder / "image.png", "q", "--model", folder)
    assert (code, out) == (1, "") and "unexpected error: KeyError: 'inputs'" in err and "--debug" in err


def test_shell_completion_of_verbs_and_models(tmp_path):
    script = subprocess.run(
        [sys.executable, "-m", "llava_uhd", "--show-completion", "bash"],
        capture_output=True,
        text=True,
        # Without it Typer looks for a shell among the parent processes, and a service has none.
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )
    assert script.returncode == 0 and "_LLAVA_UHD_COMPLETE" in script.stdout
    for words, expected in [("llava-uhd expl", ["explain"]), ("llava-uhd ask --model ti", ["tiny"])]:
        environment = {
            **os.environ,
            "_LLAVA_UHD_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        command = [sys.executable, "-m", "llava_uhd"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.stdout.split() == expected, done.stderr


def test_results_are_utf8_whatever_the_code_page():
    script = "from llava_uhd.terminal import use_utf8\nuse_utf8()\nprint('\u20ac \U0001f9fe')"
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment)
    assert done.stdout.decode("utf-8").split() == ["\u20ac", "\U0001f9fe"], done.stderr


@pytest.mark.parametrize(
    ("model", "num_image_tokens", "unneeded"),
    [("small", 5 * 256, {"torch", "transformers"}), ("tiny", 7 * 64, {"torch", "transformers", "scipy"})],
)
def test_explain_needs_neither_torch_nor_transformers(model, num_image_tokens, unneeded):
    script = (
        f"import sys; sys.argv = ['llava-uhd', 'explain', 'examples/receipt.png', '--model', {model!r}, '--json']\n"
        "from llava_uhd.cli import main\n"
        f"try:\n    main()\nfinally:\n    print(sorted({unneeded!r} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    explained, imported = result.stdout.splitlines()
    assert result.returncode == 0 and imported == "[]"
    assert json.loads(explained)["num_image_tokens"] == num_image_tokens
