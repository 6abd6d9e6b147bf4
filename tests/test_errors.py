"""A user's mistake and a bug are reported differently."""

import subprocess
import sys

import numpy as np
import pytest

from llava_uhd.errors import InputError, LlavaUhdError, is_user_error, optional_dependencies, report
from llava_uhd.model.slicing import plan_slices


def caught(action) -> Exception:
    with pytest.raises(Exception) as info:
        action()
    return info.value


def chained() -> None:
    try:
        plan_slices(0, 1)
    except ValueError as error:
        raise RuntimeError("in between") from error


def failing() -> None:
    raise InputError("x.pdf is encrypted\nand more")


@pytest.mark.parametrize(
    "action, line",
    [
        (failing, "error: x.pdf is encrypted"),
        (lambda: plan_slices(0, 1), "error: an image needs at least 1 x 1 pixels, got 0 x 1"),
        (chained, "error: in between"),
        (lambda: open("/nowhere/at/all"), "error: /nowhere/at/all: No such file or directory"),
    ],
)
def test_mistakes_of_the_user_are_one_line(action, line):
    assert report(caught(action)) == line


@pytest.mark.parametrize(
    "action, named",
    [
        (lambda: np.zeros(3).reshape(2, 2), "ValueError: cannot reshape"),
        (lambda: int("seven"), "ValueError: invalid literal"),
        (lambda: {}["key"], "KeyError: 'key'"),
        (lambda: [].index(3), "ValueError: "),
        (lambda: plan_slices("a", 1), "TypeError: "),
    ],
)
def test_bugs_are_reported_as_unexpected(action, named):
    error = caught(action)
    line = report(error)
    assert not is_user_error(error) and line.startswith(f"unexpected error: {named}") and "--debug" in line


def test_own_errors_are_what_callers_expect():
    assert issubclass(InputError, ValueError) and issubclass(InputError, LlavaUhdError)


@pytest.mark.parametrize(
    "module, extra", [("matplotlib", "plot"), ("yaml", "train"), ("gradio", "web"), ("google", "convert")]
)
def test_a_missing_module_names_its_extra(module, extra):
    assert extra in optional_dependencies()
    line = report(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert f"pip install 'llava-uhd[{extra}]'" in line and line.startswith("error: ")


def test_the_command_line_names_the_extra(tmp_path):
    """`explain --save` where matplotlib is not installed."""
    script = (
        "import sys\nsys.modules['matplotlib'] = None\n"
        f"sys.argv = ['llava-uhd', 'explain', 'examples/receipt.png', '--save', {str(tmp_path / 'x.png')!r}]\n"
        "from llava_uhd.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and "llava-uhd[plot]" in done.stderr
    assert "Traceback" not in done.stderr
