"""VLMEvalKit adapter: its datasets and metrics with this model, without a fork.

    python -m llava_uhd.evaluation.adapters.vlmevalkit OCRBench SEEDBench_IMG --model tiny --out results

The protocol is the published adapter's intention (it could not start): three beams, 1,024 new tokens, images scaled to
a long side of 1,024 pixels, the data set's own prompt and, after options, the instruction to answer with a letter. The
published adapter takes the first image of a question alone; this one takes all of them, each in its place.

Import this module in a process of its own: VLMEvalKit switches gradients and the verification of
certificates off and sets seeds.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cli import VLMEVALKIT_INSTALL

try:
    from vlmeval.dataset import build_dataset
    from vlmeval.inference import infer_data_job
    from vlmeval.vlm.base import BaseModel
except (ImportError, RuntimeError) as error:
    # RuntimeError: the torchvision build does not match the installed torch.
    _reason = f"VLMEvalKit cannot be imported ({error}): {VLMEVALKIT_INSTALL}"
    if __name__ == "__main__":
        sys.exit(f"error: {_reason}")
    raise ImportError(_reason) from error

from ...errors import first_line
from ...loading import DEFAULT_MODEL
from ..generation import BatchGenerator, GenerationOptions
from ..samples import LETTER_ANSWER
from .answering import answer_questions, load_generator

DATASETS = ("OCRBench", "MMMU_DEV_VAL", "SEEDBench_IMG", "MMBench_DEV_EN_V11", "RealWorldQA", "HRBench4K")
OPTIONS = GenerationOptions(max_side=1024, max_slices=None, num_beams=3, max_new_tokens=1024, batch_size=1)
_OPTIONS_MARK = "Options:"
# End of VLMEvalKit's multiple-choice prompts; replaced by this model's suffix.
_THEIR_INSTRUCTION = "Please select the correct answer from the options above."


def letter_prompt(text: str) -> str:
    """Ask for a letter where a prompt lists options: its wording tells, not the data set's name, which may be new."""
    if _OPTIONS_MARK not in text:
        return text
    return _ask_for_letter(text)


def _ask_for_letter(text: str) -> str:
    return text.strip().removesuffix(_THEIR_INSTRUCTION).rstrip() + LETTER_ANSWER


class LlavaUhdForVlmEvalKit(BaseModel):
    """Model class with VLMEvalKit's interface."""

    INTERLEAVE = True

    def __init__(self, generator: BatchGenerator):
        super().__init__()
        self.generator = generator

    def use_custom_prompt(self, dataset: str) -> bool:
        """Return False: the dataset builds its prompt."""
        return False

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """Answer a message about all of its images.

        Raises:
            ValueError: a part of the message is neither a text nor an image.
        """
        unknown = [part["type"] for part in message if part["type"] not in ("text", "image")]
        if unknown:
            raise ValueError(f"this model takes texts and images; the message has a part of type {unknown[0]!r}")
        if sum(part["type"] == "image" for part in message) <= 1:
            text = "\n".join(part["value"] for part in message if part["type"] == "text")
            images = [Path(part["value"]) for part in message if part["type"] == "image"]
            return answer_questions(self.generator, [[*images, letter_prompt(text)]])[0]
        parts: list[str | Path] = [
            part["value"] if part["type"] == "text" else Path(part["value"]) for part in message
        ]
        texts = [index for index, part in enumerate(parts) if isinstance(part, str)]
        if any(_OPTIONS_MARK in part for part in parts if isinstance(part, str)):
            parts[texts[-1]] = _ask_for_letter(str(parts[texts[-1]]))
        return answer_questions(self.generator, [parts])[0]


def evaluate(generator: BatchGenerator, dataset_name: str, out: Path, name: str, **dataset_options: Any) -> Any:
    """Answer a data set and score it by VLMEvalKit without a judge ("exact_matching").

    Args:
        generator: generator of the model.
        dataset_name: name of the data set in VLMEvalKit.
        out: output folder of VLMEvalKit.
        name: model name in the files.
        dataset_options: keyword arguments of the dataset class, for custom datasets.

    Raises:
        ValueError: VLMEvalKit knows no such data set, or writes its predictions elsewhere.
    """
    dataset = build_dataset(dataset_name, **dataset_options)
    if dataset is None:
        raise ValueError(f"VLMEvalKit knows no data set {dataset_name!r}")
    out.mkdir(parents=True, exist_ok=True)
    infer_data_job(LlavaUhdForVlmEvalKit(generator), work_dir=str(out), model_name=name, dataset=dataset)
    # It writes a pickle where a table cannot be written, without xlsxwriter for instance.
    suffixes = ("xlsx", "tsv", "json", "pkl")
    files = [path for suffix in suffixes if (path := out / f"{name}_{dataset_name}.{suffix}").exists()]
    if not files:
        raise ValueError(f"VLMEvalKit left no predictions {out / name}_{dataset_name}.*")
    return dataset.evaluate(str(files[0]), model="exact_matching", nproc=1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="llava-uhd eval vlmevalkit", description="VLMEvalKit's data sets.")
    parser.add_argument("datasets", nargs="+", help=f"such as {', '.join(DATASETS)}")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a built-in model, a folder or a hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder for predictions and scores")
    parser.add_argument("--device", help="cpu, cuda:0, auto")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args(arguments)
    generator = load_generator(options.model, options.device, options.dtype, OPTIONS)
    name = Path(options.model).name
    for dataset in options.datasets:
        scores = evaluate(generator, dataset, options.out / name, name)
        print(f"{dataset}: {scores if isinstance(scores, dict) else scores.to_dict()}")
    print(json.dumps({"out": str(options.out / name)}), file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {first_line(error)}")
