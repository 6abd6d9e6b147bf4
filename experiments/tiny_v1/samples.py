"""Documents as training sequences: the image's tokens, then several questions with their answers.

Many questions a document are what makes a small decoder learn to look: each document then teaches more than its
vocabulary, and the answers cannot be guessed.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import torch

from llava_uhd.model.layout import TokenType, plan_layout
from llava_uhd.model.slicing import SlicePlan
from llava_uhd.synthetic import Document, Question

from .symbols import TOKEN_GRID, character_positions, plan_of
from .tokenizer import ASSISTANT_ID, BOS_ID, EOS_ID, IMAGE_ID, PAD_ID, USER_ID, byte_id, encode

IGNORED = -100
READ = ("Read the text.", "Read.")
MAX_READ = 160
LENGTH_STEP = 40
# The image's first token comes after the start of the sequence and of the user's turn.
IMAGE_START = 2
TOKEN_TYPE_IDS = {
    TokenType.IMAGE: IMAGE_ID,
    TokenType.SLICE_SEPARATOR: byte_id(","),
    TokenType.ROW_SEPARATOR: byte_id("\n"),
}


@dataclass(frozen=True)
class Sample:
    """A conversation about a document.

    Attributes:
        pointers: position of the window in which the next character is printed, at each position from which a
            character of an answer is predicted; -1 elsewhere.
    """

    document: Document
    plan: SlicePlan
    input_ids: list[int]
    labels: list[int]
    pointers: list[int]


def make_sample(document: Document, rng: random.Random, max_questions: int, read: float = 0.0) -> Sample:
    """A conversation about a document, loss on the answers alone.

    Args:
        document: document of the conversation.
        rng: random number generator of the questions.
        max_questions: maximum number of questions.
        read: probability that a document with little text is also read out, the questions after it.
    """
    plan = plan_of(document)
    template = plan_layout(plan, TOKEN_GRID, "stitched").template
    questions = rng.sample(document.questions, k=min(max_questions, len(document.questions)))
    turns: list[tuple[str, str, Question | None]] = [
        (question.text, question.answer, question) for question in questions
    ]
    if rng.random() < read and len(text := read_out(document)) <= MAX_READ:
        turns = [(rng.choice(READ), text, None), *turns[: max_questions // 2]]
    ids, labels, pointers = [BOS_ID], [IGNORED], [-1]
    for turn, (asked_text, answer_text, question) in enumerate(turns):
        image = [TOKEN_TYPE_IDS[token_type] for token_type in template] if turn == 0 else []
        asked = [USER_ID, *image, *encode(asked_text), ASSISTANT_ID]
        answer = [*encode(answer_text), EOS_ID]
        ids += asked + answer
        labels += [IGNORED] * len(asked) + answer
        pointers += [-1] * (len(asked) + len(answer))
        if question is not None:
            start = question.source.text.rindex(answer_text)
            first = len(pointers) - len(answer) - 1
            printed = character_positions(document, plan, question.source)[start : start + len(answer_text)]
            pointers[first : first + len(answer_text)] = [IMAGE_START + position for position in printed]
    return Sample(document, plan, ids, labels, pointers)


def read_out(document: Document) -> str:
    """The page's texts, line by line, each from left to right."""
    texts = sorted(document.page.texts, key=lambda text: (round(text.baseline), text.x))
    return " ".join(text.text for text in texts)


def collate(samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`input_ids`, `labels` and `pointers`, (B, length) each, padded on the right."""
    length = max(len(sample.input_ids) for sample in samples)

    def pad(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (length - len(row)) for row in rows])

    return (
        pad([sample.input_ids for sample in samples], PAD_ID),
        pad([sample.labels for sample in samples], IGNORED),
        pad([sample.pointers for sample in samples], -1),
    )


def batches(make: Callable[[int], Sample], batch_size: int, first: int = 0) -> Iterator[list[Sample]]:
    """Endless batches of samples of about one length, so that little is padded, in the order in which they fill up."""
    waiting: dict[int, list[Sample]] = defaultdict(list)
    for index in count(first):
        sample = make(index)
        bucket = waiting[len(sample.input_ids) // LENGTH_STEP]
        bucket.append(sample)
        if len(bucket) == batch_size:
            yield list(bucket)
            bucket.clear()
