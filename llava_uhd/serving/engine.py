"""The engine: one loaded model, many requests.

A request is prepared on a small pool of threads (images decoded and cut, text tokenized), waits, and then runs on the
one thread that owns the model. That thread reads one waiting prompt, takes a step with all rows, reads the next: new
answers begin without making the running ones wait for long, and a row that ends makes room at once.

    with Engine(*load("tiny")) as engine:
        for piece in engine.submit([question_message([Path("receipt.png")], "What is the total?")]).stream():
            print(piece, end="")
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import DynamicCache

from ..answering import Message
from ..confidence import Calibration
from ..kv_cache import can_fork, fork
from .decoding import Decoder
from .features import feature_cache
from .generation import (
    DeadlineExceeded,
    EngineBusy,
    EngineClosed,
    Event,
    Generation,
    Result,
    Sampling,
    Timings,
)
from .prefixes import prefix_cache, prefix_key
from .prompts import Prompt, PromptBuilder
from .row import Row

if TYPE_CHECKING:
    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class EngineOptions:
    """Bounds of the engine.

    Attributes:
        batch_size: answers written at a time; every step has this many rows, used or not.
        max_waiting: requests that may wait, being prepared or prepared; one more is refused.
        deadline: seconds from arrival to the last token.
        max_new_tokens: longest answer where a request names no length.
        cache_bytes: image features kept.
        prefix_bytes: keys and values kept of how conversations began, up to their last image.
        max_pixels: of an image; None as the processor says.
        max_total_pixels: of all images of a request; at least `max_pixels` are allowed.
        image_seconds: seconds that decoding and cutting the images of a request may take.
        preparers: threads that prepare requests.
    """

    batch_size: int = 8
    max_waiting: int = 64
    deadline: float = 120.0
    max_new_tokens: int = 512
    cache_bytes: int = 256 * 2**20
    prefix_bytes: int = 512 * 2**20
    max_pixels: int | None = None
    max_total_pixels: int = 2**27
    image_seconds: float = 30.0
    preparers: int = 2

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_waiting", "max_new_tokens", "max_total_pixels", "preparers"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("cache_bytes", "prefix_bytes"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        for name in ("deadline", "image_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


@dataclass
class Stats:
    """What the engine is doing, and how requests have ended since it began."""

    waiting: int
    running: int
    finished: int
    failed: int
    cancelled: int
    late: int
    refused: int
    generated_tokens: int
    cached_images: int
    cache_bytes: int
    cache_hits: int
    cache_misses: int
    cached_prefixes: int
    prefix_bytes: int
    prefix_hits: int
    prefix_misses: int


@dataclass
class _Request:
    """A request that is not prepared: what was sent, which is smaller than what it becomes."""

    generation: Generation
    messages: Sequence[Message]
    max_slices: int | None

    @property
    def has_images(self) -> bool:
        contents = [message["content"] for message in self.messages]
        return any(part["type"] == "image" for content in contents if not isinstance(content, str) for part in content)


@dataclass
class _Waiting:
    """A prepared request that waits for a row."""

    generation: Generation
    prompt: Prompt
    max_new_tokens: int
    timings: Timings


class Engine:
    """Answers requests with one model. `submit` may be called from any thread."""

    def __init__(
        self,
        model: "LlavaUhdForConditionalGeneration",
        processor: "LlavaUhdProcessor",
        options: EngineOptions | None = None,
        calibration: Calibration | None = None,
    ):
        self.model = model
        self.processor = processor
        self.options = options or EngineOptions()
        self.calibration = calibration
        self.features = feature_cache(self.options.cache_bytes)
        self.prefixes = prefix_cache(self.options.prefix_bytes)
        self.decoder = Decoder(model, self.options.batch_size)
        self.context: int = model.config.text_config.max_position_embeddings
        max_pixels, max_total = self.options.max_pixels, self.options.max_total_pixels
        self.prompts = PromptBuilder(
            processor,
            self.features,
            max_pixels,
            max_total_pixels=max(max_total, max_pixels or 0),
            context=self.context,
            image_seconds=self.options.image_seconds,
        )
        self._changed = threading.Condition()
        self._requests: deque[_Request] = deque()
        self._ready: deque[_Waiting] = deque()
        self._tasks: deque[tuple[Future, Callable[[], Any]]] = deque()
        self._rows: list[Row] = []
        self._preparing = 0
        self._closing = False
        self._mean_seconds = 1.0  # that a request takes once it runs
        self._counts = dict.fromkeys(("finished", "failed", "cancelled", "late", "refused", "generated_tokens"), 0)
        # Prepared requests are large, so few wait. One thread takes requests of text alone: images never hold them up.
        self._max_ready = 2 * self.options.preparers
        self._preparers = [
            threading.Thread(target=self._prepare_all, args=(index == 0,), name=f"prepare-{index}", daemon=True)
            for index in range(self.options.preparers + 1)
        ]
        for thread in self._preparers:
            thread.start()
        self._worker = threading.Thread(target=self._work, name="engine", daemon=True)
        self._worker.start()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def submit(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        max_slices: int | None = None,
        deadline: float | None = None,
        emit: Callable[[Event], None] | None = None,
    ) -> Generation:
        """Ask for an answer; returns at once.

        Args:
            messages: see `PromptBuilder.build`.
            sampling: how to draw; greedy by default.
            max_slices: most slices per image; None as the model was trained.
            deadline: seconds from now; None for the engine's own.
            emit: called with each event on the engine's threads, instead of `Generation.events`; must not block.

        Raises:
            EngineBusy: too many requests wait.
            EngineClosed: the engine is shutting down.
        """
        seconds = self.options.deadline if deadline is None else deadline
        generation = Generation(sampling or Sampling(), time.monotonic() + seconds, emit)
        with self._changed:
            self.check_room()
            self._requests.append(_Request(generation, messages, max_slices))
            self._changed.notify_all()
        return generation

    def check_room(self) -> None:
        """Whether a request would be taken now.

        Raises:
            EngineBusy, EngineClosed: it would not.
        """
        with self._changed:
            if self._closing:
                raise EngineClosed("the engine is shutting down")
            waiting = self._num_waiting()
            if waiting >= self.options.max_waiting:
                self._counts["refused"] += 1
                raise EngineBusy(waiting, math.ceil(waiting * self._mean_seconds / self.decoder.batch_size))

    def run(self, function: Callable[[], T]) -> T:
        """Call a function that uses the model, on the engine's thread, between two steps.

        Raises:
            EngineClosed: the engine is shutting down.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._closing:
                raise EngineClosed("the engine is shutting down")
            self._tasks.append((future, function))
            self._changed.notify_all()
        return future.result()

    def _num_waiting(self) -> int:
        return len(self._requests) + self._preparing + len(self._ready)

    def stats(self) -> Stats:
        with self._changed:
            return Stats(
                waiting=self._num_waiting(),
                running=len(self._rows),
                cached_images=len(self.features),
                cache_bytes=self.features.num_bytes,
                cache_hits=self.features.hits,
                cache_misses=self.features.misses,
                cached_prefixes=len(self.prefixes),
                prefix_bytes=self.prefixes.num_bytes,
                prefix_hits=self.prefixes.hits,
                prefix_misses=self.prefixes.misses,
                **self._counts,
            )

    def close(self) -> None:
        """Take no more requests, finish those that were taken, and end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in [*self._preparers, self._worker]:
            thread.join()

    def _prepare_all(self, only_text: bool) -> None:
        """Prepare requests in their order until the engine closes."""
        while (request := self._next_request(only_text)) is not None:
            self._prepare(request.generation, request.messages, request.max_slices)
            del request  # not kept while the next one is waited for

    def _next_request(self, only_text: bool) -> _Request | None:
        """Wait for a request and for room among the prepared ones; None once the engine closes and all are taken."""
        with self._changed:
            while True:
                if len(self._ready) < self._max_ready:
                    for request in self._requests:
                        if not (only_text and request.has_images):
                            self._requests.remove(request)
                            self._preparing += 1
                            return request
                if self._closing and not self._requests:
                    return None
                self._changed.wait()

    def _prepare(self, generation: Generation, messages: Sequence[Message], max_slices: int | None) -> None:
        started = time.monotonic()
        try:
            error = generation.overdue()
            if error is None:
                prompt = self.prompts.build(messages, max_slices, generation.deadline)
                length, wanted = prompt.input_ids.shape[1], generation.sampling.max_new_tokens
                room = self.context - length
                if room < (wanted or 1):
                    raise ValueError(
                        f"the prompt has {length} tokens and the answer may have {wanted or 1}, more than the model's "
                        f"context of {self.context}: take fewer slices or images, or a shorter question or answer"
                    )
                timings = Timings(prepare=time.monotonic() - started)
                max_new_tokens = min(wanted or self.options.max_new_tokens, room)
        except Exception as exception:  # told to whoever waits for the answer
            error = exception
        with self._changed:
            self._preparing -= 1
            if error is None:
                self._ready.append(_Waiting(generation, prompt, max_new_tokens, timings))
            self._changed.notify_all()
        if error is not None:
            self._end(generation, error)

    def _end(self, generation: Generation, event: Event) -> None:
        """Count how a request ended, and tell it."""
        if isinstance(event, Result):
            kind = "finished"
        elif generation.cancelled:
            kind = "cancelled"
        else:
            kind = "late" if isinstance(event, DeadlineExceeded) else "failed"
        with self._changed:
            self._counts[kind] += 1
        self._emit(generation, event)

    @staticmethod
    def _emit(generation: Generation, event: Event) -> None:
        assert generation.emit is not None
        try:
            generation.emit(event)
        except Exception:  # a listener that went away must not end the others' answers
            log.exception("a listener failed")
            generation.cancel()

    @torch.inference_mode()
    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._ready or self._tasks or self._rows):
                    if self._closing and not self._preparing and not self._requests:
                        return
                    self._changed.wait()
                tasks, self._tasks = self._tasks, deque()
            for future, function in tasks:
                try:
                    future.set_result(function())
                except BaseException as error:  # raised again where `run` was called
                    future.set_exception(error)
            self._drop_overdue()
            self._admit_one()
            if self._rows:
                self._step()

    def _drop_overdue(self) -> None:
        with self._changed:
            waiting: list[_Request | _Waiting] = [*self._requests, *self._ready]
            dropped = [(item.generation, error) for item in waiting if (error := item.generation.overdue())]
            if dropped:
                gone = {id(generation) for generation, _ in dropped}
                self._requests = deque(item for item in self._requests if id(item.generation) not in gone)
                self._ready = deque(item for item in self._ready if id(item.generation) not in gone)
                self._changed.notify_all()
        for row in list(self._rows):
            if error := row.generation.overdue():
                self._rows.remove(row)
                dropped.append((row.generation, error))
        for generation, error in dropped:
            self._end(generation, error)

    def _admit_one(self) -> None:
        """Read the prompt of the request that has waited longest, if a row is free."""
        with self._changed:
            if not self._ready or len(self._rows) >= self.decoder.batch_size:
                return
            item = self._ready.popleft()
            self._changed.notify_all()  # there is room for a prepared one
        generation, prompt, timings = item.generation, item.prompt, item.timings
        started = time.monotonic()
        timings.wait = started - generation.arrived - timings.prepare
        try:
            logits, cache = self._read(prompt, timings)
            tokenizer = self.processor.tokenizer
            row = Row(generation, prompt, cache, item.max_new_tokens, tokenizer, self.decoder.end_ids, timings)
            if self._take(row, logits):
                self._rows.append(row)
        except Exception as error:  # this request alone is lost
            log.exception("a prompt failed")
            self._end(generation, error)

    def _read(self, prompt: Prompt, timings: Timings) -> tuple[torch.Tensor, DynamicCache]:
        """The (vocabulary,) logits after a prompt, and its keys and values, which become the row's cache."""
        started = time.monotonic()
        if prompt.num_prefix_tokens:
            cache = self._read_prefix(prompt, timings)
            logits, cache = self.decoder.read(prompt.input_ids[:, prompt.num_prefix_tokens :], cache=cache)
        else:
            logits, cache = self.decoder.read(prompt.input_ids, self._encode(prompt, timings))
        timings.prefill = time.monotonic() - started - timings.encode
        return logits, cache

    def _read_prefix(self, prompt: Prompt, timings: Timings) -> DynamicCache:
        """Keys and values of a prompt up to its last image: those that are kept, if there are any."""
        key = prefix_key(prompt)
        known = self.prefixes.get(key)
        self.prefixes.count(hits=known is not None, misses=known is None)
        if known is not None:
            prompt.num_cached_images = len(prompt.images)
            self.features.count(hits=len(prompt.images))
            return fork(known)
        prefix = prompt.input_ids[:, : prompt.num_prefix_tokens]
        _, cache = self.decoder.read(prefix, self._encode(prompt, timings))
        if can_fork(cache):
            self.prefixes.put(key, fork(cache))
        return cache

    def _encode(self, prompt: Prompt, timings: Timings) -> torch.Tensor | None:
        started = time.monotonic()
        features = self.encode(prompt)
        timings.encode = time.monotonic() - started
        return features

    def encode(self, prompt: Prompt) -> torch.Tensor | None:
        """The (T, E) features of a prompt's images, from the cache where they are known; on the engine's thread."""
        features = []
        for key, image in prompt.images:
            known = image if image.features is not None else self.features.get(key)
            self.features.count(hits=known is not None, misses=known is None)
            if known is None:
                image.features = self.decoder.encode(image.inputs)
                del image.inputs["pixel_values"]
                self.features.put(key, image)
                known = image
            else:
                prompt.num_cached_images += 1
            assert known.features is not None
            features.append(known.features)
        return torch.cat(features) if features else None

    def _step(self) -> None:
        rows = self._rows
        try:
            logits = self.decoder.step(
                [row.last_token for row in rows], [row.position for row in rows], [row.cache for row in rows]
            )
        except Exception as error:  # their caches may be spoilt: all rows of this step are lost, later ones are not
            log.exception("a step failed")
            self._rows = []
            for row in rows:
                self._end(row.generation, error)
            return
        self._rows = [row for row, next_logits in zip(rows, logits, strict=True) if self._take(row, next_logits)]

    def _take(self, row: Row, logits: torch.Tensor) -> bool:
        """Let a row draw its token and tell what there is to tell; whether its answer goes on."""
        try:
            *pieces, last = row.take(logits) or [""]
        except Exception as error:  # logits that are no numbers, for one: this request alone is lost
            log.exception("a row failed")
            self._end(row.generation, error)
            return False
        for piece in [*pieces, last]:
            if isinstance(piece, str) and piece:
                self._emit(row.generation, piece)
        with self._changed:
            self._counts["generated_tokens"] += 1
        if not isinstance(last, Result):
            return True
        seconds = last.timings.encode + last.timings.prefill + last.timings.decode
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
        self._end(row.generation, last)
        return False
