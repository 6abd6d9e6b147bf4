"""Task table: data, generation settings, metric and download location of each task.

Beams, new tokens and image sizes are those of the reference scripts (the only evidence of the paper's protocol).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..generation.sampling import MAX_NEW_TOKENS
from . import readers
from .mirrors import MIRRORS, Mirror
from .samples import DataError, MatchKey, MissingFileError, Sample
from .synthdoc import read_synthdoc
from .webdocs import read_webdocs


@dataclass(frozen=True)
class Task:
    """Definition of a task.

    Attributes:
        name: name on the command line.
        split: split of the official data.
        count: official number of questions; None if it varies.
        folder: subfolder of the data folder; None if the data is generated.
        read: function that reads the samples from the folder.
        suffix: end of the prompt; the question files already include it.
        max_side: long side in pixels to which images are scaled, up or down, before slicing; None keeps their size.
        num_beams: number of beams; 1 is greedy.
        max_new_tokens: maximum number of new tokens per answer.
        match_key: fields that identify a question in a prediction file.
        metric: name in `metrics.METRICS`; None if a server or a judge scores.
        submission: name in `submission.WRITERS`, for tasks with an evaluation server.
        source: download location of the data.
        published: True if reference scripts also score the task, with their own metric.
        comparable: note on which published numbers the score is comparable with.
    """

    name: str
    split: str
    count: int | None
    folder: str | None
    read: Callable[[Path], list[Sample]]
    suffix: str
    max_side: int | None
    num_beams: int
    match_key: MatchKey
    metric: str | None
    source: str
    comparable: str
    max_new_tokens: int = 128
    submission: str | None = None
    published: bool = True

    def root(self, data: Path) -> Path:
        """Return the task's subfolder of the data folder, or the data folder itself if it has none."""
        return data / self.folder if self.folder is not None and (data / self.folder).is_dir() else data

    def load(self, data: Path | None) -> list[Sample]:
        """Read all samples and check that their images are there; see `read_data`."""
        return self.read_data(data)[0]

    def read_data(self, data: Path | None, allow_missing: bool = False) -> tuple[list[Sample], str]:
        """Read all samples, from the official files or else from a Parquet mirror, and check their images' files.

        Args:
            data: the data folder; None will do where none is needed.
            allow_missing: accept samples whose images are missing.

        Returns:
            The samples, and a name of the form of the data that was read.

        Raises:
            DataError: a file or an image is missing or damaged; says where to put it and where it is found.
        """
        if self.folder is None:
            samples = self.read(Path())
            if not allow_missing:
                self._check_images(samples, self.source)
            return samples, self.source
        if data is None:
            raise DataError(f"{self.name} needs a data folder (--data) with {self.folder}/ in it: {self.source}")
        root, mirror = self.root(data), MIRRORS.get(self.name)
        advice = f"put it below {data / self.folder}; found at: {self.source}"
        if mirror is not None:
            advice += f"; or as Parquet files: {mirror.repo} on the Hugging Face hub"
        try:
            samples, form = self._read(root, mirror)
        except KeyError as error:
            raise DataError(f"{self.name}: a row in {root} lacks the field {error}; {advice}") from error
        except DataError as error:
            raise DataError(f"{self.name}: {error}; {advice}") from error
        except (TypeError, IndexError, AttributeError, ValueError) as error:
            raise DataError(f"{self.name}: a file in {root} is not in its format ({error!r}); {advice}") from error
        if not samples:
            raise DataError(f"{self.name}: the question file in {root} has 0 rows; {advice}")
        if not allow_missing:
            self._check_images(samples, advice)
        return samples, form

    def _check_images(self, samples: list[Sample], advice: str) -> None:
        paths = {sample.image_source for sample in samples if isinstance(sample.image_source, Path)}
        missing = sorted(path for path in paths if not path.is_file())
        if missing:
            raise DataError(
                f"{self.name}: {len(missing)} of {len(paths)} images are missing, the first is {missing[0]}; {advice}"
            )

    def _read(self, root: Path, mirror: Mirror | None) -> tuple[list[Sample], str]:
        try:
            return self.read(root), "official files"
        except MissingFileError:
            if mirror is None or not mirror.files(root):
                raise
            return mirror.load(root), mirror.describe(root)


_LLAVA_ZIP = "LLaVA's eval.zip (github.com/haotian-liu/LLaVA, docs/Evaluation.md)"
_SHORT, _LETTER = readers.SHORT_ANSWER, readers.LETTER_ANSWER

_TABLE = (
    Task(
        name="mme",
        split="test",
        count=2374,
        folder="MME",
        read=readers.read_mme,
        suffix=_SHORT,
        max_side=1024,
        num_beams=5,
        match_key="id+prompt",
        metric="mme",
        source=f"llava_mme.jsonl in {_LLAVA_ZIP}; images and labels from the MME authors "
        "(github.com/BradyFU/Awesome-Multimodal-Large-Language-Models)",
        comparable="perception with the MME of LLaVA-family papers; not with VLMEvalKit's or lmms-eval's sum of both",
    ),
    Task(
        name="ai2d",
        split="test",
        count=3088,
        folder="ai2d",
        read=readers.read_ai2d,
        suffix=_LETTER,
        max_side=None,
        num_beams=1,
        match_key="id+prompt",
        metric="ai2d",
        source="test.jsonl and test_from_mova.jsonl of LLaVA-UHD-v2-Evaluation (from MoVA); images from AI2D (AI2)",
        comparable="published column with the LLaVA-UHD v2 paper; not with masked-label variants (ai2d_no_mask)",
    ),
    Task(
        name="docvqa_val",
        split="val",
        count=5349,
        folder="docvqa",
        read=readers.read_docvqa_val,
        suffix=_SHORT,
        max_side=1024,
        num_beams=1,
        match_key="id+prompt",
        metric="anls",
        source="rrc.cvc.uab.es (task DocVQA, val_v1.0_withQT.json and images); or docvqa_questions.jsonl and "
        "docvqa_annotations.jsonl of LLaVA-UHD-v2-Evaluation with the images of UReader",
        comparable="official column with VLMEvalKit's DocVQA_VAL; published column (single reference) with the "
        "LLaVA-UHD v2 paper; neither with the server's test numbers",
    ),
    Task(
        name="docvqa_test",
        split="test",
        count=5188,
        folder="docvqa",
        read=readers.read_docvqa_test,
        suffix=_SHORT,
        max_side=1024,
        num_beams=1,
        match_key="id",
        metric=None,
        submission="docvqa",
        source="rrc.cvc.uab.es (task DocVQA, test_v1.0.json and images)",
        comparable="scored by the server; with its leaderboard",
    ),
    Task(
        name="chartqa",
        split="test",
        count=2500,
        folder="chartqa",
        read=readers.read_chartqa,
        suffix=_SHORT,
        max_side=1024,
        num_beams=1,
        match_key="id+image+prompt",
        metric="chartqa",
        source="github.com/vis-nlp/ChartQA (test/test_human.json, test/test_augmented.json, test/png); or "
        "chartqa_questions.jsonl and chartqa_annotations.jsonl of LLaVA-UHD-v2-Evaluation",
        comparable="official column (relaxed accuracy) with other papers; published column (single-reference ANLS) "
        "with the LLaVA-UHD v2 paper",
    ),
    Task(
        name="textvqa",
        split="val, OCR tokens in the prompt",
        count=5000,
        folder="textvqa",
        read=readers.read_textvqa,
        suffix=_SHORT,
        max_side=1536,
        num_beams=3,
        match_key="id+prompt",
        metric="vqa",
        source=f"llava_textvqa_val_v051_ocr.jsonl in {_LLAVA_ZIP}; TextVQA_0.5.1_val.json and train_val_images.zip "
        "from textvqa.org",
        comparable="with LLaVA-family papers that give OCR tokens; not with numbers without (lmms-eval)",
    ),
    Task(
        name="gqa",
        split="testdev, balanced",
        count=12578,
        folder="gqa",
        read=readers.read_gqa,
        suffix=_SHORT,
        max_side=1024,
        num_beams=3,
        match_key="id",
        metric="gqa",
        source=f"llava_gqa_testdev_balanced.jsonl in {_LLAVA_ZIP}; questions and images from "
        "cs.stanford.edu/people/dorarad/gqa",
        comparable="with GQA's eval.py; not with lmms-eval, which ignores case and punctuation",
    ),
    Task(
        name="scienceqa_img",
        split="test (2,017 of 4,241 questions have an image)",
        count=4241,
        folder="scienceqa",
        read=readers.read_scienceqa,
        suffix=_LETTER,
        max_side=1024,
        num_beams=3,
        max_new_tokens=1024,
        match_key="id",
        metric="scienceqa",
        source=f"llava_test_CQM-A.json in {_LLAVA_ZIP}; pid_splits.json, problems.json and images from "
        "github.com/lupantech/ScienceQA",
        comparable="image accuracy with the SQA-IMG of LLaVA-family papers",
    ),
    Task(
        name="pope",
        split="COCO: adversarial, popular, random",
        count=8910,
        folder="pope",
        read=readers.read_pope,
        suffix=_SHORT,
        max_side=1024,
        num_beams=1,
        match_key="id",
        metric="pope",
        source=f"llava_pope_test.jsonl in {_LLAVA_ZIP}; coco/ from github.com/AoiDragon/POPE; COCO val2014",
        comparable="mean F1 with LLaVA-family papers; not with lmms-eval, which wants an exact yes or no",
    ),
    Task(
        name="vqav2",
        split="test-dev",
        count=107394,
        folder="vqav2",
        read=readers.read_vqav2,
        suffix=_SHORT,
        max_side=1024,
        num_beams=3,
        match_key="id",
        metric=None,
        submission="vqav2",
        source=f"{_LLAVA_ZIP}; COCO test2015",
        comparable="scored by the EvalAI server; with its leaderboard",
    ),
    Task(
        name="vizwiz",
        split="test",
        count=8000,
        folder="vizwiz",
        read=readers.read_vizwiz,
        suffix=_SHORT,
        max_side=1024,
        num_beams=3,
        match_key="id",
        metric=None,
        submission="vizwiz",
        source=f"llava_test.jsonl in {_LLAVA_ZIP}; images from vizwiz.org",
        comparable="scored by the EvalAI server; not with the labelled val split of lmms-eval and VLMEvalKit",
    ),
    Task(
        name="mmbench",
        split="dev",
        count=4377,
        folder="mmbench",
        read=readers.read_mmbench,
        suffix=_LETTER,
        max_side=None,
        num_beams=1,
        max_new_tokens=1024,
        match_key="id",
        metric="mmbench",
        submission="mmbench",
        source=f"{readers.MMBENCH_FILE} from opencompass.org.cn (MMBench)",
        comparable="locally with VLMEvalKit without a judge; the server's number with its leaderboard",
    ),
    Task(
        name="seed",
        split="image and video",
        count=None,
        folder="seed_bench",
        read=readers.read_seed,
        suffix=_LETTER,
        max_side=1024,
        num_beams=1,
        match_key="id",
        metric="seed",
        submission="seed",
        source=f"llava-seed-bench.jsonl in {_LLAVA_ZIP}; SEED-Bench.json and images from "
        "huggingface.co/datasets/AILab-CVC/SEED-Bench",
        comparable="image accuracy with SEED-I of LLaVA-family papers; VLMEvalKit's is more lenient",
    ),
    Task(
        name="refcoco",
        split="val, testA, testB of RefCOCO and RefCOCO+; val, test of RefCOCOg",
        count=None,
        folder="rec",
        read=readers.read_refcoco,
        suffix="",
        max_side=1024,
        num_beams=3,
        match_key="id",
        metric="refcoco",
        source="questions.jsonl and annotations.jsonl (boxes as fractions) in the layout of docs/evaluation.md; "
        "COCO train2017 in images/",
        comparable="official column with other papers; published column drops answers without a box",
    ),
    Task(
        name="mm_vet",
        split="test",
        count=218,
        folder="mm-vet",
        read=readers.read_mm_vet,
        suffix="",
        max_side=1024,
        num_beams=1,
        max_new_tokens=1024,
        match_key="id",
        metric=None,
        submission="mmvet",
        source=f"llava-mm-vet.jsonl in {_LLAVA_ZIP}; images from github.com/yuweihao/MM-Vet",
        comparable="scored by a judge (GPT-4); name the judge with the number",
    ),
    Task(
        name="ocrbench",
        split="test",
        count=1000,
        folder="ocrbench",
        read=readers.read_ocrbench,
        suffix="",
        max_side=1024,
        num_beams=3,
        max_new_tokens=1024,
        match_key="id",
        metric="ocrbench",
        source="OCRBench.json and OCRBench_Images of github.com/Yuliang-Liu/MultimodalOCR",
        comparable="with VLMEvalKit's and lmms-eval's OCRBench (right answers of 1,000)",
    ),
    Task(
        name="synthdoc",
        split="held-out seed, 250 receipts, forms, tables and charts each",
        count=1000,
        folder=None,
        read=read_synthdoc,
        suffix="",
        max_side=None,
        num_beams=1,
        max_new_tokens=MAX_NEW_TOKENS,
        match_key="id",
        metric="exact",
        source="nowhere: drawn on the spot from a seed",
        comparable="among versions of the built-in model; with no published number",
    ),
    Task(
        name="webdocs",
        split="documents by Chromium, reportlab and matplotlib, and photographs",
        count=451,
        folder=None,
        read=read_webdocs,
        suffix="",
        max_side=None,
        num_beams=1,
        max_new_tokens=MAX_NEW_TOKENS,
        match_key="id",
        metric="declining",
        source="the package: an archive that benchmarks/webdocs writes",
        comparable="among models asked the same archive; with no published number",
    ),
)

TASKS = {task.name: task for task in _TABLE}

# Tasks of the original eval.sh.
PAPER_SUITE = ("mme", "ai2d", "docvqa_val", "chartqa", "textvqa", "gqa", "scienceqa_img")
SUITES = {"paper": PAPER_SUITE, "all": tuple(TASKS)}


# Maximum number of slices by source; the default is the training value.
MAX_SLICES = {"paper": 6, "scripts": 9}


def parse_max_slices(value: str | None) -> int | None:
    """Read a maximum number of slices: a number, a name in `MAX_SLICES`, or "trained" (None).

    Raises:
        ValueError: it is none of these.
    """
    if value in (None, "trained"):
        return None
    if value in MAX_SLICES:
        return MAX_SLICES[value]
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"max_slices is {value!r}; it is a number from 1 on, trained, {', '.join(MAX_SLICES)}")
    return int(value)


def suite_names(suite: str) -> list[str]:
    """Return the names of the tasks of a suite, or of a list of names separated by commas.

    Raises:
        ValueError: a name is neither a suite's nor a task's.
    """
    names = list(SUITES.get(suite, suite.split(",")))
    for name in names:
        if name not in TASKS:
            raise ValueError(f"unknown suite or benchmark {name!r}; known are {', '.join([*SUITES, *TASKS])}")
    return names


def find_task(name: str) -> Task:
    """Look a task up by name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in TASKS:
        raise ValueError(f"unknown benchmark {name!r}; known are {', '.join(TASKS)}")
    return TASKS[name]
