"""Every command of README and pages is valid, and is executed by `tests.guides` or by the file that its table names.

Options and arguments of each `llava-uhd` line are parsed by the command line itself, so a renamed option fails here.
"""

import re
import shlex
import subprocess
import sys

import pytest
import typer

from llava_uhd.cli import app
from tests.guides.blocks import PAGES, ROOT, read_blocks
from tests.guides.rules import ELSEWHERE, NOT_HERE, RULES, elsewhere, smaller

BLOCKS = [block for page in PAGES for block in read_blocks(page)]


def commands() -> list[tuple[str, list[str]]]:
    """Return page and arguments of every `llava-uhd` command of the pages."""
    found = []
    for page in PAGES:
        inline = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        lines = [" ".join(text.split()) for text in re.findall(r"`(llava-uhd [^`]* [^`]+)`", inline)]
        lines = [line for line in lines if not line.split()[-1].startswith("-")]  # names an option
        lines += [line for block in read_blocks(page) if block.is_shell for line in block.commands]
        for line in lines:
            if re.match(r"(llava-uhd|python -m llava_uhd) ", line) and "<<" not in line:
                words = shlex.split(line, comments=True)
                if words[-1] in ("--version", "--install-completion"):  # they act while they are parsed
                    continue
                found.append((page.name, words[1:] if words[0] == "llava-uhd" else words[3:]))
    return found


def parse(arguments: list[str]) -> None:
    """Parse a command line without running it."""
    command = typer.main.get_command(app)
    rest, context = arguments, None
    while True:
        context = command.make_context(command.name or "llava-uhd", list(rest), parent=context)
        if not hasattr(command, "resolve_command"):
            return
        rest = [*context._protected_args, *context.args]
        _, command, rest = command.resolve_command(context, rest)


@pytest.mark.parametrize(("page", "arguments"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_commands_of_the_pages_parse(page, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse(arguments)


def test_a_wrong_option_is_noticed():
    with pytest.raises(Exception, match="No such option"):
        parse(["ask", "image.png", "question", "--max-slice-number", "3"])


def test_every_block_is_executed_or_has_a_reason():
    used = {key for block in BLOCKS for key in ELSEWHERE if key[0] == block.page and block.text.startswith(key[1])}
    assert used == set(ELSEWHERE), "no block begins so"
    for block in BLOCKS:
        where = elsewhere(block)
        if where is not None and not where.startswith("needs "):
            assert (ROOT / where).is_file()
    commands_here = [
        line for block in BLOCKS if block.is_shell and elsewhere(block) is None for line in block.commands
    ]
    executed = [line for line in commands_here if not line.startswith(tuple(NOT_HERE))]
    assert len(executed) >= 90, "a block that was executed is so no more"
    for beginning in [*NOT_HERE, *(rule[0] for rule in RULES)]:
        lines = [line for block in BLOCKS if block.is_shell for line in block.commands]
        assert any(line.startswith(beginning) for line in lines), f"no command begins with {beginning!r}"


def test_the_readme_shows_commands_of_the_guide_to_own_data():
    def lines(page: str) -> list[str]:
        text = "\n".join(line for block in BLOCKS if block.page == page and block.is_shell for line in block.commands)
        found = [line for line in text.splitlines() if re.search("own[-_]data", line)]
        return [shlex.join(shlex.split(line, comments=True)) for line in found]

    assert len(lines("README.md")) == 4 and set(lines("README.md")) <= set(lines("own-data.md"))


def test_a_command_keeps_its_words_at_toy_size():
    for block in BLOCKS:
        if block.is_shell and elsewhere(block) is None:
            for command in block.commands:
                if "<<" not in command and not command.startswith(tuple(NOT_HERE)) and smaller(command) != command:
                    words = shlex.split(smaller(command))
                    kept = [word for word in shlex.split(command, comments=True) if word in words]
                    assert len(kept) >= 0.7 * len(shlex.split(command, comments=True)), command


@pytest.mark.slow
def test_every_command_of_the_guides_runs():
    done = subprocess.run([sys.executable, "-m", "tests.guides"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"^[0-9]+ commands$", done.stdout, flags=re.MULTILINE), (
        done.stdout[-3000:] + done.stderr[-3000:]
    )
