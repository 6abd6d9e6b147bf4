"""Readers of Parquet mirrors of the datasets, with the columns that lmms-eval's tasks read.

    hf download lmms-lab/DocVQA --repo-type dataset --local-dir data/docvqa

A mirror holds the questions and images of the official files, which are read where both are there. Prompts, ids and
image names are made as in the official files, as far as the mirror has what they are made of; questions without an id
are numbered in the order of the mirror. Only the columns that are needed are read; an image is read when it is used.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .samples import LETTER_ANSWER, SHORT_ANSWER, DataError, Sample, mmbench_sample

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

Record = dict[str, Any]
_LETTERS = "ABCDEFGHIJ"
_YES_NO = "Please answer yes or no."
# Question types of SEED-Bench by number, as its own release names them; 1 to 9 are about images.
_SEED_TYPES = (
    "Scene Understanding",
    "Instance Identity",
    "Instance Attributes",
    "Instance Location",
    "Instances Counting",
    "Spatial Relation",
    "Instance Interaction",
    "Visual Reasoning",
    "Text Understanding",
    "Action Recognition",
    "Action Prediction",
    "Procedure Understanding",
)
_BOX_PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: "


def open_parquet(path: Path) -> "ParquetFile":
    """Open a Parquet file.

    Raises:
        DataError: it is no Parquet file, or it is damaged.
        ImportError: pyarrow is missing.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: pip install 'llava-uhd[eval]'") from error
    try:
        return ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} is no whole Parquet file: {error}") from error


@lru_cache(maxsize=4)
def _image_column(path: Path, group: int, column: str) -> list[Any]:
    return open_parquet(path).read_row_group(group, columns=[column])[column].to_pylist()


@dataclass(frozen=True)
class ParquetImage:
    """Lazily loaded image of a Parquet file.

    Attributes:
        path: the file.
        group: its row group.
        row: row within the group.
        column: name of the column, of structs with `bytes`, or of lists of them (of which the middle one is taken).
    """

    path: Path
    group: int
    row: int
    column: str = "image"

    def exists(self) -> bool:
        """Return whether the row has an image."""
        return _image_column(self.path, self.group, self.column)[self.row] is not None

    def __call__(self) -> Image.Image:
        """Open the image; pixels may be decoded later.

        Raises:
            ValueError, OSError: it is no image.
        """
        value = _image_column(self.path, self.group, self.column)[self.row]
        if isinstance(value, list):
            value = value[len(value) // 2] if value else None
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise ValueError(f"{self.path} has no image in row {self.row} of row group {self.group}")
        from ..model.images import open_image

        return open_image(content)


def has_embedded_images(path: Path, column: str = "image") -> bool:
    """Return whether a Parquet file has a column of images, and not of their paths.

    Raises:
        DataError: the file is damaged.
    """
    from pyarrow import types

    schema = open_parquet(path).schema_arrow
    if column not in schema.names:
        return False
    kind = schema.field(column).type
    return not (types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind))


def iterate_rows(path: Path, without: tuple[str, ...] = ("image",)) -> Iterator[tuple[Record, int, int]]:
    """Yield rows of a Parquet file without some columns, each with its row group and index in it.

    Raises:
        DataError: the file is damaged.
    """
    from pyarrow import ArrowException

    file = open_parquet(path)
    columns = [name for name in file.schema_arrow.names if name not in without]
    for group in range(file.num_row_groups):
        try:
            rows = file.read_row_group(group, columns=columns).to_pylist()
        except (ArrowException, OSError) as error:
            raise DataError(f"{path} is no whole Parquet file: {error}") from error
        for index in range(file.metadata.row_group(group).num_rows):
            yield (rows[index] if columns else {}), group, index


@dataclass(frozen=True)
class Place:
    """Position of a row: configuration and split, index within its group, and image."""

    config: str
    split: str
    number: int
    image: ParquetImage


@dataclass(frozen=True)
class Mirror:
    """Dataset on the Hugging Face hub that holds a task's questions.

    Attributes:
        repo: hub id of the dataset.
        read: function that converts a row to samples.
        parts: configurations and their splits; the first one present is read, or all of them if `every`.
        every: True reads all of `parts`.
        images: configuration that holds the images, by `id`; None if the question rows hold them.
        image_key: column with the id of an image shared by several rows; None if each row has its own.
        number_by: column to group rows by for numbering; None numbers all rows of a split.
    """

    repo: str
    read: Callable[[Record, Place], list[Sample]]
    parts: tuple[tuple[str, tuple[str, ...]], ...] = (("", ("test",)),)
    every: bool = False
    images: str | None = None
    image_key: str | None = None
    number_by: str | None = None

    def files(self, root: Path) -> dict[tuple[str, str], list[Path]]:
        """Return Parquet files of a folder by configuration and split; {} if there are none."""
        found: dict[tuple[str, str], list[Path]] = {}
        for config, splits in self.parts:
            of_config = {(config, split): paths for split in splits if (paths := split_files(root, config, split))}
            if of_config and not self.every:
                return of_config
            found |= of_config
        if found or self.images:
            return found
        # Files of a single configuration, without its folder.
        config, splits = self.parts[0]
        loose = {(config, split): paths for split in splits if (paths := split_files(root, "", split))}
        return loose if len({path.parent for paths in loose.values() for path in paths}) == 1 else {}

    def load(self, root: Path) -> list[Sample]:
        """Read all samples.

        Raises:
            DataError: a file is damaged or lacks a column.
        """
        shared: dict[Any, ParquetImage] = self._images(root) if self.images else {}
        samples: list[Sample] = []
        for (config, split), paths in self.files(root).items():
            numbers: Counter[Any] = Counter()
            for path in paths:
                for row, group, index in iterate_rows(path):
                    image = ParquetImage(path, group, index)
                    try:
                        if self.image_key is not None:
                            key = row[self.image_key]
                            image = shared[key] if self.images else shared.setdefault(key, image)
                        counted = row[self.number_by] if self.number_by else None
                        samples += self.read(row, Place(config, split, numbers[counted], image))
                    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
                        raise DataError(f"{path}, row {index} of group {group}: {error!r}") from error
                    numbers[counted] += 1
        return samples

    def _images(self, root: Path) -> dict[Any, ParquetImage]:
        assert self.images is not None
        paths = [
            path for _, splits in self.parts for split in splits for path in split_files(root, self.images, split)
        ]
        if not paths:
            raise DataError(f"missing folder: {root / self.images}, the images of {self.repo}")
        return {
            row["id"]: ParquetImage(path, group, index) for path in paths for row, group, index in iterate_rows(path)
        }

    def describe(self, root: Path) -> str:
        """Name of this form of the data, for the protocol."""
        parts = ", ".join(f"{config} {split}".strip() for config, split in self.files(root))
        return f"Parquet mirror {self.repo}: {parts}"


def split_files(root: Path, config: str, split: str) -> list[Path]:
    """Return the files of a split: `test-00000-of-00002.parquet`, or `test/0000.parquet` if the hub converted them.

    Args:
        root: folder of the data set.
        config: name of a folder above them; "" for any.
        split: name of the split, such as "test".
    """
    found = []
    for path in sorted(root.rglob("*.parquet")):
        relative = path.relative_to(root)
        in_split = relative.stem == split or relative.stem.startswith(f"{split}-") or relative.parent.name == split
        if in_split and (not config or config in relative.parts):
            found.append(path)
    return found


def _choices(options: list[str]) -> str:
    return "".join(f"\n{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=False))


def _number(value: Any) -> Any:
    """Convert decimal strings to integers, as in the official file."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _docvqa(row: Record, place: Place) -> list[Sample]:
    name = f"documents/{row['ucsf_document_id']}_{row['ucsf_document_page_no']}.png"
    answers = () if place.split == "test" else tuple(row["answers"])
    return [Sample(_number(row["questionId"]), row["question"] + SHORT_ANSWER, name, place.image, answers=answers)]


def _chartqa(row: Record, place: Place) -> list[Sample]:
    half = row["type"].removesuffix("_test")
    number = f"{half}-{place.number}"
    prompt = row["question"] + SHORT_ANSWER
    return [Sample(number, prompt, f"{number}.png", place.image, answers=(str(row["answer"]),), category=half)]


def _textvqa(row: Record, place: Place) -> list[Sample]:
    tokens = f"\nReference OCR token: {', '.join(row['ocr_tokens'])}"
    prompt = row["question"].capitalize() + tokens + SHORT_ANSWER
    return [Sample(row["image_id"], prompt, f"{row['image_id']}.jpg", place.image, answers=tuple(row["answers"]))]


def _gqa(row: Record, place: Place) -> list[Sample]:
    if not row.get("isBalanced", True):
        return []
    prompt, name = row["question"] + SHORT_ANSWER, f"{row['imageId']}.jpg"
    kind = row["types"]["structural"]
    return [Sample(row["id"], prompt, name, place.image, answers=(row["answer"],), category=kind)]


def _ai2d(row: Record, place: Place) -> list[Sample]:
    prompt = row["question"] + _choices(row["options"]) + LETTER_ANSWER
    answer = _LETTERS[int(row["answer"])]
    return [Sample(f"{place.split}-{place.number}", prompt, f"{place.number}.png", place.image, answers=(answer,))]


def _scienceqa(row: Record, place: Place) -> list[Sample]:
    context = f"Context: {row['hint']}\n" if row["hint"] else ""
    has_image = place.image.exists()
    return [
        Sample(
            f"{place.split}-{place.number}",
            context + row["question"] + _choices(row["choices"]) + LETTER_ANSWER,
            f"{place.number}.png" if has_image else None,
            place.image if has_image else None,
            answers=(_LETTERS[row["answer"]],),
            category="image" if has_image else "text",
            details={"num_choices": len(row["choices"]), "answer_index": row["answer"]},
        )
    ]


def _mme(row: Record, place: Place) -> list[Sample]:
    name, prompt = row["question_id"], row["question"].strip().removesuffix(_YES_NO).rstrip() + SHORT_ANSWER
    return [Sample(name, prompt, name, place.image, answers=(row["answer"],), category=row["category"])]


def _pope(row: Record, place: Place) -> list[Sample]:
    category = row["category"]
    return [
        Sample(
            f"{category}-{row['question_id']}",
            row["question"].strip() + SHORT_ANSWER,
            f"{row['image_source']}.jpg",
            place.image,
            answers=(row["answer"].strip().lower(),),
            category=category,
        )
    ]


def _vqav2(row: Record, place: Place) -> list[Sample]:
    name = f"COCO_test2015_{int(row['image_id']):012d}.jpg"
    return [Sample(_number(row["question_id"]), row["question"] + SHORT_ANSWER, name, place.image)]


def _vizwiz(row: Record, place: Place) -> list[Sample]:
    advice = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    prompt = row["question"].capitalize() + advice + SHORT_ANSWER
    return [Sample(row["question_id"], prompt, f"{row['question_id']}.jpg", place.image)]


def _mmbench(row: Record, place: Place) -> list[Sample]:
    return [mmbench_sample(row, place.image)]


def _seed(row: Record, place: Place) -> list[Sample]:
    options = [row[f"choice_{letter}"] for letter in "abcd"]
    kind = int(row["question_type_id"])
    return [
        Sample(
            _number(row["question_id"]),
            row["question"] + _choices(options) + LETTER_ANSWER,
            f"{row['data_type']}/{row['data_id']}",
            place.image,
            answers=(row["answer"],),
            category=_SEED_TYPES[kind - 1] if 1 <= kind <= len(_SEED_TYPES) else f"type {kind}",
            details={"data_type": row["data_type"]},
        )
    ]


def _refcoco(row: Record, place: Place) -> list[Sample]:
    """One question per expression, the box as fractions of the image."""
    left, top, width, height = row["bbox"]
    full_width, full_height = place.image().size
    box = (left / full_width, top / full_height, (left + width) / full_width, (top + height) / full_height)
    label = f"[{', '.join(f'{value:.6f}' for value in box)}]"
    category = f"{place.config}_{place.split}"
    return [
        Sample(
            f"{category}-{row['question_id']}-{index}",
            _BOX_PROMPT + expression,
            row["file_name"],
            place.image,
            answers=(label,),
            category=category,
        )
        for index, expression in enumerate(row["answer"])
    ]


def _ocrbench(row: Record, place: Place) -> list[Sample]:
    answers = tuple(row["answer"]) if isinstance(row["answer"], list) else (row["answer"],)
    number, kind = place.number, row["question_type"]
    return [Sample(number, row["question"], f"{number}.png", place.image, answers=answers, category=kind)]


_REC_SPLITS = (
    ("RefCOCO", ("val", "testA", "testB")),
    ("RefCOCOplus", ("val", "testA", "testB")),
    ("RefCOCOg", ("val", "test")),
)

MIRRORS = {
    "mme": Mirror("lmms-lab/MME", _mme, image_key="question_id"),
    "ai2d": Mirror("lmms-lab/ai2d", _ai2d),
    "docvqa_val": Mirror("lmms-lab/DocVQA", _docvqa, (("DocVQA", ("validation",)),), image_key="docId"),
    "docvqa_test": Mirror("lmms-lab/DocVQA", _docvqa, (("DocVQA", ("test",)),), image_key="docId"),
    "chartqa": Mirror("lmms-lab/ChartQA", _chartqa, number_by="type"),
    "textvqa": Mirror("lmms-lab/textvqa", _textvqa, (("", ("validation",)),), image_key="image_id"),
    "gqa": Mirror(
        "lmms-lab/GQA",
        _gqa,
        (("testdev_balanced_instructions", ("testdev",)),),
        images="testdev_balanced_images",
        image_key="imageId",
    ),
    "scienceqa_img": Mirror(
        "lmms-lab/ScienceQA", _scienceqa, (("ScienceQA-FULL", ("test",)), ("ScienceQA-IMG", ("test",)))
    ),
    "pope": Mirror(
        "lmms-lab/POPE",
        _pope,
        (("Full", ("adversarial", "popular", "random")), ("", ("test",))),
        image_key="image_source",
    ),
    "vqav2": Mirror("lmms-lab/VQAv2", _vqav2, (("", ("testdev",)),), image_key="image_id"),
    "vizwiz": Mirror("lmms-lab/VizWiz-VQA", _vizwiz),
    "mmbench": Mirror("lmms-lab/MMBench", _mmbench, (("en", ("dev",)),)),
    "seed": Mirror("lmms-lab/SEED-Bench", _seed),
    "refcoco": Mirror(
        "lmms-lab/RefCOCO, RefCOCOplus, RefCOCOg", _refcoco, _REC_SPLITS, every=True, image_key="file_name"
    ),
    "ocrbench": Mirror("echo840/OCRBench", _ocrbench),
}
