"""Publishing a converted folder on the hub. Nothing is sent unless asked for; a dry run says what would be."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .card import UNKNOWN, card_metadata
from .packaging import AUTO_CLASSES
from .released import check_weights, list_weights, load_config
from .tensors import TensorReader

NEEDED = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "README.md",
)


@dataclass
class Upload:
    """What is, or would be, uploaded."""

    repository: str
    private: bool
    dry_run: bool
    license: str
    files: dict[str, int]
    url: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "num_bytes": sum(self.files.values())}


def push_checkpoint(folder: Path, repository: str, private: bool = True, dry_run: bool = True) -> Upload:
    """Check a folder for what the hub needs of it and upload it.

    Args:
        folder: written by `convert_to_ours`.
        repository: hub id.
        private: whether the repository, if it is new, is private.
        dry_run: only say what would be done; no network is needed.

    Raises:
        ValueError: files, the licence or the code of `auto_map` are missing.
        OSError: the hub refuses.
    """
    config = load_config(folder)
    check_weights(list_weights(folder, TensorReader()), config)
    if missing := [name for name in NEEDED if not (folder / name).is_file()]:
        raise ValueError(f"{folder} lacks {', '.join(missing)}")
    auto_map = config.auto_map or {}
    if lost := AUTO_CLASSES.keys() - auto_map.keys():
        raise ValueError(f"auto_map of {folder / 'config.json'} lacks {', '.join(sorted(lost))}")
    modules = {f"{reference.partition('.')[0]}.py" for reference in auto_map.values()}
    if lost_files := sorted(name for name in modules if not (folder / name).is_file()):
        raise ValueError(f"{folder} lacks the code that auto_map names: {', '.join(lost_files)}")
    if (license := card_metadata(folder).get("license", UNKNOWN)) == UNKNOWN:
        raise ValueError(f"{folder / 'README.md'} names no licence: write that of the language model's weights there")
    files = {
        str(file.relative_to(folder)): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)
    }
    upload = Upload(repository, private, dry_run, license, files)
    if not dry_run:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        upload.url = str(api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=list(files)))
    return upload
