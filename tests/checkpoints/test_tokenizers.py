"""A converted sentencepiece tokenizer encodes as sentencepiece itself."""

import random
import shutil

import pytest
import sentencepiece
from tokenizers import AddedToken
from transformers import AutoTokenizer, LlamaTokenizer

from llava_uhd.checkpoints.tokenizers import SAMPLES, from_sentencepiece, read_tokenizer
from tests.checkpoints.layouts import write_sentencepiece
from tests.conversations import CASES, GOLDENS, encode, messages, one_token_processor

WORDS = (
    "the image shows 24/7 a sign, «open»; naïve Straße Ελλάδα 日本 你好 🙂 \n\n \t  x=[1,2] ▁ <0x41> e\u0301".split(
        " "
    )
)


def corpus(seed: int, leading_space: bool) -> list[str]:
    """Texts of words, runs of spaces, line breaks and random characters of all planes."""
    rng = random.Random(seed)
    texts = list(SAMPLES)
    for _ in range(300):
        parts = []
        for _ in range(rng.randint(1, 12)):
            character = chr(
                rng.choice([rng.randint(1, 0x7F), rng.randint(0x80, 0xD7FF), rng.randint(0x10000, 0x1FFFF)])
            )
            parts.append(rng.choice([rng.choice(WORDS), character, " " * rng.randint(0, 3), "\n"]))
        texts.append(rng.choice(["", " "]).join(parts))
    return [text for text in texts if leading_space or not text.startswith((" ", "▁"))]


@pytest.mark.parametrize("legacy", [None, True, False])
def test_encodes_identically_after_saving(tmp_path, legacy):
    """A config without `legacy` means legacy, as in the reference; there a text may begin with a space, too."""
    (tmp_path / "in").mkdir()
    write_sentencepiece(tmp_path / "in", legacy=legacy)
    from_sentencepiece(tmp_path / "in").save_pretrained(tmp_path / "out")
    fast = AutoTokenizer.from_pretrained(tmp_path / "out")
    slow = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "in" / "tokenizer.model"))
    texts = corpus(0, leading_space=legacy is not False)
    assert len(texts) > 200
    for text in texts:
        assert fast(text)["input_ids"] == [1, *slow.encode(text)], repr(text)
    assert fast.model_max_length == 4096 and fast.pad_token == "<unk>"


@pytest.mark.parametrize("legacy, joined", [(True, ["A", "B"]), (False, ["A"])])
def test_the_text_after_a_special_token(tmp_path, legacy, joined):
    """Legacy puts a space before every piece between special tokens, the other before the first alone."""
    write_sentencepiece(tmp_path, legacy=legacy)
    from_sentencepiece(tmp_path).save_pretrained(tmp_path / "out")
    fast = AutoTokenizer.from_pretrained(tmp_path / "out")
    slow = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    expected = [1, *slow.encode("A"), 2, *(slow.encode("B") if "B" in joined else [slow.piece_to_id("B")])]
    assert fast("A</s>B")["input_ids"] == expected


@pytest.mark.parametrize("add_bos", [True, False])
def test_bos_as_configured(tmp_path, add_bos):
    write_sentencepiece(tmp_path, add_bos_token=add_bos)
    assert (from_sentencepiece(tmp_path)("A")["input_ids"][0] == 1) == add_bos


def test_answers_decode_to_their_text(tmp_path):
    write_sentencepiece(tmp_path)
    fast = from_sentencepiece(tmp_path)
    for sample in SAMPLES[:3]:
        assert fast.decode(fast(sample)["input_ids"], skip_special_tokens=True) == sample


@pytest.mark.parametrize("legacy", [None, True, False])
def test_training_reads_a_tokenizer_as_conversion_does(tmp_path, legacy):
    """Whatever else lies beside the sentencepiece model, such as a tokenizer.json written by another release."""
    write_sentencepiece(tmp_path, legacy=legacy)
    shutil.copy(GOLDENS / "tokenizers" / "llama_tiny" / "tokenizer.json", tmp_path)
    trained, converted = read_tokenizer(str(tmp_path)), from_sentencepiece(tmp_path)
    texts = [*corpus(1, leading_space=True), "<s>USER: hi ASSISTANT: yes</s>USER: why?"]
    for text in texts:
        assert trained(text)["input_ids"] == converted(text)["input_ids"], repr(text)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_published_ids_are_those_of_a_config_that_does_not_say_legacy(case):
    processor = one_token_processor(read_tokenizer(str(GOLDENS / "tokenizers" / "llama_tiny")), "vicuna")
    prompt = processor.apply_chat_template(messages(case["conversation"]))
    assert encode(processor, prompt) == case["dec24_v1_legacyTrue"]["input_ids"]


def test_added_tokens_and_chat_template_are_kept(tmp_path):
    made = LlamaTokenizer.from_pretrained(GOLDENS / "tokenizers" / "llama_tiny", legacy=True)
    made.add_tokens([AddedToken("<|end|>", special=True)], special_tokens=True)
    made.chat_template = "{{ messages }}"
    made.save_pretrained(tmp_path)
    shutil.copy(GOLDENS / "tokenizers" / "llama_tiny" / "tokenizer.model", tmp_path)
    fast = read_tokenizer(str(tmp_path))
    assert fast.convert_tokens_to_ids("<|end|>") == made.convert_tokens_to_ids("<|end|>")
    assert fast.chat_template == "{{ messages }}"


def test_a_class_that_is_not_llamas_is_read_by_its_own(tmp_path):
    shutil.copytree(GOLDENS / "tokenizers" / "qwen_tiny", tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.model").write_bytes(b"of another make")
    expected = AutoTokenizer.from_pretrained(GOLDENS / "tokenizers" / "qwen_tiny")
    assert read_tokenizer(str(tmp_path))("hello, 42")["input_ids"] == expected("hello, 42")["input_ids"]
    with pytest.raises(ValueError, match="no tokenizer in"):
        (tmp_path / "empty").mkdir()
        read_tokenizer(str(tmp_path / "empty"))
