"""Fenced blocks of README and guides."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block: name of its page, language and text."""

    page: str
    language: str
    text: str

    @property
    def is_shell(self) -> bool:
        return self.language in ("sh", "bash", "console")

    @property
    def commands(self) -> list[str]:
        """Commands of a shell block: continuation lines joined, prompts removed."""
        if "<<" in self.text:
            return [self.text]
        lines = re.sub(r" *\\\n *", " ", self.text).splitlines()
        return [line.removeprefix("$ ").strip() for line in lines if line.strip()]


def read_blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [Block(page.name, language, text) for language, text in found]
