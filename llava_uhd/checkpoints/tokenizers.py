"""Fast tokenizers for conversion and training that encode like the slow tokenizers of the reference.

Vicuna ships only a SentencePiece model. Its tokenizer class has a `legacy` option; a file without it means legacy,
except in transformers from version 5 on. Since the class loses the option when saved, the tokenizer is converted to a
plain fast tokenizer whose file is complete.
"""

from pathlib import Path
from typing import Any

from tokenizers import normalizers
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .sources import read_json

# Tokenizer files of a hub repository; the config names the class.
TOKENIZER_FILES = (
    "config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
)
SENTENCEPIECE_CLASSES = (None, "LlamaTokenizer", "LlamaTokenizerFast")
SAMPLES = (
    "A chat between a curious user and an artificial intelligence assistant.",
    "USER: What is written on the sign?\nASSISTANT: 24/7, 3.50 €, “open”.",
    "Straße, naïve café, Ελληνικά, русский, 日本語の文字, 你好，世界, 한국어, العربية, हिन्दी, 🙂👩‍👩‍👧",
    "two  spaces,   three,\ttabs\n\nand  \n lines ",
    "def f(x):\n    return {'a': [x**2, -1.5e-3]}  # code",
    "a\u0301 \u00a0 \u200b \ufeff \x00 \x1b ▁ <image> <unk >",
)


def read_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a language model: a folder or a hub id.

    Raises:
        ValueError: it has none, or it cannot be made to encode the same.
        ImportError: sentencepiece is needed and not installed.
        OSError: the hub cannot be reached, or has no such repository.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(name, allow_patterns=list(TOKENIZER_FILES)))
    return load_tokenizer([folder])


def load_tokenizer(folders: list[Path], text_config: PreTrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """Return the fast tokenizer of the first folder that has one.

    Args:
        folders: folders to look in. A sentencepiece model of Llama's comes before any other file: it is what the
            reference implementation reads.
        text_config: config of the language model, which tells the class where the folder does not.

    Raises:
        ValueError: no folder has one, or it cannot be made to encode the same.
        ImportError: sentencepiece, needed for this conversion alone, is not installed.
    """
    for folder in folders:
        if (folder / "tokenizer.model").is_file() and _settings(folder).get(
            "tokenizer_class"
        ) in SENTENCEPIECE_CLASSES:
            return from_sentencepiece(folder)
        if any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json", "tokenizer.model")):
            return AutoTokenizer.from_pretrained(folder, config=text_config)
    raise ValueError(f"no tokenizer in {', '.join(map(str, folders))}: name its folder with --tokenizer")


def from_sentencepiece(folder: Path) -> PreTrainedTokenizerFast:
    """Build a fast tokenizer from `tokenizer.model` and, if present, `tokenizer_config.json`.

    The encodings differ only for texts that begin with a space if `legacy` is false: the fast tokenizer keeps one of
    that space and the one that SentencePiece prepends.

    Raises:
        ValueError: it encodes a sample differently from sentencepiece.
        ImportError: sentencepiece is not installed.
    """
    try:
        import sentencepiece
        from transformers import LlamaTokenizer
    except ImportError as error:
        raise ImportError("a sentencepiece tokenizer is converted by: pip install 'llava-uhd[convert]'") from error
    settings = _settings(folder)
    legacy = settings.get("legacy")
    legacy = True if legacy is None else legacy
    made = LlamaTokenizer.from_pretrained(
        folder,
        legacy=legacy,
        add_bos_token=settings.get("add_bos_token", True),
        add_eos_token=settings.get("add_eos_token", False),
    )
    backend = made.backend_tokenizer
    if legacy:
        # Prepend a space to every text segment between special tokens.
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = {name: str(token) for name, token in made.special_tokens_map.items() if isinstance(token, str)}
    special.setdefault("pad_token", special["unk_token"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=settings.get("model_max_length", made.model_max_length),
        clean_up_tokenization_spaces=False,
        **special,
    )
    fast.chat_template = made.chat_template
    slow = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for sample in SAMPLES:
        expected, actual = slow.encode(sample), fast(sample, add_special_tokens=False)["input_ids"]
        if expected != actual:
            raise ValueError(
                f"{folder / 'tokenizer.model'}: the fast tokenizer encodes {sample!r} as {actual}, "
                f"sentencepiece as {expected}"
            )
    return fast


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    return read_json(file) if file.is_file() else {}
