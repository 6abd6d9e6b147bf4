"""`llava-uhd chat`: a conversation in the terminal, or through a pipe.

On a terminal answers are rendered as Markdown while they come; through a pipe stdout holds the answers alone, a line
read is a question or a command, and a failed one makes the exit code 1 at the end.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

from ..errors import InputError
from ..model.messages import Message
from ..pages import MAX_PAGES, Page, open_all
from ..planning import ImagePlanner
from .engine import Engine
from .generation import Generation, Sampling

HELP = """\
/image FILE...  add images, or the pages of PDF and TIFF files, to the next question
/slices [N]     cut images added from now on into at most N slices (auto: as trained); alone: show how they are cut
/drop           leave out the images added for the next question
/save FILE      write the conversation: as JSON, or as Markdown if the file ends in .md
/clear          forget the conversation
/help           show this
/exit           end (as do exit, quit and the end of input)"""
END = ("/exit", "/quit", "exit", "quit")


class Chat:
    """A conversation: what was said, the images of the next question, the settings."""

    def __init__(
        self,
        engine: Engine,
        sampling: Sampling,
        max_slices: int | None,
        console: Console,
        max_pages: int = MAX_PAGES,
    ):
        self.engine, self.sampling, self.max_slices, self.console = engine, sampling, max_slices, console
        self.max_pages = max_pages
        self.planner = ImagePlanner.from_processor(engine.processor)
        self.messages: list[Message] = []
        self.pending: list[Message] = []
        self.failures = 0

    def run(self, lines: Iterable[str]) -> None:
        """Take questions and commands, one a line, until they end."""
        for line in lines:
            line = line.strip()
            if line.lower() in END:
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
        }
        alone: dict[str, Callable[[], None]] = {
            "/drop": self.pending.clear,
            "/clear": self.clear,
            "/help": lambda: self.say(HELP),
        }
        rest = rest.strip()
        if name in commands:
            commands[name](rest)
        elif name not in alone:
            raise ValueError(f"there is no command {name}; there is {', '.join([*commands, *alone, '/exit'])}")
        elif rest:
            raise ValueError(f"{name} is a command without argument, got {rest!r}")
        else:
            alone[name]()

    def add_images(self, files: str) -> None:
        names = [os.path.expanduser(name) for name in split_paths(files)]
        if not names:
            raise ValueError("name one or more files: /image receipt.png")
        num_pixels = self.planner.num_pixels(self.max_slices)
        self.add_pages(open_all(names, max_pages=self.max_pages, num_pixels=num_pixels))

    def add_pages(self, pages: Sequence[Page]) -> None:
        """Add opened pages to the next question."""
        parts = [
            {"type": "image", "image": page.image, "path": page.name, "max_slices": self.max_slices} for page in pages
        ]
        descriptions = [self.describe(part) for part in parts]  # raises for an image that cannot be cut
        self.pending += parts
        for description in descriptions:
            self.say(description)

    def set_slices(self, number: str) -> None:
        if number == "auto":
            self.max_slices = None
        elif number:
            if not number.isdecimal() or int(number) < 1:
                raise ValueError(f"/slices takes a number of at least 1, or auto, got {number!r}")
            self.max_slices = int(number)
        else:
            images = [part for part in [*self._parts(), *self.pending] if part["type"] == "image"]
            self.say("\n".join(map(self.describe, images)) or "no images yet")

    def describe(self, part: Message) -> str:
        """Return how an image is seen, in a line."""
        width, height = part["image"].size
        fitted = self.planner.fit_letters(part["image"], part["max_slices"]).size
        plan = self.planner.plan(*fitted, part["max_slices"])
        layout = self.planner.image_layout(*fitted, part["max_slices"])
        cut = f"{plan.grid[0]} x {plan.grid[1]} slices and the overview" if plan.grid else "the overview alone"
        return f"{part['path']}: {width} x {height} pixels, {cut}, {layout.num_image_tokens} tokens"

    def ask(self, question: str) -> None:
        """Answer a question; one that fails or is interrupted leaves no trace in the conversation."""
        asked = {"role": "user", "content": [*self.pending, {"type": "text", "text": question}]}
        generation = self.engine.submit([*self.messages, asked], self.sampling)
        try:
            answer = self.show(self._pieces(generation))
        except KeyboardInterrupt:
            generation.cancel()
            self.say("interrupted")
            return
        self.messages += [asked, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        self.pending = []

    def _pieces(self, generation: Generation) -> Iterator[str]:
        """Yield the text of an answer; if it is a guess, say so at the end."""
        for event in generation.events():
            if isinstance(event, str):
                yield event
            elif (guess := event.confidence(self.engine.calibration).note) is not None:
                self.say(f"({guess})")

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
        path = Path(os.path.expanduser(file))
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
                    {"type": "image", "path": part["path"]} if part["type"] == "image" else part
                    for part in message["content"]
                ],
            }
            for message in self.messages
        ]

    def markdown(self) -> str:
        blocks = []
        for message in self.messages:
            parts = [
                f"![]({part['path']})" if part["type"] == "image" else part["text"] for part in message["content"]
            ]
            blocks.append("\n\n".join([f"**{message['role']}**", *parts]))
        return "\n\n".join(blocks) + "\n"

    def say(self, text: str) -> None:
        """Print something that is no answer on stderr."""
        print(text, file=sys.stderr)

    def _parts(self) -> list[Message]:
        return [part for message in self.messages for part in message["content"]]


def split_paths(files: str, windows: bool = os.name == "nt") -> list[str]:
    """Split a line into file names, quoted where they hold spaces; on Windows a backslash is part of a path."""
    if not windows:
        return shlex.split(files)
    return [name.strip("\"'") for name in shlex.split(files, posix=False)]


def input_lines(prompt: str) -> Iterator[str]:
    """Lines of stdin; on a terminal with a prompt, and with line editing where Python has it."""
    if not sys.stdin.isatty():
        try:
            yield from sys.stdin
        except UnicodeDecodeError as error:
            raise InputError(f"stdin is not text in UTF-8: {error}") from error
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
