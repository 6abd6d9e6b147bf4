"""The chat-completions request of OpenAI's API, as far as this server answers it, and the answers' JSON.

Beyond the standard: `max_slices`; an image's `detail` of `low` sends its overview alone; `temperature` is 0 where none
is given; `generation_config`, which `transformers chat` sends in place of the standard's names. What would change an
answer and is not supported is refused, not ignored.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator

from ..confidence import Calibration
from ..model.messages import Message
from .body import load_json, parse_json
from .documents import has_pages, read_pages
from .errors import ApiError, shorten
from .generation import DeadlineExceeded, Result, Sampling
from .limits import Limits
from .parameters import MESSAGE_FIELDS, check_generation_config, is_neutral
from .remote import ImageSource


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    """An image's URL, and how much of it is to be seen: `low` is the overview alone."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: ImageUrl

    @field_validator("image_url", mode="before")
    @classmethod
    def _url_alone(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value


class FileContent(BaseModel):
    """A document in a data: URL, and its name."""

    file_data: str
    filename: str | None = None


class FilePart(BaseModel):
    type: Literal["file"]
    file: FileContent


PARTS = ("text", "image_url", "file")
Part = Annotated[TextPart | ImagePart | FilePart, Field(discriminator="type")]
Content = Annotated[
    Annotated[str, Tag("string")] | Annotated[list[Part], Tag("parts")],
    Discriminator(lambda content: "string" if isinstance(content, str) else "parts"),
]


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant"]
    content: Content

    @property
    def parts(self) -> list[TextPart | ImagePart | FilePart]:
        return [] if isinstance(self.content, str) else self.content

    def texts(self) -> Iterator[str]:
        if isinstance(self.content, str):
            yield self.content
        yield from (part.text for part in self.parts if isinstance(part, TextPart))


class StreamOptions(BaseModel):
    include_usage: bool | None = False


class ProcessorOptions(BaseModel):
    """Options of the image processor, under the name that vLLM has for them."""

    model_config = ConfigDict(extra="forbid")

    max_slices: int | None = Field(default=None, ge=1)


class ChatRequest(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: Literal[1] | None = None
    max_slices: int | None = Field(default=None, ge=1)
    mm_processor_kwargs: ProcessorOptions | None = None
    generation_config: str | None = None

    @field_validator("max_tokens", "max_completion_tokens", "seed")
    @classmethod
    def _fits_64_bits(cls, value: int | None) -> int | None:
        return _checked_integer(value)

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_is_strings(cls, value: Any) -> Any:
        """Name one mistake where a union would name one for each of its types."""
        if not (value is None or isinstance(value, str) or isinstance(value, list)):
            raise ValueError("must be a string or a list of strings")
        return [value] if isinstance(value, str) else value

    @property
    def slices(self) -> int | None:
        """Most slices of an image; None as the model was trained."""
        return _first(self.max_slices, self.mm_processor_kwargs and self.mm_processor_kwargs.max_slices)

    def sampling(self) -> Sampling:
        """Return how to draw, from the standard's names or else from `generation_config`."""
        other = self._generation_config()
        temperature = _first(other.get("temperature"), 1.0) if other.get("do_sample") else 0.0
        return Sampling(
            max_new_tokens=_first(self.max_completion_tokens, self.max_tokens, other.get("max_new_tokens")),
            temperature=float(_first(self.temperature, temperature)),
            top_p=float(_first(self.top_p, other.get("top_p"), 1.0)),
            seed=self.seed,
            stop=tuple(self.stop or ()),
        )

    def _generation_config(self) -> dict[str, Any]:
        if self.generation_config is None:
            return {}
        if len(self.generation_config) > MAX_GENERATION_CONFIG:
            raise ValueError(
                f"generation_config has {len(self.generation_config)} characters; {MAX_GENERATION_CONFIG} are allowed"
            )
        values = load_json(self.generation_config)
        if not isinstance(values, dict):
            raise ValueError(f"generation_config must be a JSON object, got {type(values).__name__}")
        for name in ("temperature", "top_p"):
            if not _is_number(values.get(name)):
                raise ValueError(f"{name} of generation_config must be a number")
            if isinstance(values.get(name), int):
                _checked_integer(values[name], f"{name} of generation_config ")
        length = values.get("max_new_tokens")
        if not _is_number(length) or isinstance(length, float):
            raise ValueError("max_new_tokens of generation_config must be a whole number")
        _checked_integer(length, "max_new_tokens of generation_config ")
        check_generation_config(values)
        return values


MAX_GENERATION_CONFIG = 2**16  # characters


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _checked_integer(value: int | None, name: str = "") -> int | None:
    """Return an integer that fits 64 bits; JSON has any.

    Raises:
        ValueError: it does not.
    """
    if value is not None and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name}must fit 64 bits, got an integer of {value.bit_length()} bits")
    return value


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def parse_request(
    body: bytes | bytearray, served_model: str, limits: Limits | None = None, max_text: int = 2**20
) -> ChatRequest:
    """Return a request from its body.

    Args:
        body: bytes of the request.
        served_model: name of the model that the server has.
        limits: limits of a request.
        max_text: most characters of all texts.

    Raises:
        ApiError: 400 naming the parameter that is wrong, 404 for another model.
    """
    limits = limits or Limits()
    values = parse_json(body, limits, max_text)
    if not isinstance(values, dict):
        raise ApiError(400, f"the body must be a JSON object, got {type(values).__name__}", "invalid_json")
    _check_count("messages", values.get("messages"), limits.messages)
    try:
        request = ChatRequest.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = _place(first["loc"], values)
        raise ApiError(400, f"{place}: {_mistake(first, place)}", "invalid_value", place) from error
    check_model(request.model, served_model)
    for name, value in (request.model_extra or {}).items():
        if not is_neutral(name, value):
            raise _unsupported(name)
    for index, message in enumerate(request.messages):
        extra = message.model_extra or {}
        for name in MESSAGE_FIELDS:
            if extra.get(name):
                raise _unsupported(f"messages.{index}.{name}")
    _check_count("content parts", [part for message in request.messages for part in message.parts], limits.parts)
    length = sum(len(text) for message in request.messages for text in message.texts())
    if length > max_text:
        raise ApiError(400, f"the messages have {length} characters of text; {max_text} are allowed", "too_large")
    if (request.slices or 1) > limits.slices:
        said = f"max_slices: at most {limits.slices} slices may be asked for, got {shorten(str(request.slices), 40)}"
        raise ApiError(400, said, "invalid_value", "max_slices")
    return request


def _unsupported(name: str) -> ApiError:
    return ApiError(400, f"{shorten(name)} is not supported by this server", "unsupported_parameter", name)


def _check_count(name: str, values: Any, most: int) -> None:
    if isinstance(values, list) and len(values) > most:
        raise ApiError(400, f"the request has {len(values)} {name}; at most {most} are allowed", "too_large")


def _place(steps: tuple[int | str, ...], values: Any) -> str:
    """Return where in the body a mistake is; steps that name the kind of a value and not a place are left out."""
    place: list[str] = []
    for index, step in enumerate(steps):
        is_last = index == len(steps) - 1
        if isinstance(values, dict) and (step in values or is_last):
            place.append(str(step))
            values = values.get(step)
        elif isinstance(values, list) and isinstance(step, int):
            place.append(str(step))
            values = values[step]
    return ".".join(place) or "body"


def _mistake(error: Any, place: str) -> str:
    """Return what is wrong with a value, in the words of JSON."""
    kind = error["type"]
    if kind == "missing":
        return "it is missing"
    if kind == "union_tag_invalid":
        return f"parts of type {shorten(str(error['ctx']['tag']))!r} are not supported; there are {', '.join(PARTS)}"
    if kind == "union_tag_not_found":
        return f"a part needs a type, one of {', '.join(PARTS)}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        example = ', such as {"url": "data:image/png;base64,..."}' if place.endswith("image_url") else ""
        return f"must be a JSON object{example}"
    if kind == "list_type":
        return "must be a string or a list of parts" if place.endswith("content") else "must be a list"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    return str(error["msg"])


def check_model(name: str, served_model: str) -> None:
    """Check that this server has the model.

    Raises:
        ApiError: 404, it has another one.
    """
    if name != served_model:
        said = f"there is no model {shorten(name)!r} here; there is {served_model!r}"
        raise ApiError(404, said, "model_not_found", "model")


@dataclass(frozen=True)
class PartReader:
    """Reads the images and documents of requests.

    Attributes:
        images: reads URLs.
        max_images: most images of a request, pages of documents among them.
        num_pixels: pixels of a page that the model can use where a request asks for no number of slices.
        view_pixels: pixels of a slice.
        max_pixels: most pixels of an image.
        seconds: time that rendering a document may take.
    """

    images: ImageSource
    max_images: int
    num_pixels: int
    view_pixels: int
    max_pixels: int
    seconds: float

    def read(self, request: ChatRequest, deadline: float) -> list[Message]:
        """Return the conversation for the engine, its images as encoded bytes.

        Args:
            request: the request.
            deadline: deadline on the clock of `time.monotonic`; no image is read after it.

        Raises:
            ApiError: 400, too many images, or one outside of a user's message, or one that may not be read.
            DeadlineExceeded: fetching them took too long.
        """
        parts = [part for message in request.messages for part in message.parts]
        self._check_number(sum(isinstance(part, ImagePart | FilePart) for part in parts))
        num_pixels = self.num_pixels if request.slices is None else request.slices * self.view_pixels
        messages: list[Message] = []
        num_images = 0
        for index, message in enumerate(request.messages):
            role = "system" if message.role == "developer" else message.role
            if isinstance(message.content, str):
                messages.append({"role": role, "content": message.content})
                continue
            if role != "user" and any(isinstance(part, ImagePart | FilePart) for part in message.content):
                raise ApiError(400, f"images belong into the user's messages, not into the {role}'s", "invalid_value")
            content: list[Message] = []
            for number, part in enumerate(message.content):
                if isinstance(part, TextPart):
                    content.append({"type": "text", "text": part.text})
                    continue
                if time.monotonic() > deadline:
                    raise DeadlineExceeded("the images were not there in time")
                try:
                    is_low = isinstance(part, ImagePart) and part.image_url.detail == "low"
                    overview_alone = {"max_slices": 1} if is_low else {}
                    pages = self._pages(part, self.max_images - num_images, num_pixels, deadline)
                    read = [{"type": "image", "image": page, **overview_alone} for page in pages]
                except ValueError as error:
                    place = f"messages.{index}.content.{number}"
                    raise ApiError(400, str(error), "invalid_image", place) from error
                num_images += len(read)
                self._check_number(num_images)
                content += read
            messages.append({"role": role, "content": content})
        return messages

    def _check_number(self, number: int) -> None:
        if number > self.max_images:
            said = f"the request has {number} images; at most {self.max_images} are allowed"
            raise ApiError(400, said, "too_many_images")

    def _pages(self, part: ImagePart | FilePart, most: int, num_pixels: int, deadline: float) -> list[bytes]:
        """Return an image, or the pages of a document."""
        if isinstance(part, ImagePart):
            name, url = "the document", part.image_url.url
        else:
            name, url = shorten(part.file.filename or "the file"), part.file.file_data
            url = url if url[:5].lower() == "data:" else f"data:;base64,{url}"
        content = self.images.read(url)
        if not has_pages(content):
            return [content]
        return read_pages(content, name, max(most, 1), num_pixels, self.max_pixels, self.seconds, deadline)


def usage(result: Result) -> dict[str, Any]:
    prompt, completion = result.num_prompt_tokens, len(result.token_ids)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"image_tokens": result.num_image_tokens},
    }


class Completion:
    """The JSON of one answer, whole or in pieces."""

    def __init__(self, identity: str, model: str):
        self.head = {"id": f"chatcmpl-{identity}", "created": int(time.time()), "model": model}

    def whole(self, result: Result, calibration: Calibration | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": result.text}
        choice = {"index": 0, "message": message, "finish_reason": result.finish_reason, "logprobs": None}
        choice |= result.confidence(calibration).as_json()
        return {
            **self.head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage(result),
            "timings": _rounded(result),
        }

    def piece(self, delta: dict[str, str]) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": None, "logprobs": None}
        return {**self.head, "object": "chat.completion.chunk", "choices": [choice]}

    def last_piece(self, result: Result, calibration: Calibration | None) -> dict[str, Any]:
        chunk = self.piece({})
        chunk["choices"][0] |= {
            "finish_reason": result.finish_reason,
            **result.confidence(calibration).as_json(),
        }
        return chunk

    def usage_piece(self, result: Result) -> dict[str, Any]:
        chunk = {**self.head, "object": "chat.completion.chunk", "choices": []}
        return {**chunk, "usage": usage(result), "timings": _rounded(result)}


def _rounded(result: Result) -> dict[str, float]:
    return {name: round(seconds, 4) for name, seconds in asdict(result.timings).items()}
