"""Documents by seed and index, and the held-out set.

A document is a pure function of (seed, index): the same on every machine, in any order.
"""

import random
from dataclasses import dataclass

from .canvas import VIEW_SIZE, Canvas, Question
from .charts import lay_out_chart
from .forms import lay_out_form
from .page import Page
from .receipts import lay_out_receipt
from .scribble import lay_out_scribble
from .tables import lay_out_table

LAYOUTS = {"receipt": lay_out_receipt, "form": lay_out_form, "table": lay_out_table, "chart": lay_out_chart}
KINDS = tuple(LAYOUTS)
# Width over height of a document, by its number of slices, before it varies by `SPREAD`: that of a grid of square
# slices, such as 2 x 3 for a sheet of A4.
ASPECTS = {1: (1.0,), 2: (0.5, 2.0), 3: (1 / 3, 3.0), 4: (1.0,), 5: (2 / 3, 1.5), 6: (2 / 3, 1.5)}
STRIP_ASPECT = 1 / 6
SPREAD = 0.1
SCALES = (1.5, 3.5)
HELD_OUT_SEED = 7_000_001


@dataclass(frozen=True)
class Document:
    """Page with its questions and answers.

    Attributes:
        hints: questions for training alone, intermediate steps of other questions.
    """

    kind: str
    page: Page
    questions: tuple[Question, ...]
    hints: tuple[Question, ...] = ()


def make_document(
    seed: int | str,
    index: int,
    *,
    kind: str | None = None,
    num_slices: int | None = None,
    scales: tuple[float, float] = SCALES,
) -> Document:
    """Return the document of a seed and an index.

    Args:
        seed: seed of the series of documents.
        index: index in the series.
        kind: `receipt`, `form`, `table` or `chart`; None for a random one.
        num_slices: approximate number of slices of 112 x 112 pixels, 1 (a single view) to 6; None for a random
            number, mostly 6 as for every large image.
        scales: range of a six-slice document's side length over that of its slices together.
    """
    rng = random.Random(f"{seed}:{index}")
    kind = kind or rng.choice(KINDS)
    if num_slices is None:
        num_slices = 6 if rng.random() < 0.88 else rng.randint(1, 5)
    while True:
        canvas = Canvas(rng, _page_size(rng, kind, num_slices, scales))
        LAYOUTS[kind](canvas)
        if canvas.questions and _holds_its_text(canvas.page):
            break
    _wear(rng, canvas.page)
    return Document(kind, canvas.page, tuple(canvas.questions), tuple(canvas.hints))


def _holds_its_text(page: Page) -> bool:
    width, height = page.size
    return all(0 <= x < width and 0 <= y < height for _, x, y in page.characters())


def make_scribble(
    seed: int | str, index: int, *, scales: tuple[float, float] = SCALES, size: tuple[int, int] | None = None
) -> Document:
    """Return a page of random characters without questions, for training character recognition.

    Args:
        seed: seed of the series of pages.
        index: index in the series.
        scales: range of scales, see `make_document`.
        size: (width, height) in pixels; drawn if not given.
    """
    rng = random.Random(f"scribble:{seed}:{index}")
    num_slices = 6 if rng.random() < 0.9 else rng.randint(1, 5)
    canvas = Canvas(rng, size or _page_size(rng, rng.choice(KINDS), num_slices, scales))
    lay_out_scribble(canvas)
    _wear(rng, canvas.page)
    return Document("scribble", canvas.page, ())


def held_out_documents(count: int, seed: int = HELD_OUT_SEED) -> list[Document]:
    """Return documents of a seed that no training run uses; the kinds alternate."""
    return [make_document(seed, index, kind=KINDS[index % len(KINDS)]) for index in range(count)]


def _page_size(rng: random.Random, kind: str, num_slices: int, scales: tuple[float, float]) -> tuple[int, int]:
    """Return a random page size (width, height) in pixels."""
    area = num_slices * VIEW_SIZE**2 * (rng.uniform(*scales) ** 2 if num_slices == 6 else 0.97)
    aspect = rng.choice(ASPECTS[num_slices])
    if kind == "receipt" and num_slices == 6:
        aspect = STRIP_ASPECT if rng.random() < 0.05 else min(ASPECTS[num_slices])
    aspect *= rng.uniform(1 - SPREAD, 1 + SPREAD)
    return round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)


def _wear(rng: random.Random, page: Page) -> None:
    """Add tilt, uneven light and grain, each to a fraction of the pages."""
    if rng.random() < 0.3:
        page.tilt = rng.uniform(-0.5, 0.5)
    if rng.random() < 0.5:
        left, right, top, bottom = (rng.uniform(0.88, 1.04) for _ in range(4))
        page.light = (left, right, top, bottom)
    if rng.random() < 0.6:
        page.noise = rng.uniform(0.0, 8.0)
