"""A page as a training sequence: the image's tokens, then questions with answers."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import zip_longest

import numpy as np
import torch
from PIL import Image

from llava_uhd.model.image_processing_llava_uhd import LlavaUhdImageProcessor
from llava_uhd.model.layout import TokenType, plan_layout
from llava_uhd.model.slicing import SlicePlan
from llava_uhd.synthetic.varied import SCRIBBLE, make_varied
from llava_uhd.synthetic.varied.notes import NOTED, noted_digits
from llava_uhd.synthetic.varied.questions import Asked

from ..tiny_v1.samples import IGNORED
from ..tiny_v1.samples import collate as collate_sequences
from ..tiny_v1.tokenizer import ASSISTANT_ID, BOS_ID, EOS_ID, IMAGE_ID, USER_ID, byte_id, encode
from .comparisons import practice_list
from .crops import cut_crops
from .earlier import AnyDocument, AnyText, EarlierQuestion, make_earlier
from .fitting import AnyPage, fit_letters
from .locations import FOUND_ID, doubtful_id, first_note_id, location_id, move_locations, slice_id
from .setting import Phase, Setting
from .symbols import DRAFTS, EMPTY, plan_of, row_stride, run_positions, sequence_symbols, token_grid, view_symbols

# Parts of the most slices of a phase for which pages are made.
VIEWS = (0.1, 0.3, 0.6, 1.0)
# The image's first token comes after the start of the sequence and of the user's turn.
IMAGE_START = 2
TOKEN_TYPE_IDS = {
    TokenType.IMAGE: IMAGE_ID,
    TokenType.SLICE_SEPARATOR: byte_id(","),
    TokenType.ROW_SEPARATOR: byte_id("\n"),
}
# Pages of rows with numbers, for practice; see `Phase.compared`.
COMPARED_KINDS = ("bars", "lying bars", "line chart", "pie", "grouped bars", "table", "menu", "receipt", "spreadsheet")
COMPARED = ("extreme", "yes/no", "count", "order", "cell", "price")
COMPARED_VIEWS = 3
COMPARED_QUESTIONS = 8
READ = ("Read the text.", "Read.", "What does it say?", "Transcribe the page.")
READ_LENGTH = 200
CONTINUED_LENGTH = 24
# Fewest letters that a question and a printed text share.
SHARED = 4
# Declining for doubt, and the part of the pages that end with it; see `doubt.py`.
DOUBTFUL = "illegible, or not in the document"
DOUBTED = 0.2


@dataclass
class Sample:
    """One page.

    Attributes:
        input_ids, labels, pointers, positions: values of the sequence; a pointer is the index of the image token in
            which the next character of an answer, or of a name in a question, is printed, or which the next token
            names, -1 elsewhere; positions are those of the whole sequence, from which blank image tokens may be left
            out. Empty in the phases `tower` and `vision`.
        symbols: characters of the image tokens, (T, S), blank ones included, or of the views' tokens, (N, S), in a
            phase `vision`, or of the windows of a view, (G², S), in a phase `tower`.
        drafts: (D, T, S), symbols of the image tokens with characters moved a little, whose mean is the code; None
            where the page is drawn.
        cells: characters on the cells of the patches of a view, (H·W, R·C), in a phase `tower`.
        patches: pixels of all views, (P, 3·p·p), float16; None where the page is not drawn.
        view_shapes: (V, 2), rows and columns of patches of each view.
        windows: (T,), the window of its view that each image token is of, row by row.
        slices: (T, 2), row and column of the slice that each image token is of; the most slices, which no row or
            column reaches, for an overview.
        grid: (columns, rows) of slices, zeros where it was not cut.
        kept: (T,), which image tokens are in the sequence; None for all.
    """

    input_ids: list[int]
    labels: list[int]
    pointers: list[int]
    symbols: torch.Tensor
    patches: torch.Tensor | None = None
    view_shapes: torch.Tensor | None = None
    grid: tuple[int, int] = (0, 0)
    positions: list[int] = field(default_factory=list)
    kept: torch.Tensor | None = None
    drafts: torch.Tensor | None = None
    cells: torch.Tensor | None = None
    windows: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    slices: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.int64))

    @property
    def length(self) -> int:
        return len(self.input_ids) or (0 if self.patches is None else len(self.patches))


def draw_document(setting: Setting, phase: Phase, seed: int, index: int) -> AnyDocument:
    """The page of an index: one that so many slices show legibly, random characters, or one of the first generator."""
    rng = random.Random(f"{phase.name}:{seed}:{index}")
    kind: str | None
    compared = is_compared(phase, seed, index)
    if rng.random() < phase.earlier:
        return make_earlier(f"{phase.name}:{seed}", index, kind="chart" if compared else None)
    if compared:
        kind, views = rng.choice(COMPARED_KINDS), rng.randint(1, COMPARED_VIEWS)
    else:
        kind, views = SCRIBBLE if rng.random() < phase.scribble else None, _draw_views(phase, rng)
    shown = views * setting.view_size**2
    of_wheel = {"all": 0.0, "half": 0.5, "wheel": 1.0}[phase.families]
    return make_varied(
        f"{phase.name}:{seed}",
        index,
        kind=kind,
        shown=shown,
        print_sizes=phase.print,
        fonts=() if rng.random() < of_wheel else None,
    )


def is_compared(phase: Phase, seed: int, index: int) -> bool:
    """Return whether the page of an index is one of rows that are compared."""
    return random.Random(f"compared:{phase.name}:{seed}:{index}").random() < phase.compared


def _draw_views(phase: Phase, rng: random.Random) -> int:
    """Return a part of the most slices of a phase."""
    return max(round(phase.views * rng.choice(VIEWS)), 1)


def make_sample(setting: Setting, phase: Phase, seed: int, index: int) -> Sample:
    """The sample of an index, drawn as the phase wants it.

    Args:
        setting: sizes of the model.
        phase: kind of sample.
        seed: seed of the series of pages.
        index: index in the series.
    """
    document = draw_document(setting, phase, seed, index)
    rng = random.Random(f"sample:{phase.name}:{seed}:{index}")
    compared = is_compared(phase, seed, index)
    of_codes = 1 - phase.rendered if compared else phase.symbols
    coded = phase.kind == "reader" or (phase.kind in ("frozen", "joint") and rng.random() < of_codes)
    image = None if coded else document.render()
    fitted = fit_letters(document, setting, image)
    plan = plan_of(fitted, setting, phase.views)
    if phase.kind == "vision":
        symbols = view_symbols(fitted, plan, setting).reshape(-1, setting.slots)
        sample = Sample([], [], [], torch.from_numpy(symbols))
    else:
        symbols = sequence_symbols(fitted, plan, setting)
        continued = continued_turns(document, rng, phase.questions) if rng.random() < phase.continued else []
        most = min(phase.questions, COMPARED_QUESTIONS) if compared else phase.questions
        turns = continued or question_turns(document, rng, most, coded, COMPARED if compared else ())
        ids, labels, pointers = converse(fitted, plan, setting, turns)
        if compared:
            lists = converse_about_lists(setting, plan.grid is not None, phase.lists, rng)
            ids, labels, pointers = ids + lists[0], labels + lists[1], pointers + lists[2]
        if phase.doubted and rng.random() < DOUBTED:
            doubtful = decline_for_doubt(rng.choice(turns).text, setting)
            ids, labels, pointers = ids + doubtful[0], labels + doubtful[1], pointers + doubtful[2]
        ids = move_locations(ids, labels, phase.moved, setting.query_grid, rng)
        sample = Sample(ids, labels, pointers, torch.from_numpy(symbols), positions=list(range(len(ids))))
        if coded:
            jitter = np.random.default_rng(rng.getrandbits(32))
            drafts = [sequence_symbols(fitted, plan, setting, jitter) for _ in range(DRAFTS)]
            sample.drafts = torch.from_numpy(np.stack(drafts))
        if rng.random() >= phase.blanks:
            leave_out_blanks(sample)
    sample.grid = plan.grid or (0, 0)
    order = torch.tensor(plan_layout(plan, token_grid(setting), "stitched").order)
    sample.windows = order % setting.query_grid**2
    sample.slices = _slices(order // setting.query_grid**2, plan, setting.max_slices)
    sample.view_shapes = torch.tensor(plan.view_shapes)
    if image is not None:
        process = LlavaUhdImageProcessor(
            max_slices=phase.views,
            view_size=setting.view_size,
            patch_size=setting.patch_size,
            pad_to_grid=True,
        )
        if fitted.size != image.size:
            image = image.resize(fitted.size, Image.Resampling.BICUBIC)
        sample.patches = process(image, return_tensors="pt")["pixel_values"].half()
    return sample


def _slices(views: torch.Tensor, plan: SlicePlan, max_slices: int) -> torch.Tensor:
    """Row and column of the slices of views, (T, 2), of their numbers, (T,): slices row by row, then the overview."""
    columns, rows = plan.grid or (1, 0)
    found = torch.stack([views // columns, views % columns], dim=-1)
    return found.masked_fill((views >= rows * columns)[:, None], max_slices)


def make_samples(setting: Setting, phase: Phase, seed: int, index: int) -> list[Sample]:
    """The samples of an index: many views of one page for the tower's own phase, else one; see `make_sample`."""
    if phase.kind != "tower":
        return [make_sample(setting, phase, seed, index)]
    document = draw_document(setting, phase, seed, index)
    rng = random.Random(f"crops:{phase.name}:{seed}:{index}")
    crops = cut_crops(document, setting, phase.views, phase.crops, rng)
    shape = torch.tensor([[setting.view_size // setting.patch_size] * 2])
    return [Sample([], [], [], slots, patches, shape, cells=cells) for patches, cells, slots in crops]


def collate(samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`input_ids`, `labels`, `pointers` and `positions`, (B, L) each, padded on the right."""
    length = max(len(sample.positions) for sample in samples)
    positions = [sample.positions + [0] * (length - len(sample.positions)) for sample in samples]
    return *collate_sequences(samples), torch.tensor(positions)  # type: ignore[arg-type]  # of the same attributes


@dataclass(frozen=True)
class Turn:
    """A question with its answer.

    Attributes:
        sources: the printed texts that make the answer, with a space between two of them; the answer begins with
            the character `start` of the first and may end before the last of them does. None if it is not printed.
        keys: printed texts by which it is found, whose last places come before the answer: to find a row and then a
            cell of it is two steps, each with a token of its own.
        names_them: whether the question can name a key or a source.
        notes: note of each key behind its place, "" for none; empty if no key has one.
    """

    text: str
    answer: str
    sources: tuple[AnyText, ...] = ()
    start: int = 0
    keys: tuple[AnyText, ...] = ()
    names_them: bool = True
    notes: tuple[str, ...] = ()


def question_turns(
    document: AnyDocument, rng: random.Random, most: int, coded: bool, abilities: Sequence[str] = ()
) -> list[Turn]:
    """Some of a document's questions, and sometimes that the page should be read out.

    Args:
        document: page or image.
        rng: generator of the sample.
        most: number of questions.
        coded: whether the page is given as codes, so that what only its shapes tell is not asked.
        abilities: those of the questions; empty for all.
    """
    turns = []
    questions = [
        asked
        for asked in document.questions
        if not isinstance(asked, Asked)
        or ((asked.ability in abilities or not abilities) and not (coded and _is_of_shapes(asked)))
    ]
    for asked in pick_questions(questions, rng, most):
        printed = " ".join(run.text for run in asked.sources)
        # The first generator's answers are parts of texts.
        start = printed.find(asked.answer) if isinstance(asked, EarlierQuestion) else 0
        is_printed = start >= 0 if isinstance(asked, EarlierQuestion) else printed == asked.answer
        sources = asked.sources if is_printed else ()
        names_them = not isinstance(asked, Asked) or asked.ability not in ("count", "extreme")
        turns.append(Turn(asked.text, asked.answer, sources, max(start, 0), asked.keys, names_them, asked.notes))
    if not turns or rng.random() < 0.05:
        runs = reading_order(document)
        turns.insert(0, Turn(rng.choice(READ), " ".join(run.text for run in runs)[:READ_LENGTH], tuple(runs)))
    return turns


def _is_of_shapes(asked: Asked) -> bool:
    """Return whether shapes alone answer a question: the largest bar, or the larger of two, without printed values."""
    compares = asked.ability == "yes/no" and len(asked.sources) > 1
    return (asked.ability == "extreme" and not asked.keys) or (compares and not asked.notes)


def pick_questions(
    questions: Sequence[Asked | EarlierQuestion], rng: random.Random, most: int
) -> list[Asked | EarlierQuestion]:
    """Pick questions of all abilities in turn: a table has one title and forty cells.

    Args:
        questions: questions of a page; those of the first generator are of one ability.
        rng: generator of the sample.
        most: number of questions.
    """
    of_ability: dict[str, list[Asked | EarlierQuestion]] = {}
    for asked in rng.sample(questions, k=len(questions)):
        of_ability.setdefault(asked.ability if isinstance(asked, Asked) else "", []).append(asked)
    rounds = zip_longest(*of_ability.values())
    in_turn = [asked for round_ in rounds for asked in round_ if asked is not None]
    return rng.sample(in_turn[:most], k=min(most, len(in_turn)))


def continued_turns(document: AnyDocument, rng: random.Random, most: int) -> list[Turn]:
    """Pieces of printed text, each to be continued in its run or by the run to its right.

    Args:
        document: page or image.
        rng: generator of the sample.
        most: number of pieces.
    """
    runs = reading_order(document)
    turns = []
    for run, right in zip_longest(runs, runs[1:]):
        length = len(run.text)
        if length >= 4:
            cue = rng.randint(2, min(5, length - 2))
            start = rng.randint(0, length - cue - 2) if rng.random() < 0.5 else 0
            end = start + cue
            turns.append(Turn(run.text[start:end], run.text[end : end + CONTINUED_LENGTH], (run,), end))
        if right is not None and abs(run.baseline - right.baseline) < 0.3 * run.size:
            turns.append(Turn(run.text[-CONTINUED_LENGTH // 2 :], right.text[:CONTINUED_LENGTH], (right,)))
    return rng.sample(turns, k=min(most, len(turns)))


def converse(
    document: AnyPage, plan: SlicePlan, setting: Setting, turns: list[Turn]
) -> tuple[list[int], list[int], list[int]]:
    """Tokens, labels and pointers of a conversation about a page; the loss is on the answers alone.

    Args:
        document: page or image.
        plan: its views.
        setting: sizes of the model.
        turns: questions and answers.
    """
    template = plan_layout(plan, token_grid(setting), "stitched").template
    ids, labels, pointers = [BOS_ID], [IGNORED], [-1]
    runs = document.sheet.texts if document.sheet else []
    positions = dict(zip(map(id, runs), run_positions(document, plan, setting), strict=True)) if runs else {}
    for number, turn in enumerate(turns):
        image = [TOKEN_TYPE_IDS[token_type] for token_type in template] if number == 0 else []
        asked = [USER_ID, *image, *encode(turn.text), ASSISTANT_ID]
        named = named_positions(turn, positions)
        answer, looked_at = _answer(turn, positions, plan, setting)
        ids += [*asked, *answer, EOS_ID]
        labels += [IGNORED] * len(asked) + [*answer, EOS_ID]
        looked_at = [-1] * (len(asked) - 2 - len(named)) + named + [-1] + looked_at
        pointers += [IMAGE_START + position if position >= 0 else -1 for position in looked_at] + [-1, -1]
    return ids, labels, pointers


def converse_about_lists(
    setting: Setting, sliced: bool, count: int, rng: random.Random
) -> tuple[list[int], list[int], list[int]]:
    """Tokens, labels and pointers of turns about lists of numbers that no page shows; see `practice_list`."""
    ids: list[int] = []
    labels: list[int] = []
    for _ in range(count):
        question, answer, predicted = practice_list(setting, rng, sliced)
        asked = [USER_ID, *encode(question), ASSISTANT_ID]
        ids += [*asked, *answer, EOS_ID]
        labels += [*[IGNORED] * len(asked), *predicted, IGNORED]
    return ids, labels, [-1] * len(ids)


def decline_for_doubt(question: str, setting: Setting) -> tuple[list[int], list[int], list[int]]:
    """Tokens, labels and pointers of a turn that declines for doubt: what comes behind its first token.

    That token is no label here: whether an answer is doubtful, the loss knows.
    """
    begins = [USER_ID, *encode(question), ASSISTANT_ID, doubtful_id(setting.query_grid, setting.max_slices)]
    declines = [*encode(DOUBTFUL), EOS_ID]
    ids = begins + declines
    return ids, [IGNORED] * len(begins) + declines, [-1] * len(ids)


def _answer(
    turn: Turn, positions: dict[int, np.ndarray], plan: SlicePlan, setting: Setting
) -> tuple[list[int], list[int]]:
    """Tokens of an answer with the places of its keys and characters, and the position that each of them names."""
    stride, grid = row_stride(plan, setting), setting.query_grid
    answer: list[int] = []
    looked_at: list[int] = []
    last_slice = -1
    last_quarter: tuple[int, int] | None = None

    def name_place(position: int, quarter: int) -> None:
        nonlocal last_slice
        tokens = [location_id(position, quarter, stride, grid)]
        if plan.grid is not None:
            in_slice = slice_id(position, stride, grid, setting.max_slices)
            tokens = [in_slice, *tokens] if in_slice != last_slice else tokens
            last_slice = in_slice
        answer.extend(tokens)
        looked_at.extend([position] * len(tokens))

    for key, note in zip(turn.keys, turn.notes or [""] * len(turn.keys), strict=True):
        printed = positions[id(key)]
        name_place(*printed[-1].tolist())
        answer += [first_note_id(grid, setting.max_slices) + NOTED.index(sign) for sign in note]
        visible = np.cumsum([character != " " for character in key.text]) - 1
        looked_at += [int(printed[visible[index], 0]) if index >= 0 else -1 for index in noted_digits(key.text, note)]
    for character, position, quarter in _characters(turn, positions):
        if position >= 0 and (position, quarter) != last_quarter:
            name_place(position, quarter)
            last_quarter = position, quarter
        # From the position before each token one looks at what the token names, or at the window it is in.
        answer += encode(character)
        looked_at += [position] * len(encode(character))
    if answer and answer[0] > FOUND_ID:
        return [FOUND_ID, *answer], [-1, *looked_at]
    return answer, looked_at


def named_positions(turn: Turn, positions: dict[int, np.ndarray]) -> list[int]:
    """Return where each token of a question is printed on the page, -1 where it is not or where a name begins.

    A name is the longest piece that the question shares with a printed text by which the answer is found, or with the
    answer itself. Each letter of it but the first is looked for as those of answers are, which teaches to find a name
    with every letter, not only with the one token that says where it is.

    Args:
        turn: question and answer.
        positions: result of `run_positions` by run.
    """
    found = [-1] * len(turn.text)
    asked = turn.text.lower()
    for run in (*turn.keys, *turn.sources) if turn.names_them else ():
        printed = run.text.lower()
        if len(asked) != len(turn.text) or len(printed) != len(run.text):
            continue  # some letters are two in lower case
        shared = SequenceMatcher(None, asked, printed, autojunk=False).find_longest_match()
        if shared.size < SHARED or any(place >= 0 for place in found[shared.a : shared.a + shared.size]):
            continue
        visible = np.cumsum([character != " " for character in run.text]) - 1
        for place in range(1, shared.size):
            if run.text[shared.b + place] != " ":
                found[shared.a + place] = int(positions[id(run)][visible[shared.b + place], 0])
    return [place for character, place in zip(turn.text, found, strict=True) for _ in encode(character)]


def _characters(turn: Turn, positions: dict[int, np.ndarray]) -> Iterator[tuple[str, int, int]]:
    """Yield each character of an answer with position and quarter of `run_positions`, -1 where it is not printed."""
    printed = [(-1, 0)] * len(turn.answer)
    place = -turn.start
    for run in turn.sources:
        found = iter(positions[id(run)].tolist())
        for character in run.text:
            position, quarter = next(found) if character != " " else (-1, 0)
            if 0 <= place < len(printed):
                printed[place] = position, quarter
            place += 1
        place += 1
    return ((character, *place) for character, place in zip(turn.answer, printed, strict=True))


def leave_out_blanks(sample: Sample) -> None:
    """Take the image tokens that hold no character out of a sequence, except that every page keeps one."""
    kept = (sample.symbols != EMPTY).any(dim=-1)
    if sample.drafts is not None:
        kept |= (sample.drafts != EMPTY).any(dim=-1).any(dim=0)
    kept[0] = True
    held = iter(kept.tolist())
    stays = [next(held) if token == IMAGE_ID else True for token in sample.input_ids]
    index = np.cumsum(stays) - 1
    sample.pointers = [
        int(index[pointer]) if pointer >= 0 and stays[pointer] else -1
        for pointer, stay in zip(sample.pointers, stays, strict=True)
        if stay
    ]
    for name in ("input_ids", "labels", "positions"):
        setattr(sample, name, [value for value, stay in zip(getattr(sample, name), stays, strict=True) if stay])
    sample.kept = kept


def reading_order(document: AnyDocument) -> list[AnyText]:
    """The runs of a page, line by line, each from left to right."""
    runs = document.sheet.texts if document.sheet else []
    return sorted(runs, key=lambda run: (round(2 * run.baseline / run.size), run.x))
