"""A request's body: received within its limits, and parsed only after its size as JSON was counted.

Python's parser holds the interpreter's lock from the first byte to the last, so it must never meet a document that
takes long. Strings cost it little, however long; what costs is the number of values. They are counted before, without
building any of them: the quotes of strings are found one after the other, and what lies between two strings is
searched for brackets and commas.
"""

import asyncio
import json
import re
from typing import Any

from starlette.requests import ClientDisconnect, Request

from .errors import ApiError, shorten
from .generation import Cancelled
from .limits import Limits

PIECE = 2**16  # bytes that are counted in one call
BYTES_PER_VALUE = 64  # of numbers, punctuation and indentation
BRACKETS = re.compile(rb"[\[\]{}]")
HALF_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class BodyReader:
    """Receives bodies, all of them together of at most `limits.pending_bytes`. Used on the event loop alone."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.pending = 0

    async def read(self, request: Request) -> bytearray:
        """Return the body, never more of it than allowed. The caller releases it with `release`.

        Raises:
            ApiError: 413 too large, 408 too slow, 415 compressed, 429 too much of others' is held.
            Cancelled: the client hung up.
        """
        limits = self.limits
        too_large = ApiError(413, f"the body has more than the {limits.body_bytes} bytes allowed", "body_too_large")
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.strip().lower() not in ("", "identity"):
            said = f"a body with the encoding {shorten(encoding)!r} is not read; send it as it is"
            raise ApiError(415, said, "unsupported_encoding")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > limits.body_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(limits.body_seconds):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > limits.body_bytes:
                        raise too_large
                    if self.pending + len(chunk) > limits.pending_bytes:
                        held = f"bodies of other requests take {self.pending} of {limits.pending_bytes} bytes"
                        raise ApiError(429, f"{held}; try again", "queue_full", headers={"Retry-After": "1"})
                    self.pending += len(chunk)
                    body += chunk
        except BaseException as error:
            self.release(body)
            if isinstance(error, TimeoutError):
                seconds = f"{limits.body_seconds:g}"
                raise ApiError(408, f"the body did not arrive within {seconds} s", "body_too_slow") from error
            if isinstance(error, ClientDisconnect):
                raise Cancelled("the client hung up while it sent its body") from error
            raise
        return body

    def release(self, body: bytearray) -> None:
        """Empty a body and count it as no longer held."""
        self.pending -= len(body)
        body.clear()  # whatever else refers to it


def parse_json(body: bytes | bytearray, limits: Limits, max_escapes: int) -> Any:
    """Return the values of a body.

    Args:
        body: bytes of the request.
        limits: limits of values and nesting.
        max_escapes: most backslashes: an escape is a character of a text, and images in base64 have none.

    Raises:
        ApiError: 400, naming the limit or why it is not JSON.
    """
    try:
        check_size(body, limits, max_escapes)
        values = load_json(body.decode("utf-8-sig"))
        if HALF_SURROGATE.search(body):
            json.dumps(values, ensure_ascii=False).encode()  # fails where half a surrogate pair is no text
        return values
    except UnicodeError:
        problem = "the body is not valid Unicode"
    except ValueError as error:
        problem = f"the body is not valid JSON: {error}"
    raise ApiError(400, problem, "invalid_json")  # without its cause, which holds the whole text


def load_json(text: str) -> Any:
    """Return the values of a text whose size is known to be small.

    Raises:
        ValueError: it is not JSON, or holds NaN, infinity or an endless number.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a JSON value")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def check_size(body: bytes | bytearray, limits: Limits, max_escapes: int) -> None:
    """Count values and nesting of a JSON text without parsing it.

    Raises:
        ApiError: 400, a limit is exceeded.
    """
    _count(body, b"\\", max_escapes, 0, "escaped characters")
    # A value has at most two strings, its key and itself.
    _count(body, b'"', 4 * limits.json_values + max_escapes, 0, "quotation marks")
    values = depth = place = num_outside = 0
    while place < len(body):
        quote = body.find(b'"', place)
        end = len(body) if quote < 0 else quote
        num_outside += end - place
        if num_outside > BYTES_PER_VALUE * limits.json_values:  # a number of a megabyte, or nothing but spaces
            raise _too_large("bytes outside of strings", BYTES_PER_VALUE * limits.json_values)
        for start in range(place, end, PIECE):
            piece = body[start : min(start + PIECE, end)]
            for delimiter in (b",", b"[", b"{"):
                values += piece.count(delimiter)
            if values > limits.json_values:
                raise _too_large("values", limits.json_values)
            for bracket in BRACKETS.findall(piece):
                depth += 1 if bracket in b"[{" else -1
                if depth > limits.json_depth:
                    raise ApiError(
                        400, f"the body nests deeper than the {limits.json_depth} levels allowed", "too_large"
                    )
        place = _end_of_string(body, quote) if quote >= 0 else end


def _end_of_string(body: bytes | bytearray, quote: int) -> int:
    """Return where the string that begins at a quote is over."""
    place = quote + 1
    while (end := body.find(b'"', place)) >= 0:
        first = end
        while first > place and body[first - 1] == ord("\\"):
            first -= 1
        if (end - first) % 2 == 0:
            return end + 1
        place = end + 1
    return len(body)


def _count(body: bytes | bytearray, token: bytes, most: int, count: int, name: str) -> None:
    for start in range(0, len(body), PIECE):
        count += body.count(token, start, start + PIECE)
        if count > most:
            raise _too_large(name, most)


def _too_large(name: str, most: int) -> ApiError:
    return ApiError(400, f"the body has more than the {most} {name} allowed", "too_large")
