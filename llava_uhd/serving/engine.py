"""Serving engine: continuous batching of many requests on one loaded model.

A request is prepared on a small pool of threads (images decoded and sliced, text tokenized), queued, and then run on
the one thread that owns the model. That thread alternates between reading one queued prompt and one decoding step of
all running requests, so that new answers start without delaying running ones for long, and a finished request makes
room at once.

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

from ..confidence import Calibration
from ..deprecation import renamed_fields
from ..generation.generator import Generator
from ..generation.prompt import Message, Prompt, image_parts, room_for_answer
from ..generation.request import RequestState
from ..generation.result import Result, Timings
from ..generation.sampling import MAX_NEW_TOKENS, Sampling
from .generation import DeadlineExceeded, EngineBusy, EngineClosed, Event, Generation
from .prompts import PromptBuilder

if TYPE_CHECKING:
    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor

log = logging.getLogger(__name__)
T = TypeVar("T")


@renamed_fields(max_waiting="max_queue_size", preparers="preprocessing_workers")  # former names
@dataclass(frozen=True)
class EngineOptions:
    """Options and limits of the engine.

    Attributes:
        batch_size: number of requests decoded together; every step has this many rows, used or not.
        max_queue_size: maximum number of queued requests, prepared or not; further ones are rejected.
        deadline: maximum seconds from arrival to the last token.
        max_new_tokens: maximum number of new tokens of a request that sets none.
        cache_bytes: maximum size of the image feature cache.
        prefix_bytes: maximum size of the prefix KV cache.
        max_pixels: maximum number of pixels of an image; None takes the processor's limit.
        max_total_pixels: maximum number of pixels of all images of a request; at least `max_pixels` are allowed.
        image_seconds: maximum seconds for decoding and slicing the images of a request.
        preprocessing_workers: number of preprocessing threads.
    """

    batch_size: int = 8
    max_queue_size: int = 64
    deadline: float = 120.0
    max_new_tokens: int = MAX_NEW_TOKENS
    cache_bytes: int = 256 * 2**20
    prefix_bytes: int = 512 * 2**20
    max_pixels: int | None = None
    max_total_pixels: int = 2**27
    image_seconds: float = 30.0
    preprocessing_workers: int = 2

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_queue_size", "max_new_tokens", "max_total_pixels", "preprocessing_workers"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("cache_bytes", "prefix_bytes"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        for name in ("deadline", "image_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


@renamed_fields(late="timed_out", refused="rejected")
@dataclass
class Stats:
    """Counters of the engine: queue, caches, and finished requests by outcome."""

    waiting: int
    running: int
    finished: int
    failed: int
    cancelled: int
    timed_out: int
    rejected: int
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
    """A request before preprocessing, which makes it larger."""

    generation: Generation
    messages: Sequence[Message]
    max_slices: int | None

    @property
    def has_images(self) -> bool:
        return bool(image_parts(self.messages))


@dataclass
class _Waiting:
    """A prepared request that waits for a free row."""

    generation: Generation
    prompt: Prompt
    max_new_tokens: int
    timings: Timings


class Engine:
    """Answer requests with one model by continuous batching. `submit` may be called from any thread.

    Args:
        model: loaded model.
        processor: processor of the model.
        options: options and limits.
        calibration: calibration of the confidence in answers; None if the model has none.
    """

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
        self.generator = Generator(
            model, processor, self.options.batch_size, self.options.cache_bytes, self.options.prefix_bytes
        )
        self.context = self.generator.decoder.context
        max_pixels, max_total = self.options.max_pixels, self.options.max_total_pixels
        self.prompts = PromptBuilder(
            processor,
            self.generator.features,
            max_pixels,
            max_total_pixels=max(max_total, max_pixels or 0),
            context=self.context,
            image_seconds=self.options.image_seconds,
        )
        self._changed = threading.Condition()
        self._requests: deque[_Request] = deque()
        self._ready: deque[_Waiting] = deque()
        self._tasks: deque[tuple[Future, Callable[[], Any]]] = deque()
        self._running: dict[Generation, RequestState] = {}
        self._preparing = 0
        self._closing = False
        self._mean_seconds = 1.0  # of a request once it runs
        self._counts = dict.fromkeys(
            ("finished", "failed", "cancelled", "timed_out", "rejected", "generated_tokens"), 0
        )
        # Prepared requests are large, so few wait. One thread takes requests of text alone: images never hold them up.
        self._max_ready = 2 * self.options.preprocessing_workers
        self._preparers = [
            threading.Thread(target=self._prepare_all, args=(index == 0,), name=f"prepare-{index}", daemon=True)
            for index in range(self.options.preprocessing_workers + 1)
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
        """Queue a request and return at once.

        Args:
            messages: conversation, see `PromptBuilder.build`.
            sampling: sampling parameters; greedy by default.
            max_slices: maximum number of slices per image; None takes the model's default.
            deadline: deadline in seconds from now; None takes the engine's.
            emit: callback for each event on the engine's threads, instead of `Generation.events`; must not block.

        Raises:
            EngineBusy: the queue is full.
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
        """Check that a request would be accepted now.

        Raises:
            EngineBusy: the queue is full.
            EngineClosed: the engine is shutting down.
        """
        with self._changed:
            if self._closing:
                raise EngineClosed("the engine is shutting down")
            waiting = self._num_waiting()
            if waiting >= self.options.max_queue_size:
                self._counts["rejected"] += 1
                raise EngineBusy(waiting, math.ceil(waiting * self._mean_seconds / self.generator.decoder.batch_size))

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
        """Return the counters."""
        features, prefixes = self.generator.features, self.generator.prefixes
        with self._changed:
            return Stats(
                waiting=self._num_waiting(),
                running=len(self._running),
                cached_images=len(features),
                cache_bytes=features.num_bytes,
                cache_hits=features.hits,
                cache_misses=features.misses,
                cached_prefixes=len(prefixes),
                prefix_bytes=prefixes.num_bytes,
                prefix_hits=prefixes.hits,
                prefix_misses=prefixes.misses,
                **self._counts,
            )

    def close(self) -> None:
        """Reject further requests, finish the accepted ones, and end the threads."""
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
        """Return the next request once there is room for it; None once the engine closes and none is left."""
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
                requested = generation.sampling.max_new_tokens
                room = room_for_answer(prompt.input_ids.shape[1], self.context, requested or 1)
                timings = Timings(prepare=time.monotonic() - started)
                max_new_tokens = min(requested or self.options.max_new_tokens, room)
        except Exception as exception:  # raised where the answer is read
            error = exception
        with self._changed:
            self._preparing -= 1
            if error is None:
                self._ready.append(_Waiting(generation, prompt, max_new_tokens, timings))
            self._changed.notify_all()
        if error is not None:
            self._end(generation, error)

    def _end(self, generation: Generation, event: Event) -> None:
        """Count a finished request by its outcome and emit its last event."""
        if isinstance(event, Result):
            kind = "finished"
        elif generation.cancelled:
            kind = "cancelled"
        else:
            kind = "timed_out" if isinstance(event, DeadlineExceeded) else "failed"
        with self._changed:
            self._counts[kind] += 1
        self._emit(generation, event)

    @staticmethod
    def _emit(generation: Generation, event: Event) -> None:
        assert generation.emit is not None
        try:
            generation.emit(event)
        except Exception:  # a failing callback must not end other requests
            log.exception("the callback of a request failed")
            generation.cancel()

    @torch.inference_mode()
    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._ready or self._tasks or self._running):
                    if self._closing and not self._preparing and not self._requests:
                        return
                    self._changed.wait()
                tasks, self._tasks = self._tasks, deque()
            for future, function in tasks:
                try:
                    future.set_result(function())
                except BaseException as error:  # raised again in `run`
                    future.set_exception(error)
            self._drop_overdue()
            self._admit_one()
            if self._running:
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
        for generation in list(self._running):
            if error := generation.overdue():
                del self._running[generation]
                dropped.append((generation, error))
        for generation, error in dropped:
            self._end(generation, error)

    def _admit_one(self) -> None:
        """Read the prompt of the request that has waited longest, if a row is free."""
        with self._changed:
            if not self._ready or len(self._running) >= self.generator.decoder.batch_size:
                return
            item = self._ready.popleft()
            self._changed.notify_all()  # there is room for a prepared one
        generation, timings = item.generation, item.timings
        timings.wait = time.monotonic() - generation.arrived - timings.prepare
        try:
            state = self.generator.new_state(
                item.prompt, generation.sampling, item.max_new_tokens, generation.arrived, timings
            )
            logits = self.generator.prefill(state)
        except Exception as error:  # fails this request alone
            log.exception("a prompt failed")
            self._end(generation, error)
            return
        self._running[generation] = state
        self._advance(generation, state, logits)

    def _step(self) -> None:
        """Decode one token of all running requests."""
        running = list(self._running.items())
        try:
            logits = self.generator.step([state for _, state in running])
        except Exception as error:  # their caches may be spoilt: fails all requests of this step
            log.exception("a step failed")
            self._running = {}
            for generation, _ in running:
                self._end(generation, error)
            return
        for (generation, state), next_logits in zip(running, logits, strict=True):
            self._advance(generation, state, next_logits)

    def _advance(self, generation: Generation, state: RequestState, logits: torch.Tensor) -> None:
        """Draw the next token of a running request, emit its events, and remove the request once it is finished."""
        last: Event | None = None
        try:
            for event in state.step(logits):
                if isinstance(event, Result):
                    last = event
                else:
                    self._emit(generation, event)
            with self._changed:
                self._counts["generated_tokens"] += 1
        except Exception as error:  # logits that are not finite, for example: fails this request alone
            log.exception("a request failed")
            last = error
        if last is None:
            return
        del self._running[generation]
        if isinstance(last, Result):
            seconds = last.timings.encode + last.timings.prefill + last.timings.decode
            self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
        self._end(generation, last)
