"""State of one running request: sampling, incremental detokenization, stop conditions."""

import time
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache, TemperatureLogitsWarper, TopPLogitsWarper

from .prompt import Prompt
from .result import Result, Timings
from .sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_TEMPERATURE = 1e-5  # below it every other token is improbable, and float32 overflows
UNFINISHED = "\ufffd"  # decoded from the first bytes of a character
WINDOW = 32  # tokens decoded again with every further one
CONTEXT = 8  # tokens of it that are kept when the window moves on
MAX_UNFINISHED = 256  # tokens after which an unfinished character is taken as it is


class Sampler:
    """Draw tokens from logits with a random generator of its own.

    Args:
        sampling: sampling parameters.
    """

    def __init__(self, sampling: Sampling):
        self.greedy = sampling.temperature < MIN_TEMPERATURE
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)
        self.warpers: list = []
        if not self.greedy and sampling.temperature != 1:
            self.warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if not self.greedy and sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))

    def draw(self, logits: torch.Tensor) -> int:
        """Return a token drawn from (vocabulary,) logits."""
        if self.greedy:
            return int(logits.argmax())
        scores = logits.float().cpu()[None]
        for warp in self.warpers:
            scores = warp(None, scores)
        return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=self.generator))


class Detokenizer:
    """Incremental detokenization: every token decodes a bounded number of the tokens before it again.

    Args:
        tokenizer: tokenizer of the model; special tokens are skipped.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self._start = 0  # of the window
        self._read = 0  # tokens whose text was returned
        self._text = ""  # text of the window up to there

    def add(self, token: int, is_last: bool = False) -> str:
        """Return the text that a further token completes.

        Args:
            token: token id.
            is_last: True returns the rest of the text, even if its last character is incomplete.
        """
        self.tokens.append(token)
        text = self._decode(self._start)
        waits = not is_last and len(self.tokens) - self._read < MAX_UNFINISHED
        if waits and text.endswith(UNFINISHED):
            return ""
        if not text.startswith(self._text):  # a byte that fits none before it changes the text of all of them
            self._start, self._text = self._read, ""
            text = self._decode(self._start)
        piece = text[len(self._text) :]
        self._read, self._text = len(self.tokens), text
        if len(self.tokens) - self._start >= WINDOW:
            start = len(self.tokens) - CONTEXT
            kept = self._decode(start)
            # A window without text would lose the space before the next word, and one may begin within a character.
            if kept.strip() and text.endswith(kept):
                self._start, self._text = start, kept
            elif len(self.tokens) - self._start >= MAX_UNFINISHED:
                self._start, self._text = self._read, ""
        return piece

    def _decode(self, start: int) -> str:
        return self.tokenizer.decode(self.tokens[start:], skip_special_tokens=True)


def split_visible(text: str, stop: tuple[str, ...], is_final: bool) -> tuple[str, str, bool]:
    """Return the part of unshown text that can be shown, the part held back, and whether a stop string was found.

    Held back until the end are trailing white space and the beginning of a stop string.

    Args:
        text: text that was not shown yet.
        stop: stop strings.
        is_final: whether no further text follows.
    """
    ends = [place for string in stop if (place := text.find(string)) >= 0]
    if ends:
        return text[: min(ends)].rstrip(), "", True
    held = 0 if is_final else max((_overlap(text, string) for string in stop), default=0)
    visible = text[: len(text) - held].rstrip()
    return visible, text[len(visible) :], False


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of the text that begins the stop string without completing it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


class RequestState:
    """A request from its prompt to its last token.

    Args:
        prompt: prompt of the request.
        sampling: sampling parameters.
        max_new_tokens: maximum number of new tokens.
        tokenizer: tokenizer of the model.
        end_ids: token ids that end the answer.
        arrived: time of arrival on the clock of `time.monotonic`; None for now.
        timings: seconds that preparing took.

    Attributes:
        cache: KV cache of the request; None before its prompt was read.
        position: position of the last token, which is not yet in the cache.
        num_cached_images: number of images whose features were cached.
    """

    def __init__(
        self,
        prompt: Prompt,
        sampling: Sampling,
        max_new_tokens: int,
        tokenizer: "PreTrainedTokenizerBase",
        end_ids: frozenset[int],
        arrived: float | None = None,
        timings: Timings | None = None,
    ):
        self.prompt = prompt
        self.sampling = sampling
        self.max_new_tokens = max_new_tokens
        self.end_ids = end_ids
        self.arrived = time.monotonic() if arrived is None else arrived
        self.timings = timings or Timings()
        self.sampler = Sampler(sampling)
        self.detokenizer = Detokenizer(tokenizer)
        self.cache: DynamicCache | None = None
        self.position = prompt.input_ids.shape[1] - 1
        self.num_cached_images = 0
        self._probabilities: list[float] = []
        self._shown: list[str] = []
        self._held = ""
        self._decode_started = 0.0

    @property
    def tokens(self) -> list[int]:
        """Generated token ids."""
        return self.detokenizer.tokens

    def step(self, logits: torch.Tensor) -> list[str | Result]:
        """Draw the next token from (vocabulary,) logits; return new text, and the result once the answer is finished.

        Args:
            logits: logits of the next token.
        """
        token = self.sampler.draw(logits)
        self._probabilities.append(float(logits.float().log_softmax(dim=-1)[token].exp()))
        self.position += 1
        now = time.monotonic()
        is_end = token in self.end_ids
        is_full = len(self.tokens) + 1 >= self.max_new_tokens
        is_last = is_end or is_full
        if not self.tokens:
            self._decode_started, self.timings.first_token = now, now - self.arrived
        text = self._held + self.detokenizer.add(token, is_last)
        text = text if self._shown else text.lstrip()
        visible, self._held, is_stopped = split_visible(text, self.sampling.stop, is_last)
        events: list[str | Result] = []
        if visible:
            self._shown.append(visible)
            events.append(visible)
        if is_last or is_stopped:
            self.timings.decode, self.timings.total = now - self._decode_started, now - self.arrived
            events.append(
                Result(
                    text="".join(self._shown),
                    token_ids=self.tokens,
                    token_probabilities=self._probabilities,
                    finish_reason="stop" if is_end or is_stopped else "length",
                    num_prompt_tokens=self.prompt.input_ids.shape[1],
                    num_image_tokens=self.prompt.num_image_tokens,
                    num_cached_images=self.num_cached_images,
                    timings=self.timings,
                )
            )
        return events
