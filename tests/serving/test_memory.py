"""Memory of the server: bodies are freed at once, objects of the start are left out of collections."""

import asyncio
import gc
import sys
import weakref

import pytest

from llava_uhd.serving import memory
from llava_uhd.serving.body import BodyReader, parse_json
from llava_uhd.serving.errors import ApiError
from llava_uhd.serving.limits import Limits
from llava_uhd.serving.memory import drop_frames, freeze_objects, limit_arenas, trim_memory, trim_while_running


class Large:
    """Stands for a body."""


def test_dropped_frames_free_what_they_held():
    kept = []

    def fail():
        large = Large()
        kept.append(weakref.ref(large))
        raise KeyError("inner")

    def wrap():
        try:
            fail()
        except KeyError as error:
            raise ValueError("outer") from error

    gc.disable()
    try:
        try:
            wrap()
        except ValueError as error:
            caught = error
        assert kept[0]() is not None
        drop_frames(caught)
        assert kept[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("body", [b'{"a": "' + b"x" * 1000, b"[" * 100, b'"' + b"\xff" * 1000 + b'"'])
def test_a_refused_body_can_be_emptied_and_its_text_is_not_kept(body):
    reader, body = BodyReader(Limits()), bytearray(body)
    reader.pending = len(body)
    with pytest.raises(ApiError) as caught:
        parse_json(body, Limits(), 1000)
    assert caught.value.__cause__ is None and caught.value.__context__ is None  # a JSONDecodeError holds its text
    reader.release(body)  # fails while a view of it is held
    assert not body and reader.pending == 0


def test_frozen_objects_are_not_visited_again():
    try:
        freeze_objects()
        assert gc.get_freeze_count() > 10_000 and len(gc.get_objects()) < 10_000
    finally:
        gc.unfreeze()


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_arenas_are_limited_and_memory_is_trimmed(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "3")
    assert limit_arenas(10**6)  # the environment's counts
    assert trim_memory() in (True, False)


def test_memory_is_trimmed_after_requests_alone(monkeypatch):
    trimmed, requests = [], [0]
    monkeypatch.setattr(memory, "trim_memory", lambda: trimmed.append(requests[0]))

    async def run():
        task = asyncio.create_task(trim_while_running(lambda: requests[0], 0.01))
        await asyncio.sleep(0.1)
        assert trimmed == []
        requests[0] = 3
        await asyncio.sleep(0.2)
        task.cancel()

    asyncio.run(run())
    assert trimmed == [3]
