"""Images to try the page with: documents rendered on the spot, each with a question it answers."""

from pathlib import Path

from ..synthetic.documents import KINDS, make_document
from ..synthetic.render import render

SEED = 7_000_002


def write_examples(folder: Path) -> list[tuple[str, str]]:
    """One document of each kind as a PNG in the folder: (question, file)."""
    examples = []
    for kind in KINDS:
        document = make_document(SEED, 0, kind=kind)
        file = folder / f"{kind}.png"
        render(document.page).save(file)
        examples.append((document.questions[0].text, str(file)))
    return examples
