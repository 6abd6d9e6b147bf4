"""Every command of README and pages is valid, and is executed by a test or listed below with the reason.

Options and arguments of each `llava-uhd` line are parsed by the command line itself, so a renamed option fails here.
"""

import re
import shlex
from pathlib import Path

import pytest
import typer

from llava_uhd.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GPU = "needs GPUs or hours of training"
ECOSYSTEM = "executed by `make test-ecosystem`, in environments of its own"
SERVER = "runs until it is stopped; tests/serving starts the same verbs"
TOY = "parsed here; tests run the same verb on small inputs, the block itself takes longer"
NETWORK = "needs the network, weights or data that are not in the repository"
# The file that executes a block, or the reason why none does, by page and beginning of the block.
EXECUTED = {
    ("README.md", "$ make demo"): "tests/test_readme.py",
    ("README.md", "pip install -c constraints.txt -e .  "): "tests/test_readme.py",
    ("README.md", "make test"): ".ci/run",
    ("README.md", "python examples/finetune_own_data"): "tests/training/test_own_data.py",
    ("command-line.md", "llava-uhd ask report.pdf"): "tests/test_pages.py",
    ("how-it-works.md", "llava-uhd explain"): "Makefile",
    ("index.md", "pip install"): "tests/wheel.py",
    ("own-data.md", "python examples/finetune_own_data"): "tests/training/test_own_data.py",
    ("own-models.md", "python examples/own_encoder"): "tests/model/test_assembly.py",
    ("serving.md", "curl"): "tests/serving/test_docs.py",
}
REASONS = {
    ("README.md", "llava-uhd eval run synthdoc"): TOY,
    ("README.md", "pip install -c constraints.txt -e '.[serve"): SERVER,
    ("README.md", "llava-uhd convert"): NETWORK,
    ("README.md", "pip install -e '.[vllm]'"): ECOSYSTEM,
    ("README.md", "llava-uhd train plan"): GPU,
    ("ablation.md", "python -m experiments.ablation"): GPU,
    ("checkpoints.md", "llava-uhd convert"): NETWORK,
    ("command-line.md", "llava-uhd ask examples"): TOY,
    ("command-line.md", "pip install"): NETWORK,
    ("evaluation.md", "pip install"): NETWORK,
    ("evaluation.md", "llava-uhd eval score"): NETWORK,
    ("evaluation.md", "llava-uhd eval run my.jsonl --images photos --model MODEL"): TOY,
    ("evaluation.md", "llava-uhd ask examples"): TOY,
    ("evaluation.md", "llava-uhd eval run my.jsonl --images photos --model runs"): TOY,
    ("evaluation.md", "hf download"): NETWORK,
    ("evaluation.md", "python -m venv lmms"): ECOSYSTEM,
    ("evaluation.md", "git clone"): ECOSYSTEM,
    ("how-it-works.md", "llava-uhd probe"): TOY,
    ("limits.md", "llava-uhd serve"): SERVER,
    ("many-nodes.md", "llava-uhd train init"): GPU,
    ("many-nodes.md", "#!/bin/bash"): GPU,
    ("many-nodes.md", "srun"): GPU,
    ("own-models.md", "python examples/own_upsampler"): TOY,
    ("reproducing.md", "llava-uhd"): GPU,
    ("serving.md", "pip install"): SERVER,
    ("serving.md", "python benchmarks/serving_load"): SERVER,
    ("tiny.md", "llava-uhd"): TOY,
    ("tiny.md", "python -m experiments"): GPU,
    ("training.md", "pip install"): NETWORK,
    ("training.md", "llava-uhd data synthetic"): TOY,
    ("training.md", "xargs"): GPU,
    ("training.md", "llava-uhd data check"): NETWORK,
    ("training.md", "accelerate launch"): GPU,
    ("training.md", "llava-uhd train sweep"): GPU,
    ("training.md", "llava-uhd upsampler quality"): NETWORK,
    ("trl.md", ""): ECOSYSTEM,
    ("vllm.md", ""): ECOSYSTEM,
}


def blocks() -> list[tuple[str, str]]:
    """Return page and text of every block of commands."""
    found = []
    for page in PAGES:
        for text in re.findall(
            r"^```(?:sh|bash|console)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE
        ):
            found.append((page.name, text))
    return found


def commands() -> list[tuple[str, list[str]]]:
    """Return page and arguments of every `llava-uhd` command of the pages."""
    found = []
    for page, text in blocks():
        for line in text.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ").strip()
            if re.match(r"(llava-uhd|python -m llava_uhd) ", line):
                words = shlex.split(line, comments=True)
                if words[-1] in ("--version", "--install-completion"):  # they act while they are parsed
                    continue
                found.append((page, words[1:] if words[0] == "llava-uhd" else words[3:]))
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
    table = EXECUTED | REASONS
    unlisted, used = [], set()
    for page, text in blocks():
        keys = [key for key in table if key[0] == page and text.startswith(key[1])]
        used.update(keys)
        if not keys:
            unlisted.append((page, text.splitlines()[0]))
    assert not unlisted, "list these blocks in EXECUTED or REASONS"
    assert used == set(table), "no block begins so"
    assert all((ROOT / file).is_file() for file in EXECUTED.values())
