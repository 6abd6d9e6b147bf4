"""`llava-uhd chat`: a conversation in the terminal, or through a pipe.

On a terminal answers are rendered as Markdown while they come; through a pipe stdout holds the answers alone, a line
read is a question or a command, and a failed one makes the exit code 1 at the end.
"""

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

from ..answering import Message
from ..model.image_processing_llava_uhd import decode_image
from .engine import Engine
from .generation import Sampling

HELP = """\
/image FILE...  add images to the next question
/slices [N]     cut images added from now on into at most N slices (auto: as trained); alone: show how they are cut
/save FILE      write the conversation: as JSON, or as Markdown if the file ends in .md
/clear          forget the conversation
/help           show this
/exit           end (as does the end of input)"""


class Chat:
    """A conversation: what was said, the images of the next question, the settings."""

    def __init__(self, engine: Engine, sampling: Sampling, max_slices: int | None, console: Console):
        self.engine, self.sampling, self.max_slices, self.console = engine, sampling, max_slices, console
        self.messages: list[Message] = []
        self.pending: list[Message] = []
        self.failures = 0

    def run(self, lines: Iterable[str]) -> None:
        """Take questions and commands, one a line, until they end."""
        for line in lines:
            line = line.strip()
            if line == "/exit":
                return
            try:
                if line.startswith("/"):
                    self.command(*line.partition(" ")[::2])
                elif line:
                    self.ask(line)
            except (ValueError, OSError) as error:
                self.failures += 1
                self.say(f"error: {error}")

    def command(self, name: str, rest: str) -> None:
        """Raises: ValueError: there is no such command, or not with such an argument."""
        commands: dict[str, Callable[[str], None]] = {
            "/image": self.add_images,
            "/slices": self.set_slices,
            "/save": self.save,
            "/clear": lambda _: self.clear(),
            "/help": lambda _: self.say(HELP),
        }
        if name not in commands:
            raise ValueError(f"there is no command {name}; there is {', '.join([*commands, '/exit'])}")
        commands[name](rest.strip())

    def add_images(self, files: str) -> None:
        names = shlex.split(files)
        if not names:
            raise ValueError("name one or more files: /image receipt.png")
        parts = []
        for name in names:
            path = Path(name).expanduser()
            decode_image(path)  # told now rather than with the next question
            parts.append({"type": "image", "image": path, "max_slices": self.max_slices})
        self.pending += parts
        for part in parts:
            self.say(self.describe(part))

    def set_slices(self, number: str) -> None:
        if number == "auto":
            self.max_slices = None
        elif number:
            if not number.isdigit() or int(number) < 1:
                raise ValueError(f"/slices takes a number of at least 1, or auto, got {number!r}")
            self.max_slices = int(number)
        else:
            images = [part for part in [*self._parts(), *self.pending] if part["type"] == "image"]
            self.say("\n".join(map(self.describe, images)) or "no images yet")

    def describe(self, part: Message) -> str:
        """How an image is seen, in a line."""
        width, height = decode_image(part["image"]).size
        options = {"max_slices": part["max_slices"]}
        plan = self.engine.processor.image_processor.plan(width, height, **options)
        layout = self.engine.processor.image_layout(width, height, **options)
        cut = f"{plan.grid[0]} x {plan.grid[1]} slices and the overview" if plan.grid else "the overview alone"
        return f"{part['image']}: {width} x {height} pixels, {cut}, {layout.num_image_tokens} tokens"

    def ask(self, question: str) -> None:
        """Answer a question; one that fails or is interrupted leaves no trace in the conversation."""
        asked = {"role": "user", "content": [*self.pending, {"type": "text", "text": question}]}
        generation = self.engine.submit([*self.messages, asked], self.sampling)
        try:
            answer = self.show(generation.stream())
        except KeyboardInterrupt:
            generation.cancel()
            self.say("interrupted")
            return
        self.messages += [asked, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        self.pending = []

    def show(self, pieces: Iterator[str]) -> str:
        answer = ""
        if not self.console.is_terminal:
            for piece in pieces:
                answer += piece
                self.console.file.write(piece)
                self.console.file.flush()
            self.console.file.write("\n")
            return answer
        with Live(console=self.console, vertical_overflow="visible", auto_refresh=False) as live:
            for piece in pieces:
                answer += piece
                live.update(Markdown(answer), refresh=True)
        return answer

    def clear(self) -> None:
        self.messages, self.pending = [], []

    def save(self, file: str) -> None:
        if not file:
            raise ValueError("name a file: /save chat.json")
        path = Path(file).expanduser()
        as_markdown = path.suffix == ".md"
        text = self.markdown() if as_markdown else json.dumps(self.transcript(), ensure_ascii=False, indent=2) + "\n"
        path.write_text(text, encoding="utf-8")
        self.say(f"{len(self.messages)} messages written to {path}")

    def transcript(self) -> list[dict[str, Any]]:
        """The conversation ready for JSON, images by their paths."""
        return [
            {
                "role": message["role"],
                "content": [
                    {"type": "image", "path": str(part["image"])} if part["type"] == "image" else part
                    for part in message["content"]
                ],
            }
            for message in self.messages
        ]

    def markdown(self) -> str:
        blocks = []
        for message in self.messages:
            parts = [
                f"![]({part['image']})" if part["type"] == "image" else part["text"] for part in message["content"]
            ]
            blocks.append("\n\n".join([f"**{message['role']}**", *parts]))
        return "\n\n".join(blocks) + "\n"

    def say(self, text: str) -> None:
        """Tell the person something that is no answer: on stderr."""
        print(text, file=sys.stderr)

    def _parts(self) -> list[Message]:
        return [part for message in self.messages for part in message["content"]]


def input_lines(prompt: str) -> Iterator[str]:
    """Lines of stdin; on a terminal with a prompt, and with line editing where Python has it."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    try:
        import readline  # noqa: F401  (its import is what gives `input` editing and history)
    except ImportError:
        pass
    while True:
        try:
            yield input(prompt)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:  # an abandoned line, not the end
            print()
