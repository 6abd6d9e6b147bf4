"""Execution of one page's blocks in a folder of toys."""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from urllib.request import urlopen

import yaml

from tests.guides.blocks import Block
from tests.guides.rules import NOT_HERE, smaller
from tests.guides.toys import write_original_tower
from tests.reproducing import SMALL_STAGE0, working_directory

TOOL = ("llava-uhd ", "python -m llava_uhd ")
QUESTION, ANSWER = 'ask examples/receipt.png "What is the total?"', "$42.69\n"
PRELUDES = {
    "GuidedFilter)": "from examples.own_upsampler import GuidedFilter\n",
    "config = LlavaUhdConfig": "from llava_uhd import LlavaUhdConfig\n",
    "AutoModelForImageTextToText.from": "from transformers import AutoModelForImageTextToText\n",
}


class Guide:
    """Execution of a page.

    Args:
        name: name of the page.
        folder: folder with the toys, in which commands run.
    """

    def __init__(self, name: str, folder: Path):
        self.name = name
        self.folder = folder
        self.served: list[Block] = []
        tools = folder / "tools"
        tools.mkdir()
        (tools / "sbatch").write_text('#!/bin/bash\nexec bash -n "$@"\n')
        (tools / "sbatch").chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
        }
        (folder / "home").mkdir()

    def execute(self, blocks: list[Block]) -> int:
        """Execute blocks in order; return the number of commands.

        Raises:
            Exception: a command fails, or prints something else than the page shows.
        """
        self.served = [block for block in blocks if "127.0.0.1:8000/v1/" in block.text or "OpenAI(" in block.text]
        count = 0
        with working_directory(self.folder):
            for block in blocks:
                if block in self.served:
                    continue
                if not block.is_shell:
                    self.check(block)
                    continue
                for command in block.commands:
                    if any(command.startswith(beginning) for beginning in NOT_HERE):
                        continue
                    print(f"$ {command}", flush=True)
                    self.prepare(command)
                    self.run(smaller(command))
                    count += 1
        return count

    def prepare(self, command: str) -> None:
        """Write what a command needs from commands that the page leaves to the reader."""
        if command.startswith("llava-uhd convert LLaVA"):
            write_original_tower(self.folder)
        if "train run vicuna-7b-align" in command and not Path("runs/clip-l-upsampler").exists():
            self.call(["train", "run", "clip-l-upsampler", *SMALL_STAGE0])
        if command.startswith("llava-uhd train run clip-l-upsampler"):
            for name in ("clip-l-upsampler", "vicuna-7b-align"):  # of an earlier block
                shutil.rmtree(f"runs/{name}", ignore_errors=True)
        if self.name == "evaluation.md" and command.startswith("llava-uhd eval score"):
            shutil.copy("results/docvqa_val/predictions.jsonl", "answers.jsonl")
            for name in ("a", "b"):
                shutil.copytree("results/docvqa_val", f"results/{name}/docvqa_val")

    def run(self, command: str) -> None:
        """Run a command, in this process where that is the command line and no shell is needed."""
        verb = next((command.removeprefix(tool) for tool in TOOL if command.startswith(tool)), None)
        if verb is None or re.search(r"&&|--install-completion|--version", command):
            self.shell(command)
        elif verb.startswith(("serve", "web")):
            self.serve(shlex.split(verb, comments=True))
        else:
            arguments = shlex.split(verb, comments=True)
            printed, _ = self.call(arguments, "What is the total?\n/exit\n")
            if arguments == shlex.split(QUESTION) or verb.startswith("chat examples/receipt.png"):
                expect(printed, ANSWER)
            if "--json" in arguments:
                json.loads(printed)

    def call(self, arguments: list[str], lines: str = "") -> tuple[str, str]:
        """Run a verb in this process; return stdout and stderr.

        Raises:
            ValueError: its exit code is not 0.
        """
        from llava_uhd.cli import app

        out, err, stdin = io.StringIO(), io.StringIO(), sys.stdin
        sys.stdin = io.StringIO(lines)
        try:
            with redirect_stdout(out), redirect_stderr(err):
                code = app(args=arguments, standalone_mode=False)
        finally:
            sys.stdin = stdin
        if isinstance(code, int) and code != 0:
            raise ValueError(f"exit code {code}: {out.getvalue()[-500:]} {err.getvalue()[-500:]}")
        return out.getvalue(), err.getvalue()

    def shell(self, text: str) -> str:
        """Run a text with bash; return its stdout.

        Raises:
            ValueError: its exit status is not 0.
        """
        # Without the last line bash replaces itself by the command, which then finds no shell above itself.
        command = ["bash", "-euo", "pipefail", "-c", f"{text}\n:"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=900)
        if done.returncode:
            raise ValueError(f"exit status {done.returncode}: {done.stdout[-1500:]} {done.stderr[-3000:]}")
        return done.stdout

    def serve(self, arguments: list[str]) -> None:
        """Start a server, ask it as the page does, and stop it."""
        with started(arguments, self.environment) as url:
            if arguments[0] == "web":
                assert "LLaVA-UHD" in urlopen(url).read().decode()
                return
            assert json.load(urlopen(url.removesuffix("/v1") + "/health"))["status"] == "ok"
            for block in self.served:
                text = block.text.replace("http://127.0.0.1:8000/v1", url)
                if block.is_shell:
                    printed = json.loads(self.shell(text))["choices"][0]["message"]["content"]
                    expect(printed + "\n", ANSWER)
                else:
                    expect(python(text), ANSWER)

    def check(self, block: Block) -> None:
        """Execute or read a block that is no shell command."""
        if block.language == "python":
            if "from_parts" in block.text:
                from examples.own_encoder_and_llm import make_small_parts

                vision_tower, language_model = make_small_parts(self.folder / "small-parts")
                for part, name in ((vision_tower, "vision_tower"), (language_model, "language_model")):
                    shutil.copytree(part, re.search(rf'{name}="(.*?)"', block.text)[1])  # type: ignore[index]
            prelude = "".join(text for beginning, text in PRELUDES.items() if beginning in block.text)
            python(prelude + block.text)
        elif block.language == "yaml":
            from llava_uhd.training.recipe import load_recipe

            text = block.text if "base:" in block.text else f"base: vicuna-7b-instruct\n{block.text}"
            Path("shown.yaml").write_text(text)
            paths = [source.path for source in load_recipe("shown.yaml").data.train]  # type: ignore[union-attr]
            assert paths == [source["path"] for source in yaml.safe_load(block.text)["data"]["train"]]
        elif block.language == "toml":
            from llava_uhd.model.upsampler_registry import ENTRY_POINTS

            assert ENTRY_POINTS in tomllib.loads(block.text)["project"]["entry-points"]
        elif block.language == "json":
            assert isinstance(json.loads(block.text), dict)
        elif "small print will not be legible" in block.text:
            _, said = self.call(["explain", "scan.png"])
            expect(said, block.text)


def python(code: str) -> str:
    """Execute code as a program of its own would; return its stdout."""
    with redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "<block>", "exec"), {"__name__": "__main__"})
    return out.getvalue()


def expect(printed: str, shown: str) -> None:
    """Raise ValueError if something else is printed than shown."""
    if printed.rstrip("\n") != shown.rstrip("\n"):
        raise ValueError(f"the page shows {shown!r}, the command prints {printed!r}")


@contextlib.contextmanager
def started(arguments: list[str], environment: dict[str, str]) -> Iterator[str]:
    """Start `serve` or `web` at a free port, yield its URL, and stop it by SIGINT."""
    command = [sys.executable, "-m", "llava_uhd", *arguments, "--port", "0", "--json"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"]
        process.send_signal(signal.SIGINT)
        if code := process.wait(60):
            raise ValueError(f"{shlex.join(arguments)} ends with exit code {code}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
