"""Questions per second of `eval run` against one at a time, answers compared; and rows per second of ANLS.

    python benchmarks/evaluation_speed.py --model tiny --questions 128
    python benchmarks/evaluation_speed.py --model tiny --questions 128 --per-image 4

The first asks each document of `synthdoc` its one question; the second as many of each page as DocVQA does (5,349 of
1,286 in its validation split), pages read from files.

Both ways run in one process, alternating; the median of the runs counts.
"""

import argparse
import itertools
import random
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava_uhd.evaluation.generation import BatchGenerator, GenerationOptions
from llava_uhd.evaluation.samples import Sample
from llava_uhd.evaluation.scorers import anls
from llava_uhd.evaluation.tasks import TASKS
from llava_uhd.evaluation.workers import Workers, default_workers
from llava_uhd.loading import load
from llava_uhd.synthetic import make_document, render

PARTS_OF = 32  # questions


def one_at_a_time(generator: BatchGenerator, samples: list[Sample]) -> dict[int, str]:
    """Each question alone, its image loaded when its turn comes."""
    answers: dict[int, str] = {}
    with ThreadPoolExecutor(1) as pool:
        for position in range(len(samples)):
            answers |= generator.generate(generator.batches.build(samples, [position], pool)).texts
    return answers


def batched(workers: Workers, batches: list[list[int]]) -> dict[int, str]:
    """Answer as `eval run` does with processes that are already started."""
    answers: dict[int, str] = {}
    for of_batch in workers.generate_all(batches):
        answers |= of_batch.texts
    return answers


def timed(run, *arguments) -> tuple[float, Any]:
    start = time.perf_counter()
    answers = run(*arguments)
    return time.perf_counter() - start, answers


def write_samples(folder: Path, questions: int, per_image: int) -> list[Sample]:
    """So many questions of each of some documents, drawn into files. A document with fewer is left out."""
    documents = (make_document("speed", index) for index in itertools.count())
    asked = (document for document in documents if len(document.questions) >= per_image)
    samples = []
    for index, document in enumerate(itertools.islice(asked, -(-questions // per_image))):
        path = folder / f"{index}.png"
        render(document.page).save(path)
        for question in random.Random(index).sample(document.questions, per_image):
            samples.append(Sample(len(samples), question.text, path.name, path, answers=(question.answer,)))
    return samples[:questions]


def measure_answers(model_name: str, samples: list[Sample], batch_size: int, repeats: int) -> None:
    model, processor = load(model_name, "cpu")
    questions = len(samples)
    options = GenerationOptions(None, None, 1, TASKS["synthdoc"].max_new_tokens, batch_size)
    generator = BatchGenerator(model, processor, options)
    batches = generator.batches.plan(samples, batch_size)
    count = default_workers(model, len(batches))
    alone_times, batched_times = [], []
    with Workers(generator, samples, count) as workers:
        begin_s, _ = timed(batched, workers, batches[-count:])
        for _ in range(repeats):
            alone_s, alone_answers = timed(one_at_a_time, generator, samples)
            batched_s, batched_answers = timed(batched, workers, batches)
            alone_times.append(alone_s)
            batched_times.append(batched_s)
    alone_s, batched_s = statistics.median(alone_times), statistics.median(batched_times)
    same = sum(alone_answers[position] == batched_answers[position] for position in alone_answers)
    print(f"one at a time: {questions / alone_s:.2f} questions/s")
    print(f"eval run, batches of {batch_size}, {count} processes: {questions / batched_s:.2f} questions/s")
    print(f"ratio: {alone_s / batched_s:.2f}; the processes took {begin_s:.0f} s to begin, not counted")
    print(f"identical answers: {same} of {questions}")
    print(f"milliseconds a question of the first {PARTS_OF}, part by part, one process, nothing beside it:")
    for name, size in (("one at a time", 1), (f"batches of {batch_size}", batch_size)):
        alone = BatchGenerator(model, processor, replace(options, batch_size=size))
        parts = measure_parts(alone, samples[:PARTS_OF], repeats)
        print(f"  {name}: " + ", ".join(f"{part} {milliseconds:.0f}" for part, milliseconds in parts.items()))


def measure_parts(generator: BatchGenerator, samples: list[Sample], repeats: int) -> dict[str, float]:
    """Median milliseconds a question of preparing, encoding the images, reading the prompt, writing the answer."""
    plan = generator.batches.plan(samples, generator.options.batch_size)
    first_token = BatchGenerator(generator.model, generator.processor, replace(generator.options, max_new_tokens=1))
    taken: dict[str, list[float]] = {}
    for _ in range(repeats + 1):
        with ThreadPoolExecutor(1) as pool:
            prepare_s, batches = timed(
                lambda pool=pool: [generator.batches.build(samples, batch, pool) for batch in plan]
            )
        images_s, _ = timed(lambda batches=batches: [generator.encode(batch) for batch in batches])
        first_s, _ = timed(lambda batches=batches: [first_token.generate(batch) for batch in batches])
        whole_s, _ = timed(lambda batches=batches: [generator.generate(batch) for batch in batches])
        parts = {
            "preparing": prepare_s,
            "images": images_s,
            "prompt": first_s - images_s,
            "answer after its first token": whole_s - first_s,
        }
        for part, seconds in parts.items():
            taken.setdefault(part, []).append(1000 * seconds / len(samples))
    return {part: statistics.median(times[1:]) for part, times in taken.items()}  # the first round warms up


def measure_anls(rows: int) -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij 0123456789.", k=rng.randint(3, 40))) for _ in range(1000)]
    pairs = [(rng.choice(words), [rng.choice(words) for _ in range(3)]) for _ in range(rows)]
    start = time.perf_counter()
    for prediction, answers in pairs:
        anls(prediction, answers)
    print(f"ANLS: {rows} rows of three references in {time.perf_counter() - start:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--questions", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of ANLS")
    parser.add_argument("--per-image", type=int, help="questions; those of synthdoc, one each, if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.per_image is None:
            samples = TASKS["synthdoc"].load(None)[: options.questions]
        else:
            samples = write_samples(Path(folder), options.questions, options.per_image)
        measure_answers(options.model, samples, options.batch_size, options.repeats)
    measure_anls(options.rows)


if __name__ == "__main__":
    main()
