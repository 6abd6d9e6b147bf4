"""Upload a model folder to the hub. The default is a dry run that lists the files."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .card import UNKNOWN, card_metadata, license_of, trained_card
from .export import check_weights, list_weights, load_config
from .packaging import AUTO_CLASSES
from .sources import read_json
from .tensors import TensorReader

CARD_FILE = "README.md"
NEEDED = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    CARD_FILE,
)


@dataclass
class Upload:
    """Files and metadata of an upload or of a dry run."""

    repository: str
    private: bool
    dry_run: bool
    license: str
    files: dict[str, int]
    url: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "num_bytes": sum(self.files.values())}


def push_checkpoint(
    folder: Path, repository: str, private: bool = True, dry_run: bool = True, license: str | None = None
) -> Upload:
    """Check that a folder is complete for the hub and upload it.

    Args:
        folder: folder written by `convert_to_hf` or by training; one without a model card gets one.
        repository: hub id.
        private: True creates a new repository as private.
        dry_run: only report the upload; needs no network and writes nothing.
        license: license of the weights for a new model card; None takes that of a known language model.

    Raises:
        ValueError: files, the license or the code of `auto_map` are missing.
        OSError: the hub refuses.
    """
    config = load_config(folder)
    weights = list_weights(folder, TensorReader())
    check_weights(weights, config)
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    license = license or license_of(str(config.text_config._name_or_path))
    card = None
    if CARD_FILE in missing and license != UNKNOWN:
        missing.remove(CARD_FILE)
        num_bytes = sum(info.num_bytes for info in weights.values())
        card = trained_card(config, repository.rpartition("/")[2], num_bytes, license)
    if missing:
        hint = ": name the license of its weights (--license) to have it written" if missing == [CARD_FILE] else ""
        raise ValueError(f"{folder} lacks {', '.join(missing)}{hint}")
    auto_map = read_json(folder / "config.json").get("auto_map") or {}
    if lost := AUTO_CLASSES.keys() - auto_map.keys():
        raise ValueError(f"auto_map of {folder / 'config.json'} lacks {', '.join(sorted(lost))}")
    modules = {f"{reference.partition('.')[0]}.py" for reference in auto_map.values()}
    if lost_files := sorted(name for name in modules if not (folder / name).is_file()):
        raise ValueError(f"{folder} lacks the code that auto_map names: {', '.join(lost_files)}")
    if card is None and (license := card_metadata(folder).get("license", UNKNOWN)) == UNKNOWN:
        raise ValueError(f"{folder / 'README.md'} names no license: write that of the language model's weights there")
    files = {
        str(file.relative_to(folder)): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)
    }
    if card is not None:
        files[CARD_FILE] = len(card.encode())
    upload = Upload(repository, private, dry_run, license, files)
    if not dry_run:
        from huggingface_hub import HfApi

        if card is not None:
            (folder / CARD_FILE).write_text(card, encoding="utf-8")

        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        upload.url = str(api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=list(files)))
    return upload
