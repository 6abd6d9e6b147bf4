"""The README's own commands and code, run as they stand."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def run(command: list[str]) -> str:
    """Run a command and return what it prints, remarks on the standard error included."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout
    return result.stdout.strip()


def commands(text: str) -> list[str]:
    """The `llava-uhd` lines of a block."""
    return [line.removeprefix("$ ") for line in text.splitlines() if line.removeprefix("$ ").startswith("llava-uhd")]


def test_first_command_shows_what_it_prints():
    """`make demo` is the first command, within the first 35 lines, and its shown output is its output."""
    assert "make demo" in "\n".join(README.splitlines()[:35])
    (shown,) = blocks("console")
    (command,) = commands(shown)
    assert command in (ROOT / "Makefile").read_text()
    tool = shutil.which("llava-uhd", path=Path(sys.executable).parent)
    assert tool is not None
    arguments = re.findall(r'"[^"]*"|\S+', command)[1:]
    _, _, *printed = shown.strip().splitlines()
    found = run([tool, *(argument.strip('"') for argument in arguments)]).splitlines()[-len(printed) :]
    assert found == printed


@pytest.mark.parametrize("command", [line for block in blocks("bash") for line in commands(block)])
def test_commands(command):
    tool = shutil.which("llava-uhd", path=Path(sys.executable).parent)
    assert tool is not None
    assert run([tool, *(argument.strip('"') for argument in re.findall(r'"[^"]*"|\S+', command)[1:])])


@pytest.mark.parametrize("code", blocks("python"))
def test_python(code):
    assert run([sys.executable, "-c", code])


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
