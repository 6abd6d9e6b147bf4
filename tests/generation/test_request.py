"""State of a request: incremental detokenization and stop conditions."""

import random

import pytest
import torch
from transformers import AutoTokenizer

from llava_uhd import built_in
from llava_uhd.generation.prompt import Prompt
from llava_uhd.generation.request import MAX_UNFINISHED, WINDOW, Detokenizer, RequestState, split_visible
from llava_uhd.generation.result import Result
from llava_uhd.generation.sampling import Sampling
from tests.conversations import llama_tokenizer, qwen_tokenizer

TEXT = "The total is 12.50 €, naïve café — 中文字符 and 👩‍👩‍👧‍👦 emoji.\n\n  * item  one\n  * item two\t(done) " * 8


@pytest.fixture(scope="module", params=["qwen", "llama", "tiny"])
def tokenizer(request):
    if request.param == "tiny":
        return AutoTokenizer.from_pretrained(built_in("tiny"))
    return {"qwen": qwen_tokenizer, "llama": llama_tokenizer}[request.param]()


class CountingTokenizer:
    """Tokenizer that counts the tokens it decodes."""

    def __init__(self, tokenizer):
        self.tokenizer, self.num_decoded, self.longest = tokenizer, 0, 0

    def decode(self, tokens, **kwargs):
        self.num_decoded += len(tokens)
        self.longest = max(self.longest, len(tokens))
        return self.tokenizer.decode(tokens, **kwargs)


def pieces(tokenizer, tokens: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [detokenizer.add(token, index == len(tokens) - 1) for index, token in enumerate(tokens)]


def test_pieces_make_up_the_decoded_text(tokenizer):
    tokens = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert len(tokens) > 8 * WINDOW
    streamed = pieces(tokenizer, tokens)
    assert "".join(streamed) == tokenizer.decode(tokens, skip_special_tokens=True)
    assert sum(map(bool, streamed)) > len(tokens) // 4 and not any("\ufffd" in piece for piece in streamed)


@pytest.mark.parametrize("seed", range(3))
def test_words_in_random_order_are_decoded_as_a_whole(tokenizer, seed):
    words = TEXT.split(" ")
    random.Random(seed).shuffle(words)
    tokens = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    assert "".join(pieces(tokenizer, tokens)) == tokenizer.decode(tokens, skip_special_tokens=True)


def test_special_tokens_do_not_lose_the_space_after_them(tokenizer):
    special = tokenizer.eos_token_id
    words = tokenizer("one two three", add_special_tokens=False)["input_ids"]
    tokens = (words + [special] * (WINDOW + 3)) * 3 + words
    assert "".join(pieces(tokenizer, tokens)) == tokenizer.decode(tokens, skip_special_tokens=True)


def test_detokenization_is_linear(tokenizer):
    tokens = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    tokens = (tokens * (4000 // len(tokens) + 1))[:4000]
    counting = CountingTokenizer(tokenizer)
    pieces(counting, tokens)
    assert counting.num_decoded <= 2 * WINDOW * len(tokens) and counting.longest <= 2 * WINDOW


def test_invalid_bytes_are_bounded_too(tokenizer):
    byte = next(token for token in range(len(tokenizer)) if tokenizer.decode([token]) == "\ufffd")
    counting = CountingTokenizer(tokenizer)
    streamed = pieces(counting, [byte] * (3 * MAX_UNFINISHED))
    assert counting.longest <= MAX_UNFINISHED + WINDOW and set("".join(streamed)) == {"\ufffd"}


def test_an_incomplete_character_is_held_back_until_the_end(tokenizer):
    tokens = tokenizer("so 🦜", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(tokens[:-1]).endswith("\ufffd")
    whole = pieces(tokenizer, tokens)
    assert whole[-2] == "" and whole[-1].endswith("🦜")
    cut = pieces(tokenizer, tokens[:-1])
    assert "".join(cut[:-1]).strip() == "so" and cut[-1].endswith("\ufffd")


def test_text_that_may_change_is_held_back():
    assert split_visible("It is ", (), False) == ("It is", " ", False)
    assert split_visible("It is ", (), True) == ("It is", " ", False)
    assert split_visible("one\n#", ("\n##",), False) == ("one", "\n#", False)
    assert split_visible("one\n#", ("\n##",), True) == ("one\n#", "", False)
    assert split_visible("one\n## two END", ("END", "\n##"), False) == ("one", "", True)


def run(tokenizer, text: str, sampling: Sampling) -> tuple[list[str], Result]:
    """Generate a text, whatever the model, by logits that prefer its next token."""
    tokens = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    prompt = Prompt(torch.zeros(1, 5, dtype=torch.long), [], 0, 0)
    state = RequestState(prompt, sampling, sampling.max_new_tokens or 10000, tokenizer, frozenset(tokens[-1:]))
    shown: list[str] = []
    for token in tokens:
        logits = torch.zeros(len(tokenizer))
        logits[token] = 1.0
        for event in state.step(logits):
            if isinstance(event, Result):
                assert state.position == 4 + len(event.token_ids)
                return shown, event
            shown.append(event)
    raise AssertionError("the request did not finish")


def test_a_request_ends_at_its_end_token_without_white_space(tokenizer):
    shown, result = run(tokenizer, "  An answer. \n ", Sampling())
    assert "".join(shown) == result.text == "An answer." and result.finish_reason == "stop"


def test_a_request_ends_at_its_maximum_length(tokenizer):
    shown, result = run(tokenizer, "one two three four " * 10, Sampling(max_new_tokens=40))
    expected = tokenizer.decode(result.token_ids, skip_special_tokens=True).strip()
    assert "".join(shown) == result.text == expected and result.finish_reason == "length"
    assert len(result.token_ids) == 40


def test_an_answer_cut_within_a_character_keeps_those_before_it(tokenizer):
    """A sentencepiece tokenizer decodes all bytes in a row as invalid if the last of them are."""
    length = len(tokenizer("中文", add_special_tokens=False)["input_ids"]) - 1
    shown, result = run(tokenizer, "中文", Sampling(max_new_tokens=length))
    assert "".join(shown) == result.text and result.text[0] == "中" and set(result.text[1:]) == {"\ufffd"}


def test_a_stop_string_across_tokens_ends_a_long_answer(tokenizer):
    text = TEXT + "here it ends: STOP and no more"
    shown, result = run(tokenizer, text, Sampling(stop=("ends: STOP", "never")))
    before = text[: text.index("ends: STOP")].strip()
    assert "".join(shown) == result.text and result.finish_reason == "stop"
    assert result.text.split() == before.split()
