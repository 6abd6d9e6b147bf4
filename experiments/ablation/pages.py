"""Pages of random text as the frozen tower encodes them, once for all runs.

A page is 2 x 3 slices of exactly 8 x 8 patches. Each of a view's 8 x 8 cells holds up to four characters, in the order
of their x; the 2 x 2 cells of a window are the labels of its token.

Shapes: P pages, V views of a page, T = 16 windows of a view, S = 4 x 4 places of a window.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from experiments.tiny_v1.setting import VIEW_SIZE
from experiments.tiny_v1.symbols import EMPTY, FIRST_CHARACTER, PLACES, plan_of
from experiments.tiny_v1.vision import SCALES, build_image_processor
from llava_uhd.model.image_processing_llava_uhd import cut_views
from llava_uhd.model.vision_tower import encode_views
from llava_uhd.synthetic import Document, make_scribble, render

from .rows import QUERY_GRID

GRID = (2, 3)  # columns and rows of slices
CELLS = 2  # along a side of a window
FEATURE_LAYER = -2


@dataclass
class Views:
    """One view of each page, or all its slices.

    Attributes:
        shape: rows and columns of patches of every view.
        features: output of the tower, (P, V, C, *shape), float16.
        patches: normalized pixels, (P, V, patches, 3·p·p), float16.
        symbols: characters of the windows, (P, V, T, S).
    """

    shape: tuple[int, int]
    features: torch.Tensor
    patches: torch.Tensor
    symbols: torch.Tensor


@dataclass
class Pages:
    """A set of pages.

    Attributes:
        slices: slices of every page.
        overviews: the whole page as one view.
        characters: number of characters of each page.
    """

    slices: Views
    overviews: Views
    characters: list[int]


def make_page(seed: str, index: int) -> Document:
    """Make a page whose slices are squares of 8 x 8 patches; the resolution varies as in the tower's training."""
    side = round(VIEW_SIZE * random.Random(f"page:{seed}:{index}").uniform(*SCALES))
    return make_scribble(seed, index, size=(GRID[0] * side, GRID[1] * side))


def page_symbols(document: Document, grid: tuple[int, int]) -> torch.Tensor:
    """Return the characters in the windows of a page cut into (columns, rows) views: (V, T, S)."""
    width, height = document.page.size
    columns, rows = (count * QUERY_GRID * CELLS for count in grid)
    cells: dict[tuple[int, int], list[tuple[float, str]]] = {}
    for character, x, y in document.page.characters():
        column, row = int(x * columns / width), int(y * rows / height)
        if 0 <= column < columns and 0 <= row < rows:
            cells.setdefault((row, column), []).append((x, character))
    page = np.full((rows, columns, PLACES), EMPTY)
    for (row, column), inside in cells.items():
        for place, (_, character) in enumerate(sorted(inside)[:PLACES]):
            page[row, column, place] = ord(character) - 32 + FIRST_CHARACTER
    views = page.reshape(grid[1], QUERY_GRID, CELLS, grid[0], QUERY_GRID, CELLS, PLACES)
    # To slice rows, slice columns, window rows, window columns, cell rows, cell columns, places.
    views = views.transpose(0, 3, 1, 4, 2, 5, 6)
    return torch.from_numpy(views.reshape(grid[0] * grid[1], QUERY_GRID**2, CELLS**2 * PLACES)).to(torch.uint8)


@torch.no_grad()
def encode_pages(tower: PreTrainedModel, seed: str, count: int) -> Pages:
    """Encode pages by the frozen tower: their slices, and their overviews apart."""
    process = build_image_processor()
    columns: dict[str, list[torch.Tensor]] = {}
    shapes: dict[str, tuple[int, int]] = {}
    characters = []
    for index in range(count):
        document = make_page(seed, index)
        plan = plan_of(document)
        assert plan.grid == GRID, f"a page of {document.page.size} is cut into {plan.grid}"
        pixels = process(render(document.page), return_tensors="pt")["pixel_values"]
        views = pixels.split([rows * width for rows, width in plan.view_shapes])
        kinds = {"slices": (views[:-1], GRID), "overviews": (views[-1:], (1, 1))}
        for (kind, (of_kind, grid)), shape in zip(
            kinds.items(), (plan.view_shapes[0], plan.view_shapes[-1]), strict=True
        ):
            patches = torch.stack(of_kind)
            assert shapes.setdefault(kind, shape) == shape
            features = encode_views(tower, patches, shape, FEATURE_LAYER)
            of_page = (features.half(), patches.half(), page_symbols(document, grid))
            for name, tensor in zip(("features", "patches", "symbols"), of_page, strict=True):
                columns.setdefault(f"{kind}.{name}", []).append(tensor)
        characters.append(sum(1 for _ in document.page.characters()))

    def views_of(kind: str) -> Views:
        tensors = (torch.stack(columns[f"{kind}.{name}"]) for name in ("features", "patches", "symbols"))
        return Views(shapes[kind], *tensors)

    return Pages(views_of("slices"), views_of("overviews"), characters)


def write_slices(folder: Path, seed: str, count: int) -> None:
    """Write the first slice of a number of pages as images, for stage 0."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        document = make_page(seed, index)
        cut_views(render(document.page), plan_of(document))[0].save(folder / f"{index:05}.png")


def save_pages(pages: Pages, file: Path) -> None:
    """Write pages; an interrupted write leaves no file of that name."""
    unfinished = file.with_suffix(".unfinished")
    kinds = {"slices": vars(pages.slices), "overviews": vars(pages.overviews)}
    torch.save({**kinds, "characters": pages.characters}, unfinished)
    unfinished.replace(file)


def load_pages(file: Path) -> Pages:
    """Read pages; tensors are read from disk as they are used."""
    held = torch.load(file, weights_only=True, mmap=True)
    return Pages(Views(**held["slices"]), Views(**held["overviews"]), held["characters"])
