"""Limits of a request: what exceeds one is rejected with its number, before work is spent on it."""

import io
import json
import struct
import time
import zlib

import pytest
from PIL import Image

from llava_uhd.generation.prompt import question_message
from llava_uhd.model.formats import MAX_SCANS, count_scans
from llava_uhd.model.image_processing_llava_uhd import decode_image
from llava_uhd.serving.api import parse_request
from llava_uhd.serving.body import check_size, parse_json
from llava_uhd.serving.engine import Engine, EngineOptions
from llava_uhd.serving.errors import MAX_MESSAGE, ApiError
from llava_uhd.serving.generation import DeadlineExceeded, Sampling
from llava_uhd.serving.images import MAX_REREAD, TimedFile, TooManyParts, decode, open_image
from llava_uhd.serving.limits import Limits
from tests.conftest import random_image
from tests.serving.conftest import png

USER = {"role": "user", "content": "hi"}
TEXT = {"type": "text", "text": ""}


def refusal(values, limits: Limits | None = None, **options) -> ApiError:
    body = values if isinstance(values, bytes) else json.dumps({"model": "small", **values}).encode()
    with pytest.raises(ApiError) as rejected:
        parse_request(body, "small", limits, **options)
    return rejected.value


@pytest.mark.parametrize(
    "values, limits, said",
    [
        ({"messages": [USER] * 4}, {"messages": 3}, "4 messages; at most 3"),
        ({"messages": [{"role": "user", "content": [TEXT] * 4}]}, {"parts": 3}, "4 content parts"),
        ({"messages": [USER] * 4}, {"json_values": 10}, "more than the 10 values"),
        ({"messages": [USER], "metadata": {"a": {"b": {"c": 1}}}}, {"json_depth": 3}, "deeper than the 3 levels"),
        ({"messages": [USER], "max_slices": 65}, {}, "at most 64 slices may be asked for, got 65"),
        ({"messages": [USER], "mm_processor_kwargs": {"max_slices": 65}}, {}, "at most 64 slices"),
    ],
)  # fmt: skip
def test_each_limit_is_told_with_its_number(values, limits, said):
    error = refusal(values, Limits(**limits))
    assert error.status == 400 and said in error.message
    body = json.dumps({"model": "small", **values}).encode()
    if limits:
        assert parse_request(body, "small", Limits()).messages


def test_the_texts_of_all_messages_are_limited_together():
    messages = [
        {"role": "user", "content": "a" * 60},
        {"role": "user", "content": [{"type": "text", "text": "b" * 41}]},
    ]
    assert "101 characters of text; 100 are" in refusal({"messages": messages}, max_text=100).message
    escaped = b'{"model": "small", "messages": [{"role": "user", "content": "%s"}]}' % (b"\\n" * 101)
    assert "more than the 100 escaped characters" in refusal(escaped, max_text=100).message


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"[]," * 6_000_000 + b"[]]",
        b"[" * 19_000_000,
        b'{"messages": [' + b'{"role":"user","content":""},' * 655_000 + b"{}]}",
        b'{"text": "' + b"a" * 19_000_000 + b'"}',
        b'{"text": "' + b'\\"' * 9_000_000 + b'"}',
        b'{"number": ' + b"1" * 19_000_000 + b"}",
        b"{" + b" " * 19_000_000 + b"}",
        b'""' * 9_000_000,
        b"{" + b'"a":1,' * 3_000_000 + b'"a":1}',
        b'{"number": 1' + b"0" * 4000 + b"}",
    ],
    ids=["lists", "brackets", "messages", "text", "quotes", "number", "spaces", "strings", "keys", "long number"],
)
def test_absurd_bodies_are_refused_in_little_time(body):
    started = time.thread_time()
    error = refusal(body)
    assert error.status == 400 and len(error.message) < 200
    assert time.thread_time() - started < 0.5  # seconds of this thread


def test_sizes_are_counted_outside_of_strings_alone():
    text = 'a "quoted\\" [{,}] \\\\'
    values = {"model": text, "list": [text, [text], {text: text}]}
    for limits in (Limits(json_values=100, json_depth=2), Limits(json_values=6, json_depth=3)):
        with pytest.raises(ApiError):
            check_size(json.dumps(values).encode(), limits, 100)
    check_size(json.dumps(values).encode(), Limits(json_values=7, json_depth=3), 100)
    assert parse_json(json.dumps(values).encode(), Limits(), 100) == values
    assert parse_json("\ufeff{}".encode(), Limits(), 100) == {}


def test_what_a_client_sent_is_not_echoed_at_length():
    long = "x" * 1_000_000
    for values in (
        {"model": long, "messages": [USER]},
        {"messages": [USER], long: 1},
        {"messages": [{"role": "user", "content": [{"type": long}]}]},
        {"messages": [USER], "max_slices": 10**4000},
        {"messages": [USER], "mm_processor_kwargs": {long: 1}},
    ):
        error = refusal(values, max_text=2**24)
        assert len(json.dumps(error.body())) < MAX_MESSAGE + 500
    with pytest.raises(ValueError, match="1000 characters; one has 600000") as rejected:
        Sampling(stop=("s" * 600_000,))
    assert len(str(rejected.value)) < 200


# Images


def bomb(side: int, scans: int) -> bytes:
    """A progressive JPEG whose smallest scan is repeated."""
    file = io.BytesIO()
    Image.new("L", (side, side), 200).save(file, "JPEG", progressive=True)
    data, positions = file.getvalue(), []
    place = data.find(b"\xff\xda")
    while place >= 0:
        positions.append(place)
        place = data.find(b"\xff\xda", place + 2)
    first, last = positions[-2], positions[-1]
    return data[:last] + data[first:last] * scans + data[last:]


def test_jpeg_scans_are_counted_and_limited():
    for options, scans in (({}, 1), ({"progressive": True}, 10)):
        file = io.BytesIO()
        random_image(80, 60).save(file, "JPEG", **options)
        assert count_scans(file.getvalue()) == scans
        inside_a_comment = file.getvalue()[:2] + b"\xff\xfe\x00\x08" + b"\xff\xda" * 3 + file.getvalue()[2:]
        assert count_scans(inside_a_comment) == scans
        assert decode_image(inside_a_comment).size == (80, 60)
    for data in (bomb(64, 2000), bomb(64, MAX_SCANS)):
        with pytest.raises(ValueError, match="more than 100 scans"):
            decode_image(data)
    assert decode_image(bomb(64, 50)).size == (64, 64)
    for cut in range(0, 400, 7):
        count_scans(bomb(64, 3)[:cut])


def test_a_decode_ends_at_its_deadline():
    image = open_image(bomb(2048, 90), "image 1", 2**26, time.monotonic() + 60)
    assert isinstance(image.fp, TimedFile)
    # A small part of the time that a quick machine takes, 50 ms.
    image.fp.deadline = time.monotonic() + 0.005
    with pytest.raises(DeadlineExceeded):
        decode(image, "image 1", 2**26, image.fp.deadline)
    with pytest.raises(DeadlineExceeded):
        open_image(png(30, 20), "image 1", 2**26, time.monotonic() - 1)


def test_parts_of_a_file_are_limited():
    """Each part costs a loop of Python; a file of 20 MB has room for millions."""
    data, comment = png(30, 20), _chunk(b"tEXt", b"k\0v")
    jpeg = io.BytesIO()
    Image.new("RGB", (30, 20)).save(jpeg, "JPEG")
    head, pixels = data[:33], data[33:-12]
    rejected = {
        "before": head + comment * 200_000 + pixels,
        "after": head + pixels + comment * 300_000,
        "empty": head + _chunk(b"IDAT", b"") * 300_000 + pixels,
        "jpeg": jpeg.getvalue()[:2] + b"\xff\xfe\0\2" * 200_000 + jpeg.getvalue()[2:],
        "fill": jpeg.getvalue()[:2] + b"\xff" * 1_000_000 + jpeg.getvalue()[2:],
        "ppm": b"P3 1000 1000 255 " + b"#\n" * 1_000_000,
    }
    for name, content in rejected.items():
        end = time.monotonic() + 60
        started = time.thread_time()
        with pytest.raises(ValueError, match="too many parts|at most 100"):
            decode(open_image(content, name, 2**26, end), name, 2**26, end)
        assert time.thread_time() - started < 3, name
    some = head + comment * 500 + pixels + comment * 500
    assert decode(open_image(some, "some", 2**26, end), "some", 2**26, end).size == (30, 20)


def test_a_file_is_not_read_over_and_over():
    file = TimedFile(bytes(100_000), time.monotonic() + 60)
    for _ in range(MAX_REREAD):
        file.seek(0)
        assert len(file.read()) == 100_000
    with pytest.raises(TooManyParts, match="more than 8 times its bytes"):
        file.seek(0)
        file.read()
    # Tags of a TIFF that all point to the same bytes are counted before they are read.
    place = 8 + 2 + 12 * 1000 + 4
    tags = b"".join(struct.pack("<HHII", 0x8000 + index, 7, 50_000, place) for index in range(1000))
    content = b"II*\0" + struct.pack("<IH", 8, 1000) + tags + bytes(50_004)
    with pytest.raises(ValueError, match="image 1 has EXIF or TIFF tags of 50000000 bytes in 62"):
        open_image(content, "image 1", 2**26, time.monotonic() + 60)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_large_images_of_every_format_stay_below_the_limit_of_parts(kind):
    file, end = io.BytesIO(), time.monotonic() + 60
    Image.effect_noise((2500, 2000), 60).convert("RGB").save(file, kind)
    image = open_image(file.getvalue(), "image", 2**26, end)
    assert decode(image, "image", 2**26, end).size == (2500, 2000)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_images_that_take_too_long_are_a_mistake_of_the_request_and_not_a_missed_deadline(loaded):
    with Engine(*loaded, EngineOptions(batch_size=2, image_seconds=1e-6)) as engine:
        with pytest.raises(ValueError, match="more than 1e-06 s to decode"):
            engine.submit([question_message([png(300, 200)], "?")]).result()
        assert engine.submit([question_message([], "?")], Sampling(max_new_tokens=1)).result().token_ids


def test_sizes_are_checked_before_anything_is_decoded(loaded, monkeypatch):
    decoded = []
    monkeypatch.setattr("llava_uhd.serving.prompts.decode", lambda *args: decoded.append(args))
    file = io.BytesIO()
    Image.new("1", (2000, 2000), 1).save(file, "PNG")
    with Engine(*loaded, EngineOptions(batch_size=2, max_total_pixels=5_000_000)) as engine:
        with pytest.raises(ValueError, match="images alone have .* context is 2048"):
            engine.submit([question_message([file.getvalue()], "?")], max_slices=10_000).result()
        with pytest.raises(ValueError, match="more than the 5000000 pixels"):
            engine.submit([question_message([file.getvalue()] * 2, "?")], max_slices=1).result()
    assert not decoded


@pytest.mark.parametrize("kind", ["EPS", "JPEG2000", "ICO", "TGA"])
def test_other_formats_are_refused_at_every_door(kind):
    file = io.BytesIO()
    random_image(64, 64).save(file, kind)
    for read in (decode_image, lambda data: open_image(data, "image 1", 2**20, time.monotonic() + 9)):
        with pytest.raises(ValueError, match="not an image, or of a format"):
            read(file.getvalue())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_formats_that_are_read(kind):
    file = io.BytesIO()
    random_image(64, 48).save(file, kind)
    assert decode_image(file.getvalue()).size == (64, 48)
    image = open_image(file.getvalue(), "image 1", 2**20, time.monotonic() + 60)
    assert decode(image, "image 1", 2**20, time.monotonic() + 60).size == (64, 48)


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_formats_that_are_decoded_in_one_go_have_fewer_pixels(kind, monkeypatch):
    monkeypatch.setattr("llava_uhd.serving.images.MAX_PIXELS_AT_ONCE", 64 * 48 - 1)
    file = io.BytesIO()
    random_image(64, 48).save(file, kind)
    with pytest.raises(ValueError, match=f"64 x 48 pixels; at most 3071 are allowed of a {kind} file"):
        open_image(file.getvalue(), "image 1", 2**20, time.monotonic() + 60)


@pytest.mark.parametrize("values", [{"messages": 0}, {"body_bytes": 0}, {"images": -1}, {"body_seconds": 0}])
def test_impossible_limits(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        Limits(**values)
