"""Damage each file that the package reads again, read it, and look at what the reader says.

    python benchmarks/damage.py --out damaged
    python benchmarks/damage.py --out damaged --only ask checkpoint --minutes 10
    python benchmarks/damage.py --out damaged --sample 100

Each file of a model folder, a checkpoint, a run folder, a data file and an evaluation is missing, empty, cut, has one
bit flipped, holds noise or another type, or is a folder. The reader of the file then runs in a process of its own and
must end as if nothing had happened, or name the file in one line. Anything else is a failure: another result without a
word, a traceback, a line that names no file, or no end within the limit of time.

Outcomes are appended to DIR/outcomes.jsonl; run again, the command continues with what is left. Prints a line per kind
and exits 1 if there is a failure.
"""

import argparse
import hashlib
import json
import logging
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import kill_operations  # noqa: E402

from llava_uhd.errors import is_user_error, report  # noqa: E402
from llava_uhd.files import append_line, drop_partial_line  # noqa: E402
from llava_uhd.training.watch import RunStopped  # noqa: E402

LIMIT = 10.0  # seconds, beyond those of reading the whole files
RIGHT = ("same", "named")


@dataclass(frozen=True)
class Target:
    """Files and the reader that uses them.

    Attributes:
        whole: folder of the whole files; a copy of it is damaged.
        files: files to damage, relative to the folder.
        read: reads a copy of the folder and returns its result, comparable by `==`.
        tells: whether a result, compared with that of the whole files, tells of the damage; None where none can.
        also_named: another name that a line may name, where it cannot know the file.
    """

    whole: Path
    files: list[str]
    read: Callable[[Path], Any]
    tells: Callable[[Any, Any], bool] | None = None
    also_named: str | None = None


@dataclass
class Outcomes:
    """Number of outcomes of one kind, and the first failures."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, str]] = field(default_factory=list)

    def add(self, outcome: dict[str, str]) -> None:
        self.counts[outcome["outcome"]] += 1
        if outcome["outcome"] not in RIGHT:
            self.failures.append(outcome)


def damages(content: bytes, seed: str) -> Iterator[tuple[str, bytes | None]]:
    """Yield the name of each damage of a file and its content afterwards; None removes it."""
    rng = random.Random(seed)
    size = len(content)
    yield "missing", None
    yield "empty", b""
    for name, cut in (("cut in its head", size // 20), ("cut in its middle", size // 2), ("cut at its end", size - 1)):
        if 0 < cut < size:
            yield name, content[:cut]
    offsets = {"head": min(9, size - 1), "middle": size // 2, "end": size - 1}
    offsets |= {f"place {number}": rng.randrange(max(size, 1)) for number in range(1, 5)}
    for name, place in offsets.items():
        if size:
            flipped = bytearray(content)
            flipped[place] ^= 1 << rng.randrange(8)
            yield f"bit flipped, {name}", bytes(flipped)
    yield "noise", rng.randbytes(max(size, 1))
    yield "zeros", bytes(size)
    yield "another type", b"[1, 2]\n"
    yield "null", b"null\n"


def run_child(read: Callable[[Path], Any], place: Path, log: Path, limit: float) -> dict[str, Any]:
    """Read a folder in a forked process; return its result, or the line of its error."""
    answer = log.with_suffix(".json")
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _child(read, place, log, answer)
    end = time.monotonic() + limit
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return {"hang": limit, "log": log.read_text(errors="replace")}
        time.sleep(0.005)
    said = log.read_text(errors="replace") if log.exists() else ""
    if not answer.is_file():
        return {"died": True, "log": said}
    return {**json.loads(answer.read_text()), "log": said}


def _child(read: Callable[[Path], Any], place: Path, log: Path, answer: Path) -> None:
    values: dict[str, Any] = {}
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
        values = {"result": read(place)}
    except BaseException as error:
        traceback.print_exc()
        values = {"error": report(error) if isinstance(error, Exception) else repr(error)}
        values["is_user_error"] = is_user_error(error) or isinstance(error, RunStopped)
        if isinstance(error, RunStopped):
            values["error"] = str(error)  # the command line prints it as it is
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        answer.write_text(json.dumps(values))
        os._exit(0)


def judge(target: Target, expected: Any, found: dict[str, Any], file: str) -> tuple[str, str]:
    """Return the outcome, and what was said."""
    name, log = Path(file).name, found["log"]
    if "hang" in found:
        return "hang", log[-300:]
    if "died" in found:
        return "killed", log[-300:]
    if "error" in found:
        said = found["error"]
        if not found["is_user_error"]:
            return "traceback", said + log[-600:]
        if "\n" in said:
            return "several lines", said
        names = [name, target.also_named or name]
        return ("named" if any(each in said + log for each in names) else "not named"), said
    if found["result"] == expected:
        return "same", ""
    is_named = name in log or (target.tells is not None and target.tells(found["result"], expected))
    return ("named" if is_named else "silent"), log[-300:]


def damage_file(place: Path, content: bytes | None, is_folder: bool) -> None:
    place.unlink()
    if is_folder:
        place.mkdir()
    elif content is not None:
        place.write_bytes(content)


def cases(target: Target, kind: str) -> Iterator[tuple[str, str, bytes | None]]:
    """Yield file, damage and content of every case."""
    for file in target.files:
        for damage, content in damages((target.whole / file).read_bytes(), f"{kind} {file}"):
            yield file, damage, content
        yield file, "a folder", None


def model_folder(folder: Path) -> Path:
    """Write a small model with its confidence, as a finished run has it."""
    from transformers import AutoTokenizer

    from llava_uhd import LlavaUhdProcessor
    from llava_uhd.confidence import Calibration, write_calibration
    from llava_uhd.model_folder import seal_model
    from tests.conftest import build_model, small_config
    from tests.golden import GOLDENS

    config, tokenizer = small_config(), AutoTokenizer.from_pretrained(GOLDENS / "tokenizers" / "qwen_tiny")
    build_model(config).save_pretrained(folder)
    LlavaUhdProcessor.from_config(config, tokenizer, "qwen").save_pretrained(folder)
    seal_model(folder)
    write_calibration(folder, Calibration(1.25, -0.5))
    return folder


def _model_files(folder: Path) -> list[str]:
    # Code beside the weights is what other programs import (`trust_remote_code`).
    return sorted(file.name for file in folder.iterdir() if file.is_file() and file.suffix not in (".py", ".md"))


def ask(folder: Path) -> Target:
    """Model folder: `ask` and the start of `serve`."""

    def read(place: Path) -> Any:
        from PIL import Image

        from llava_uhd.generation.generator import Generator
        from llava_uhd.generation.prompt import build_prompt, question_message
        from llava_uhd.generation.sampling import Sampling
        from llava_uhd.loading import load, load_calibration

        model, processor = load(str(place), "cpu")
        calibration = load_calibration(str(place))
        image = Image.linear_gradient("L").resize((90, 60))
        prompt = build_prompt(processor, [question_message([image], "What is it?")], 2)
        *_, result = Generator(model, processor).generate(prompt, Sampling(4))
        assert not isinstance(result, str)
        return [result.token_ids, result.token_probabilities, result.confidence(calibration).as_json()]

    whole = model_folder(folder / "model")
    return Target(whole, _model_files(whole), read)


def plan(folder: Path) -> Target:
    """Model folder: processor and planner, as `explain` and `data check` use them."""

    def read(place: Path) -> Any:
        from llava_uhd.loading import load_processor

        processor = load_processor(str(place))
        text = processor.apply_chat_template([{"role": "user", "content": "A total?"}], add_generation_prompt=True)
        return [text, processor.tokenizer(text)["input_ids"], vars(processor.image_layout(900, 600, max_slices=None))]

    def comparable(place: Path) -> Any:
        return json.loads(json.dumps(read(place), default=str))

    whole = model_folder(folder / "model")
    return Target(whole, [file for file in _model_files(whole) if "model" not in file], comparable)


def start(folder: Path) -> Target:
    """Model folder: the model that a training run starts from."""

    def read(place: Path) -> Any:
        from llava_uhd.training.assembly import build_model
        from llava_uhd.training.recipe import build_recipe

        recipe = build_recipe(
            {
                "stage": "instruct",
                "out": "unused",
                "model": {"start": str(place)},
                "data": {"train": [{"path": "unused"}]},
                "optimization": {
                    "learning_rates": {"projector": 1e-3},
                    "global_batch": 1,
                    "micro_batch": 1,
                    "precision": "fp32",
                },
            }
        )
        model, processor = build_model(recipe)  # type: ignore[arg-type]
        digest = hashlib.sha256()
        for name, tensor in model.state_dict().items():
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return [digest.hexdigest(), len(processor.tokenizer)]

    whole = model_folder(folder / "model")
    return Target(whole, _model_files(whole), read)


def export(folder: Path) -> Target:
    """Converted model folder, exported to the original layout."""
    run = kill_operations.conversion(folder, to_released=True)
    whole = folder / "whole"
    shutil.copytree(folder / "hf", whole / "hf")

    def read(place: Path) -> Any:
        from llava_uhd.checkpoints.export import convert_to_original

        convert_to_original(place / "hf", place / "out")
        return digests(run.product(place))

    files = sorted(path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file())
    kept = [file for file in files if not file.endswith((".py", ".md", "report.json"))]
    return Target(whole, kept, read)


def digests(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def _run(run: kill_operations.Run, folder: Path, products: tuple[str, ...]) -> Path:
    """Run to the end, and remove the products: the run was stopped before it wrote them."""
    whole = folder / "whole"
    whole.mkdir()
    if kill_operations.in_child(lambda: run.start(whole), folder / "log"):
        raise RuntimeError((folder / "log").read_text()[-500:])
    for name in products:
        path = whole / "out" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return whole


def _resume(run: kill_operations.Run, whole: Path, files: list[str]) -> Target:
    def read(place: Path) -> Any:
        run.start(place)
        # The log is for readers, not for the run.
        return digests({name: content for name, content in run.product(place).items() if name != "log"})

    return Target(whole, files, read)


def checkpoint(folder: Path) -> Target:
    """Newest of two checkpoints of a training run that resumes."""
    run = kill_operations.training(folder, lora=False)
    whole = _run(run, folder, ("model",))
    newest = max((whole / "out").glob("checkpoint-*"))
    return _resume(run, whole, [f"out/{newest.name}/{file.name}" for file in sorted(newest.iterdir())])


def run_folder(folder: Path) -> Target:
    """Other files of a training run that resumes."""
    run = kill_operations.training(folder, lora=False)
    whole = _run(run, folder, ("model",))
    return _resume(run, whole, [f"out/{file.name}" for file in sorted((whole / "out").iterdir()) if file.is_file()])


def stage0(folder: Path) -> Target:
    """Files of a run folder of stage 0, which resumes."""
    run = kill_operations.upsampler(folder, "reconstruction")
    whole = _run(run, folder, ("upsampler.safetensors", "quality.json"))
    return _resume(run, whole, [f"out/{file.name}" for file in sorted((whole / "out").iterdir()) if file.is_file()])


def upsampler(folder: Path) -> Target:
    """Product of stage 0, as stage 1 reads it."""
    from llava_uhd.training.assembly import read_upsampler

    run = kill_operations.upsampler(folder, "reconstruction")
    whole = _run(run, folder, ("quality.json",))

    def read(place: Path) -> Any:
        state = read_upsampler(str(place / "out" / "upsampler.safetensors"))
        return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in state.items()}

    return Target(whole, ["out/upsampler.safetensors"], read)


def _data_target(folder: Path, path: str, files: list[str], **source: Any) -> Target:
    """Data that is checked: the manifest tells of every sample that is not as it was."""

    def read(place: Path) -> Any:
        from llava_uhd.training.data.check import check_source
        from llava_uhd.training.recipe import Source

        values = {name: str(place / value) if name == "images" else value for name, value in source.items()}
        found = check_source(Source(str(place / path), **values), manifest=place / "manifest.jsonl")
        lines = [json.loads(line) for line in (place / "manifest.jsonl").read_text().splitlines()]
        return [found.samples, found.broken, lines]

    def tells(found: Any, expected: Any) -> bool:
        # A broken sample, or another hash in the manifest. Of lines that were cut off whole only their number tells.
        return found[1] > 0 or found[0] == expected[0] or found[2] == expected[2][: found[0]]

    return Target(folder, files, read, tells)


def _small_data(folder: Path) -> Path:
    from make_data import write

    folder.mkdir()
    write(folder, train=8, test=1)
    return folder


def jsonl(folder: Path) -> Target:
    """JSON lines and an image of theirs, in `data check`."""
    whole = _small_data(folder / "whole")
    image = sorted((whole / "images").iterdir())[0].relative_to(whole).as_posix()
    return _data_target(whole, "train.jsonl", ["train.jsonl", image], images="images")


def tar(folder: Path) -> Target:
    """Shard of samples, in `data check`."""
    import tarfile

    data, whole = _small_data(folder / "data"), folder / "whole"
    whole.mkdir()
    with tarfile.open(whole / "shard-0.tar", "w") as archive:
        for number, line in enumerate((data / "train.jsonl").read_text().splitlines()):
            (data / "sample.json").write_text(line)
            archive.add(data / "sample.json", f"{number:04}.json")
            archive.add(data / "images" / json.loads(line)["image"], f"{number:04}.png")
    return _data_target(whole, "shard-0.tar", ["shard-0.tar"])


def parquet(folder: Path) -> Target:
    """Table of samples, in `data check`."""
    import pyarrow
    import pyarrow.parquet

    data, whole = _small_data(folder / "data"), folder / "whole"
    whole.mkdir()
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    columns = {
        "image": [{"bytes": (data / "images" / row["image"]).read_bytes(), "path": row["image"]} for row in rows],
        "conversations": [row["conversations"] for row in rows],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), whole / "train.parquet")
    return _data_target(whole, "train.parquet", ["train.parquet"])


def data_of_run(folder: Path) -> Target:
    """Data and manifest of a run that resumes."""
    run = kill_operations.training(folder, lora=False)
    first = _run(run, folder, ("model",))
    whole = folder / "both"
    whole.mkdir()
    first.rename(whole / "run")
    shutil.copy(folder / "train.jsonl", whole)

    def read(place: Path) -> Any:
        shutil.copy(place / "train.jsonl", folder / f"{os.getpid()}.jsonl")
        (folder / f"{os.getpid()}.jsonl").replace(folder / "train.jsonl")
        run.start(place / "run")
        return digests({name: content for name, content in run.product(place / "run").items() if name != "log"})

    return Target(whole, ["train.jsonl"], read, also_named="data.json")


def manifest(folder: Path) -> Target:
    """Manifest of training data, whose lengths decide the order of the samples."""
    from llava_uhd.training.data.check import check_source
    from llava_uhd.training.recipe import Source

    whole = _small_data(folder / "whole")
    source = Source(str(whole / "train.jsonl"), images=str(whole / "images"))
    check_source(source, _processor(folder), manifest=whole / "manifest.jsonl")

    def read(place: Path) -> Any:
        from llava_uhd.training.data.mixture import Mixture

        source = Source(
            str(place / "train.jsonl"), images=str(place / "images"), manifest=str(place / "manifest.jsonl")
        )
        return Mixture([source], encoder=None, seed=0).lengths  # type: ignore[arg-type]

    return Target(whole, ["manifest.jsonl"], read)


def _processor(folder: Path) -> Any:
    from llava_uhd.loading import load_processor

    return load_processor(str(model_folder(folder / "model")))


def _evaluated(folder: Path) -> tuple[kill_operations.Run, Path, list[str]]:
    run = kill_operations.evaluation(folder)
    whole = _run(run, folder, ())
    files = sorted(path.relative_to(whole).as_posix() for path in (whole / "out").rglob("*") if path.is_file())
    return run, whole, files


def evaluation(folder: Path) -> Target:
    """Run folder of an evaluation that runs again."""
    run, whole, files = _evaluated(folder)

    def read(place: Path) -> Any:
        run.start(place)
        return digests(run.product(place))

    return Target(whole, files, read)


def results(folder: Path) -> Target:
    """Result of an evaluation: `eval report`, `eval compare`, `eval score` and `eval calibrate`."""
    _, whole, _ = _evaluated(folder)

    def read(place: Path) -> Any:
        from llava_uhd.evaluation.calibration import read_answers
        from llava_uhd.evaluation.compare import compare_results
        from llava_uhd.evaluation.pipeline import score_file
        from llava_uhd.evaluation.report import markdown_report
        from llava_uhd.evaluation.results import load_result
        from llava_uhd.evaluation.tasks import TASKS

        result = load_result(place / "out")
        difference = compare_results(result, result).difference
        scored = score_file(TASKS["synthdoc"], place / "out" / "predictions.jsonl", None, None, True)
        with redirect_stdout(StringIO()):
            answers = read_answers(place / "out")
        return [markdown_report([result]), difference, scored, vars(answers)]

    def comparable(place: Path) -> Any:
        return json.loads(json.dumps(read(place), default=str).replace(str(place), "PLACE"))

    def tells(found: Any, expected: Any) -> bool:
        return bool(found[2]["warnings"])  # scored 0: unreadable lines

    return Target(
        whole, [f"out/{name}" for name in ("result.json", "predictions.jsonl", "protocol.json")], comparable, tells
    )


KINDS: dict[str, Callable[[Path], Target]] = {
    "ask": ask,
    "plan": plan,
    "start": start,
    "export": export,
    "checkpoint": checkpoint,
    "run": run_folder,
    "stage0": stage0,
    "upsampler": upsampler,
    "jsonl": jsonl,
    "tar": tar,
    "parquet": parquet,
    "data": data_of_run,
    "manifest": manifest,
    "evaluate": evaluation,
    "results": results,
}


def damage_kind(
    kind: str, out: Path, done: set[tuple[str, str, str]], sample: float, until: float
) -> Iterator[dict[str, str]]:
    """Damage and read all files of a kind but those done; yield the outcomes.

    Args:
        kind: name in `KINDS`.
        out: folder for the work.
        done: kind, file and damage of the cases of an earlier run.
        sample: share of the cases that are run, drawn by their names.
        until: end on the clock of `time.monotonic`; the cases left are not run.
    """
    scratch = out / kind
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        target = KINDS[kind](scratch)
        place, log, limit = scratch / "place", scratch / "child.log", 300.0
        began = time.monotonic()
        shutil.copytree(target.whole, place)
        whole = run_child(target.read, place, log, limit)
        if "result" not in whole:
            raise RuntimeError(f"{kind}: the whole files cannot be read: {whole}")
        limit = LIMIT + 3 * (time.monotonic() - began)
        for file, damage, content in cases(target, kind):
            drawn = random.Random(f"{kind} {file} {damage}").random() < sample
            if (kind, file, damage) in done or not drawn:
                continue
            if time.monotonic() > until:
                return
            shutil.rmtree(place)
            shutil.copytree(target.whole, place)
            damage_file(place / file, content, damage == "a folder")
            began = time.monotonic()
            found = run_child(target.read, place, log, limit)
            outcome, said = judge(target, whole["result"], found, file)
            seconds = f"{time.monotonic() - began:.2f}"
            said = re.sub(re.escape(str(scratch)), "", said)
            yield {"kind": kind, "file": file, "damage": damage, "outcome": outcome, "said": said, "seconds": seconds}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for outcomes and work; continued if it exists")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of files (default: all)")
    parser.add_argument("--sample", type=float, default=1.0, help="share of the cases that are run (default: 1)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time (default: none)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    args.out.mkdir(parents=True, exist_ok=True)
    record = args.out / "outcomes.jsonl"
    drop_partial_line(record)
    earlier = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    done = {(outcome["kind"], outcome["file"], outcome["damage"]) for outcome in earlier}
    until = time.monotonic() + 60 * args.minutes
    found = {kind: Outcomes() for kind in args.only}
    for outcome in earlier:
        if outcome["kind"] in found:
            found[outcome["kind"]].add(outcome)
    for kind, outcomes in found.items():
        if time.monotonic() <= until:
            for outcome in damage_kind(kind, args.out.resolve(), done, args.sample, until):
                append_line(record, json.dumps(outcome, ensure_ascii=False))
                outcomes.add(outcome)
                if outcome["outcome"] not in RIGHT:
                    print(json.dumps(outcome, ensure_ascii=False), file=sys.stderr, flush=True)
        counts = ", ".join(f"{number} {name}" for name, number in sorted(outcomes.counts.items()))
        print(f"{kind:10} {sum(outcomes.counts.values()):4} cases: {counts or 'none run'}", flush=True)
    sys.exit(any(outcomes.failures for outcomes in found.values()))


if __name__ == "__main__":
    main()
