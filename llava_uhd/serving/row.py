"""One answer in the making: draws its tokens, turns them into text, and knows when it is over."""

import time
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache, TemperatureLogitsWarper, TopPLogitsWarper

from .generation import Event, Generation, Result, Timings
from .prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_TEMPERATURE = 1e-5  # below it every other token is improbable, and float32 overflows
UNFINISHED = "\ufffd"  # what a tokenizer makes of the first bytes of a character


class Sampler:
    """Draws tokens from logits as one request wants it, from a source of chance of its own."""

    def __init__(self, temperature: float, top_p: float, seed: int | None):
        self.greedy = temperature < MIN_TEMPERATURE
        self.generator = torch.Generator()
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)
        self.warpers: list = []
        if not self.greedy and temperature != 1:
            self.warpers.append(TemperatureLogitsWarper(float(temperature)))
        if not self.greedy and top_p < 1:
            self.warpers.append(TopPLogitsWarper(top_p))

    def draw(self, logits: torch.Tensor) -> int:
        """Return a token drawn from (vocabulary,) logits."""
        if self.greedy:
            return int(logits.argmax())
        scores = logits.float().cpu()[None]
        for warp in self.warpers:
            scores = warp(None, scores)
        return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=self.generator))


def visible_text(text: str, stop: tuple[str, ...], is_final: bool) -> tuple[str, bool]:
    """What of an answer so far may be shown, and whether a stop string ended it.

    Before the end, whatever may yet turn out otherwise is held back: white space that may be the last, a character
    that is not complete, the beginning of a stop string.
    """
    ends = [place for string in stop if (place := text.find(string)) >= 0]
    if ends:
        return text[: min(ends)].strip(), True
    if not is_final:
        text = text.rstrip(UNFINISHED)
        text = text[: len(text) - max((_overlap(text, string) for string in stop), default=0)]
    return text.strip(), False


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of the text that begins the stop string without completing it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


class Row:
    """A request whose prompt was read.

    Attributes:
        generation: the request.
        cache: the row's keys and values.
        last_token: drawn, but not yet in the cache.
        position: of that token in the conversation.
    """

    def __init__(
        self,
        generation: Generation,
        prompt: Prompt,
        cache: DynamicCache,
        max_new_tokens: int,
        tokenizer: "PreTrainedTokenizerBase",
        end_ids: frozenset[int],
        timings: Timings,
    ):
        sampling = generation.sampling
        self.generation = generation
        self.prompt = prompt
        self.cache = cache
        self.max_new_tokens = max_new_tokens
        self.tokenizer = tokenizer
        self.end_ids = end_ids
        self.timings = timings
        self.sampler = Sampler(sampling.temperature, sampling.top_p, sampling.seed)
        self.position = prompt.input_ids.shape[1] - 1
        self.tokens: list[int] = []
        self.probabilities: list[float] = []
        self.shown = ""
        self.began = time.monotonic()

    @property
    def last_token(self) -> int:
        return self.tokens[-1]

    def take(self, logits: torch.Tensor) -> list[Event]:
        """Draws the next token; returns what there is to tell about it, last a `Result` if the answer is over."""
        token = self.sampler.draw(logits)
        self.tokens.append(token)
        self.probabilities.append(float(logits.float().log_softmax(dim=-1)[token].exp()))
        self.position += 1
        if len(self.tokens) == 1:
            self.timings.first_token = time.monotonic() - self.generation.arrived
        is_end = token in self.end_ids
        is_full = len(self.tokens) >= self.max_new_tokens
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        text, is_stopped = visible_text(text, self.generation.sampling.stop, is_end or is_full)
        events: list[Event] = []
        if text.startswith(self.shown) and text != self.shown:
            events.append(text[len(self.shown) :])
            self.shown = text
        if is_end or is_stopped or is_full:
            events.append(self.result(text, "stop" if is_end or is_stopped else "length"))
        return events

    def result(self, text: str, finish_reason: str) -> Result:
        now = time.monotonic()
        self.timings.decode = now - self.began
        self.timings.total = now - self.generation.arrived
        return Result(
            text=text,
            token_ids=self.tokens,
            token_probabilities=self.probabilities,
            finish_reason=finish_reason,
            num_prompt_tokens=self.prompt.input_ids.shape[1],
            num_image_tokens=self.prompt.num_image_tokens,
            num_cached_images=self.prompt.num_cached_images,
            timings=self.timings,
        )
