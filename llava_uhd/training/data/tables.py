"""Samples from tables: Parquet files, and datasets of the package `datasets` (a saved folder, a hub id).

Rows are read in place with random access, like those of the other sources, so a resumed run continues at the same row.
A Parquet file is read by row groups, the most recent of which are cached; a dataset of `datasets` is memory-mapped.
"""

import glob
import logging
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..recipe import Source
from .conversations import FORMS, BadSample

logger = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "images")
ANSWERS = ("answer", "answers")
# Column roles; the recipe's `columns` maps them to names in the data.
MEANINGS = (*IMAGE_COLUMNS, *FORMS, *ANSWERS)
KEPT_GROUPS = 4
LARGE_GROUP = 512 * 2**20  # bytes


class TableSamples:
    """Samples that are the rows of a table; images are bytes in it, or paths.

    Args:
        source: source of the recipe.

    Raises:
        ValueError: a mapped column does not exist, or none holds a conversation.
        ImportError: the package that reads the table is not installed.
    """

    def __init__(self, source: Source):
        self.path, self.images = source.path, Path(source.images).expanduser()
        self.table: _Parquet | _Dataset = _open(source)
        names = self.table.columns
        for meaning, name in source.columns.items():
            if meaning not in MEANINGS:
                raise ValueError(
                    f"data: columns of {self.path} name {meaning!r}, which is none of {', '.join(MEANINGS)}"
                )
            if name not in names:
                raise ValueError(f"{self.path} has no column {name!r}; it has {', '.join(names)}")
        mapped = {meaning: meaning for meaning in MEANINGS if meaning in names} | source.columns
        if source.columns.keys() & FORMS.keys():  # a named form takes the place of others that are there, too
            mapped = {key: name for key, name in mapped.items() if key not in FORMS or key in source.columns}
        if source.columns.keys() & {*IMAGE_COLUMNS}:
            mapped = {key: name for key, name in mapped.items() if key not in IMAGE_COLUMNS or key in source.columns}
        elif {*IMAGE_COLUMNS} <= mapped.keys():
            raise ValueError(f"{self.path} has both columns image and images: name one in data.train.columns")
        if not mapped.keys() & FORMS.keys():
            raise ValueError(
                f"{self.path} has the columns {', '.join(names)}, and none of {', '.join(FORMS)}: "
                "map them in the source's columns, as in {question: query, answer: label}"
            )
        self.columns = mapped

    def __len__(self) -> int:
        return len(self.table)

    def record(self, index: int) -> dict[str, Any]:
        text = {meaning: name for meaning, name in self.columns.items() if meaning not in IMAGE_COLUMNS}
        row = self.table.row(index, list(text.values()))
        record = {meaning: _without_nulls(row[name]) for meaning, name in text.items()}
        images = self._images(index)
        if images is not None:
            # Image placeholders: bytes are read lazily.
            record["images"] = [str(number) for number in range(len(images))]
        return record

    def _images(self, index: int) -> list[Any] | None:
        name = next((self.columns[key] for key in IMAGE_COLUMNS if key in self.columns), None)
        if name is None:
            return None
        value = self.table.row(index, [name])[name]
        if value is None:
            return []
        return [image for image in (value if isinstance(value, list) else [value]) if image is not None]

    def image(self, index: int, name: Any) -> Any:
        if isinstance(name, str) and name.isdecimal():
            name = (self._images(index) or [])[int(name)]
        if isinstance(name, Mapping):
            name = name.get("bytes") or name.get("path")
        if isinstance(name, bytes):
            file = BytesIO(name)
            file.name = f"image of row {index}"
            return file
        if not isinstance(name, str):
            raise BadSample(f"its image is a {type(name).__name__}, neither bytes nor a path")
        return self.images / name


class _Parquet:
    """Rows of Parquet files, by row groups."""

    def __init__(self, files: Sequence[Path]):
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise ImportError("Parquet files need the package pyarrow: pip install 'llava-uhd[train]'") from error
        self.files = list(files)
        self.groups: list[tuple[int, int]] = []  # file, row group
        sizes, largest = [], 0
        self.columns: list[str] = []
        for number, file in enumerate(self.files):
            try:
                metadata = parquet.read_metadata(file)
            except (OSError, ValueError) as error:
                raise ValueError(f"{file} is not a whole Parquet file: {' '.join(str(error).split())}") from error
            columns = metadata.schema.to_arrow_schema().names
            if number == 0:
                self.columns = columns
            elif set(columns) != set(self.columns):
                raise ValueError(
                    f"{file} has the columns {', '.join(columns)}, {self.files[0]} {', '.join(self.columns)}"
                )
            for group in range(metadata.num_row_groups):
                self.groups.append((number, group))
                sizes.append(metadata.row_group(group).num_rows)
                largest = max(largest, metadata.row_group(group).total_byte_size)
        if largest > LARGE_GROUP:
            logger.warning(
                "%s has row groups of up to %d MiB, each read whole for a sample: write it with fewer rows per group, "
                "or save it by datasets.load_dataset(...).save_to_disk(FOLDER) and name that folder",
                self.files[0].parent,
                largest // 2**20,
            )
        self.ends = list(accumulate(sizes))
        self.kept: OrderedDict[tuple[int, str], Any] = OrderedDict()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        group = bisect_right(self.ends, index)
        place = index - (self.ends[group - 1] if group else 0)
        return {name: self._column(group, name)[place].as_py() for name in columns}

    def _column(self, group: int, name: str) -> Any:
        if (group, name) not in self.kept:
            import pyarrow.parquet as parquet

            number, within = self.groups[group]
            try:
                with parquet.ParquetFile(self.files[number]) as file:
                    self.kept[group, name] = file.read_row_group(within, columns=[name]).column(name)
            except (OSError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise BadSample(f"row group {within} of {self.files[number]} cannot be read: {reason}") from error
            while len(self.kept) > KEPT_GROUPS * max(len(self.columns), 1):
                self.kept.popitem(last=False)
        self.kept.move_to_end((group, name))
        return self.kept[group, name]


class _Dataset:
    """Rows of a dataset of the package `datasets`; images stay encoded."""

    def __init__(self, dataset: Any):
        import datasets

        def encoded(feature: Any) -> Any:
            if isinstance(feature, datasets.Image):
                return datasets.Image(decode=False)
            if isinstance(feature, datasets.List):
                return datasets.List(encoded(feature.feature))
            return feature

        features = datasets.Features({name: encoded(feature) for name, feature in dataset.features.items()})
        self.dataset = dataset.cast(features) if features != dataset.features else dataset
        self.columns = list(self.dataset.column_names)

    def __len__(self) -> int:
        return len(self.dataset)

    def row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        return self.dataset.select_columns(list(columns))[index]


def is_table(source: Source) -> bool:
    """Return whether a source is a table: Parquet, a saved dataset, or a hub id of a dataset."""
    path = Path(source.path).expanduser()
    if path.is_dir():
        return bool(_parquet_files(path)) or any((path / name).is_file() for name in SAVED)
    return path.suffix == ".parquet" or any(sign in source.path for sign in "*?") or _is_hub_id(source.path)


SAVED = ("dataset_info.json", "dataset_dict.json")
SPLITS = ("train", "test", "testdev", "val", "valid", "validation", "dev")


def _is_hub_id(path: str) -> bool:
    """Return whether a path that does not exist may name a dataset of the hub: `owner/name`, without a suffix."""
    owner, slash, name = path.partition("/")
    return bool(owner and slash and name) and "/" not in name and not Path(path).suffix and not Path(path).exists()


def _parquet_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet")) or sorted(folder.glob("*/*.parquet"))


def _files_of_split(folder: Path, files: list[Path], split: str) -> list[Path]:
    """Return the files of a split, as the hub names them: train-00000-of-00002.parquet, or in a folder of that name.

    Raises:
        ValueError: the files are those of other splits.
    """
    own = [
        file
        for file in files
        if file.stem == split or file.stem.startswith(f"{split}-") or split == file.parent.relative_to(folder).name
    ]
    if own:
        return own
    names = [name for file in files for name in (file.stem.partition("-")[0], file.parent.relative_to(folder).name)]
    if others := sorted({name for name in names if name in SPLITS}):
        raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(others)}")
    return files


def _open(source: Source) -> _Parquet | _Dataset:
    path = Path(source.path).expanduser()
    if path.is_dir() and not any((path / name).is_file() for name in SAVED):
        files = _parquet_files(path)
        return _Parquet(_files_of_split(path, files, source.split))
    if path.suffix == ".parquet" or any(sign in source.path for sign in "*?"):
        files = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path))))
        if not files:
            raise ValueError(f"there is no file {source.path}")
        return _Parquet(files)
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{source.path} needs the package datasets: pip install 'llava-uhd[train]'") from error
    try:
        if path.is_dir():
            found = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(source.path, source.subset)
    except Exception as error:  # datasets and its file systems raise errors of many kinds
        reason = " ".join(str(error).split())[:500]
        raise ValueError(f"the dataset {source.path} cannot be read: {reason}") from error
    if isinstance(found, datasets.DatasetDict):
        if source.split not in found:
            raise ValueError(f"{source.path} has no split {source.split!r}; it has {', '.join(found)}")
        found = found[source.split]
    return _Dataset(found)


def _without_nulls(value: Any) -> Any:
    """Return a value without the null fields that tables fill the parts of messages with."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
