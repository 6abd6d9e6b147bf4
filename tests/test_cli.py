"""The command line as a user meets it: what is printed where, and the exit codes."""

import json
import subprocess
import sys

import pytest

from llava_uhd import LlavaUhdProcessor, cli
from tests.conftest import build_model, picture, small_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory, qwen_tokenizer):
    """A model folder with random weights, and a picture beside it."""
    path = tmp_path_factory.mktemp("model")
    config = small_config()
    build_model(config).save_pretrained(path)
    LlavaUhdProcessor.from_config(config, qwen_tokenizer, "qwen").save_pretrained(path)
    picture(300, 200).save(path / "picture.png")
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command in this process: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llava-uhd", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return run


def test_ask_streams_the_answer_it_returns_as_json(run, folder):
    arguments = ("ask", folder / "picture.png", "What is this?", "--model", folder, "--max-new-tokens", "6")
    code, streamed, _ = run(*arguments)
    assert code == 0
    code, out, _ = run(*arguments, "--json")
    answer = json.loads(out)
    assert code == 0 and answer["answer"] == streamed.strip()
    assert answer["grids"] == [[3, 2]] and answer["num_views"] == [7] and answer["num_image_tokens"] == 63
    code, out, _ = run(*arguments, "--json", "--max-slices", "1")
    assert code == 0 and json.loads(out)["num_image_tokens"] == 9 and json.loads(out)["grids"] == [None]


def test_ask_about_two_images(run, folder):
    image = folder / "picture.png"
    code, out, _ = run("ask", image, image, "Same?", "--model", folder, "--max-new-tokens", "2", "--json")
    assert code == 0 and json.loads(out)["num_image_tokens"] == 126


def test_explain(run, folder, tmp_path):
    code, out, _ = run("explain", folder / "picture.png", "--model", folder, "--json", "--save", tmp_path / "fig.png")
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
    windows = ("--picture", "windows", "--save", tmp_path / "windows.png")
    assert run("explain", folder / "picture.png", "--model", folder, *windows)[0] == 0
    assert (tmp_path / "windows.png").read_bytes() != (tmp_path / "fig.png").read_bytes()
    selfie = ("--picture", "selfie", "--save", tmp_path / "selfie.png")
    code, _, err = run("explain", folder / "picture.png", "--model", folder, *selfie)
    assert code == 1 and "there is no picture 'selfie'" in err
    code, out, _ = run("explain", folder / "picture.png", "--model", folder)
    assert code == 0 and "3 x 2" in out


def test_failures_are_one_line_and_exit_1(run, folder, tmp_path):
    image = folder / "picture.png"
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder").mkdir()
    for arguments, said in [
        ((tmp_path / "none.png", "q", "--model", folder), "none.png"),
        ((tmp_path / "empty.png", "q", "--model", folder), "empty.png"),
        ((tmp_path / "cut.png", "q", "--model", folder), "cut.png"),
        ((tmp_path / "text.png", "q", "--model", folder), "text.png"),
        ((image, "q", "--model", tmp_path / "nowhere"), "nowhere"),
        ((image, "q", "--model", tmp_path / "folder"), "config.json"),
        ((image, "q", "--model", folder, "--dtype", "int3"), "int3"),
        ((image, "q", "--model", folder, "--device", "toaster"), "toaster"),
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
        ["ask", folder / "picture.png", "q", "--max-slices", "0"],
        ["ask", folder / "picture.png", "q", "--max-new-tokens", "0"],
        ["explain"],
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
