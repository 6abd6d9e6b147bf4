"""Files that `damage.py` damages, and the readers that read them again."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import kill_runs  # noqa: E402
from kill_operations import in_child  # noqa: E402


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
    run = kill_runs.conversion(folder, to_released=True)
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


def _run(run: kill_runs.Run, folder: Path, products: tuple[str, ...]) -> Path:
    """Run to the end, and remove the products: the run was stopped before it wrote them."""
    whole = folder / "whole"
    whole.mkdir()
    if in_child(lambda: run.start(whole), folder / "log"):
        raise RuntimeError((folder / "log").read_text()[-500:])
    for name in products:
        path = whole / "out" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return whole


def _resume(run: kill_runs.Run, whole: Path, files: list[str]) -> Target:
    def read(place: Path) -> Any:
        run.start(place)
        # The log is for readers, not for the run.
        return digests({name: content for name, content in run.product(place).items() if name != "log"})

    return Target(whole, files, read)


def checkpoint(folder: Path) -> Target:
    """Newest of two checkpoints of a training run that resumes."""
    run = kill_runs.training(folder, lora=False)
    whole = _run(run, folder, ("model",))
    newest = max((whole / "out").glob("checkpoint-*"))
    return _resume(run, whole, [f"out/{newest.name}/{file.name}" for file in sorted(newest.iterdir())])


def run_folder(folder: Path) -> Target:
    """Other files of a training run that resumes."""
    run = kill_runs.training(folder, lora=False)
    whole = _run(run, folder, ("model",))
    return _resume(run, whole, [f"out/{file.name}" for file in sorted((whole / "out").iterdir()) if file.is_file()])


def stage0(folder: Path) -> Target:
    """Files of a run folder of stage 0, which resumes."""
    run = kill_runs.upsampler(folder, "reconstruction")
    whole = _run(run, folder, ("upsampler.safetensors", "quality.json"))
    return _resume(run, whole, [f"out/{file.name}" for file in sorted((whole / "out").iterdir()) if file.is_file()])


def upsampler(folder: Path) -> Target:
    """Product of stage 0, as stage 1 reads it."""
    from llava_uhd.training.assembly import read_upsampler

    run = kill_runs.upsampler(folder, "reconstruction")
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
    run = kill_runs.training(folder, lora=False)
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


def _evaluated(folder: Path) -> tuple[kill_runs.Run, Path, list[str]]:
    run = kill_runs.evaluation(folder)
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
