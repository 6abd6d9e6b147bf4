"""Example images of the web page: rendered documents, each with a question."""

from pathlib import Path

from ..synthetic.documents import KINDS, make_document
from ..synthetic.render import render

SEED = 7_000_002


def write_examples(folder: Path) -> list[tuple[str, str]]:
    """Write one document of each kind as PNG to a folder; return (question, file) of each."""
    examples = []
    for kind in KINDS:
        document = make_document(SEED, 0, kind=kind)
        file = folder / f"{kind}.png"
        render(document.page).save(file)
        examples.append((document.questions[0].text, str(file)))
    return examples
