"""The tokenizer of the built-in model: one token a byte, so that any text can be written, and six special tokens."""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llava_uhd.model.chat_templates import TINY

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<image>", "<|user|>", "<|assistant|>")
PAD_ID, BOS_ID, EOS_ID, IMAGE_ID, USER_ID, ASSISTANT_ID = range(len(SPECIAL_TOKENS))
# The processor adds two reserved strings.
VOCABULARY_SIZE = len(SPECIAL_TOKENS) + 256 + 2

CHAT_TEMPLATE = TINY


def _byte_characters() -> list[str]:
    """The printable stand-in of each byte in a byte-level vocabulary: printable Latin-1 itself, the others moved."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(moved)) for byte in range(256)]


def byte_id(character: str) -> int:
    """Token of an ASCII character."""
    return len(SPECIAL_TOKENS) + ord(character)


def encode(text: str) -> list[int]:
    """Tokens of a text without special tokens, as the tokenizer gives them."""
    return [len(SPECIAL_TOKENS) + byte for byte in text.encode()]


def build_tokenizer(further: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """The tokenizer.

    Args:
        further: special tokens after the bytes.
    """
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *_byte_characters(), *further])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (*SPECIAL_TOKENS, *further)])
    pad, bos, eos, *others = SPECIAL_TOKENS
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        additional_special_tokens=[*others, *further],
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
