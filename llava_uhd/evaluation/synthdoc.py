"""The held-out synthetic documents as a benchmark: exact match by kind of document.

    python -m llava_uhd.evaluation.synthdoc --model tiny
    python -m llava_uhd.evaluation.synthdoc --model tiny --max-slices 1

Documents are drawn as they are asked for; a seed of their own keeps them apart from all that was trained on. Each is
asked one of its questions. The second command shows the model the overview alone: the fall is what the slices are for.
"""

import argparse
import json
import random
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..answering import question_message
from ..synthetic import HELD_OUT_SEED, Document, Question, held_out_documents, render

if TYPE_CHECKING:
    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor

NUM_DOCUMENTS = 1000
MAX_NEW_TOKENS = 32
DESCRIPTION = "Exact match on held-out synthetic documents, by kind."


@dataclass(frozen=True)
class Answer:
    """What the model said about one document."""

    kind: str
    question: str
    answer: str
    prediction: str

    @property
    def is_exact(self) -> bool:
        return self.prediction == self.answer


def choose_question(document: Document, index: int) -> Question:
    """The question that the document of this index is asked: one of its own, the same in every run."""
    return random.Random(f"question:{index}").choice(document.questions)


@torch.inference_mode()
def evaluate(
    model: "LlavaUhdForConditionalGeneration",
    processor: "LlavaUhdProcessor",
    documents: list[Document],
    batch_size: int = 16,
    max_slices: int | None = None,
) -> list[Answer]:
    """Asks each document its question, greedily, in batches of prompts of about one length.

    Args:
        max_slices: most slices of a document; None for what the checkpoint was trained with.
    """
    questions = [choose_question(document, index) for index, document in enumerate(documents)]
    options = {} if max_slices is None else {"max_slices": max_slices}
    order = sorted(
        range(len(documents)),
        key=lambda index: processor.image_layout(*documents[index].page.size, **options).length,
    )
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        images = [render(documents[index].page) for index in chosen]
        prompts = [
            processor.apply_chat_template(
                [question_message([image], questions[index].text)], add_generation_prompt=True, tokenize=False
            )
            for image, index in zip(images, chosen, strict=True)
        ]
        inputs = processor(
            images=[[image] for image in images],
            text=prompts,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            **options,
        ).to(model.device)
        generated = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        texts = processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            question = questions[index]
            answers[index] = Answer(documents[index].kind, question.text, question.answer, text.strip())
    return [answers[index] for index in range(len(documents))]


def accuracy(answers: list[Answer]) -> dict[str, float]:
    """The part of exact answers, in all and by kind of document."""
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        by_kind["all"].append(answer.is_exact)
        by_kind[answer.kind].append(answer.is_exact)
    return {kind: sum(exact) / len(exact) for kind, exact in by_kind.items()}


def main(arguments: list[str] | None = None) -> None:
    from ..loading import load

    parser = argparse.ArgumentParser(prog="python -m llava_uhd.evaluation.synthdoc", description=DESCRIPTION)
    parser.add_argument("--model", default="tiny", help="tiny, a folder or a hub id")
    parser.add_argument("--documents", type=int, default=NUM_DOCUMENTS)
    parser.add_argument("--max-slices", type=int, help="1 for the overview alone")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    parser.add_argument("--device")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--errors", action="store_true", help="show wrong answers on standard error")
    options = parser.parse_args(arguments)
    model, processor = load(options.model, device=options.device)
    start = time.time()
    documents = held_out_documents(options.documents, options.seed)
    answers = evaluate(model, processor, documents, options.batch_size, options.max_slices)
    if options.errors:
        for wrong in (answer for answer in answers if not answer.is_exact):
            print(f"{wrong.kind}: {wrong.question} {wrong.answer!r}, said {wrong.prediction!r}", file=sys.stderr)
    scores = accuracy(answers)
    if options.json:
        result = {
            "documents": len(answers),
            "seed": options.seed,
            "max_slices": options.max_slices,
            "accuracy": scores,
        }
        print(json.dumps({**result, "seconds": round(time.time() - start)}))
    else:
        for kind, score in scores.items():
            print(f"{kind:8} {100 * score:5.1f} %")


if __name__ == "__main__":
    main()
