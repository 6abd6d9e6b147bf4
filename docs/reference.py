"""Pages of the site that are generated from the code: the command line and the shipped recipes.

A hook of MkDocs (`hooks` in mkdocs.yml), so that the pages are never older than the code.
"""

import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

from llava_uhd.cli import PROGRAM, app

RECIPES = Path(__file__).parents[1] / "llava_uhd" / "training" / "recipes"


def command_line_page() -> str:
    """Return the help of every verb as Markdown."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name=PROGRAM)
    text = get_docs_for_click(obj=command, ctx=context, name=PROGRAM, title="Command line reference")
    return re.sub(r"&#x27;", "'", text)


def recipes_page() -> str:
    """Return every shipped recipe with its comment and contents as Markdown."""
    sections = ["# Recipes", "Run one by `llava-uhd train run NAME`; `llava-uhd train plan NAME` prints its cost."]
    for path in sorted(RECIPES.glob("*.yaml")):
        sections += [f"## {path.stem}", f"```yaml\n{path.read_text(encoding='utf-8').strip()}\n```"]
    return "\n\n".join(sections) + "\n"


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages to the files of the site."""
    for name, page in (("api/cli.md", command_line_page), ("api/recipes.md", recipes_page)):
        files.append(File.generated(config, name, content=page()))
    return files
