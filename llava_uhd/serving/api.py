"""The chat-completions request of OpenAI's API, as far as this server answers it, and the answers' JSON.

Beyond the standard: `max_slices`; an image's `detail` of `low` sends its overview alone; `temperature` is 0 where none
is given; `generation_config`, which `transformers chat` sends in place of the standard's names. What would change an
answer and is not supported is refused, not ignored.
"""

import json
import time
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..answering import Message
from .errors import ApiError
from .generation import DeadlineExceeded, Result, Sampling
from .remote import ImageSource

# Sent by clients, of no account for the answer.
IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
NO_CHOICE: dict[str, Any] = {"tool_choice": ("none", "auto"), "response_format": ({"type": "text"},)}


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: Literal[1] | None = None
    max_slices: int | None = Field(default=None, ge=1)
    generation_config: str | None = None

    def sampling(self) -> Sampling:
        """How to draw, from the standard's names or else from `generation_config`."""
        other = self._generation_config()
        temperature = other.get("temperature") or 1.0 if other.get("do_sample") else 0.0
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_new_tokens=_first(self.max_completion_tokens, self.max_tokens, other.get("max_new_tokens")),
            temperature=_first(self.temperature, temperature),
            top_p=_first(self.top_p, other.get("top_p"), 1.0),
            seed=self.seed,
            stop=tuple(stop),
        )

    def _generation_config(self) -> dict[str, Any]:
        if self.generation_config is None:
            return {}
        values = _load_json(self.generation_config)
        if not isinstance(values, dict):
            raise ValueError(f"generation_config must be a JSON object, got {type(values).__name__}")
        numbers = {name: values.get(name) for name in ("max_new_tokens", "temperature", "top_p")}
        if any(isinstance(value, bool) or not isinstance(value, int | float | None) for value in numbers.values()):
            raise ValueError(f"generation_config holds something else than numbers: {numbers}")
        return values


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _load_json(text: str | bytes) -> Any:
    """Raises: ValueError: it is no JSON, holds NaN or infinity, or is nested too deeply."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_request(body: bytes, served_model: str) -> ChatRequest:
    """Read a request's body.

    Raises:
        ApiError: 400 naming the parameter that is wrong, 404 for another model.
    """
    try:
        values = _load_json(body)
        json.dumps(values, ensure_ascii=False).encode()  # fails where half a surrogate pair is no text
    except UnicodeError as error:
        raise ApiError(400, "the body is not valid Unicode", "invalid_json") from error
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", "invalid_json") from error
    if not isinstance(values, dict):
        raise ApiError(400, f"the body must be a JSON object, got {type(values).__name__}", "invalid_json")
    try:
        request = ChatRequest.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        raise ApiError(400, f"{place}: {first['msg']}", "invalid_value", place) from error
    for name, value in (request.model_extra or {}).items():
        if name not in IGNORED and value and value not in NO_CHOICE.get(name, ()):
            raise ApiError(400, f"{name} is not supported by this server", "unsupported_parameter", name)
    check_model(request.model, served_model)
    return request


def check_model(name: str, served_model: str) -> None:
    """Raises: ApiError: 404, this server has another model."""
    if name != served_model:
        raise ApiError(404, f"there is no model {name!r} here; there is {served_model!r}", "model_not_found", "model")


def read_messages(request: ChatRequest, images: ImageSource, max_images: int, deadline: float) -> list[Message]:
    """The conversation for the engine, its images as encoded bytes.

    Args:
        request: the body.
        images: reads the images' URLs.
        max_images: of the request.
        deadline: on the clock of `time.monotonic`; no image is begun after it.

    Raises:
        ApiError: 400, too many images, or one outside of a user's message, or one that may not be read.
        DeadlineExceeded: fetching them took too long.
    """
    parts = [part for message in request.messages if not isinstance(message.content, str) for part in message.content]
    count = sum(isinstance(part, ImagePart) for part in parts)
    if count > max_images:
        raise ApiError(400, f"the request has {count} images; at most {max_images} are allowed", "too_many_images")
    messages: list[Message] = []
    for message in request.messages:
        role = "system" if message.role == "developer" else message.role
        if isinstance(message.content, str):
            messages.append({"role": role, "content": message.content})
            continue
        if role != "user" and any(isinstance(part, ImagePart) for part in message.content):
            raise ApiError(400, f"images belong into the user's messages, not into the {role}'s", "invalid_value")
        messages.append({"role": role, "content": [_read_part(part, images, deadline) for part in message.content]})
    return messages


def _read_part(part: TextPart | ImagePart, images: ImageSource, deadline: float) -> Message:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if time.monotonic() > deadline:
        raise DeadlineExceeded("the images were not there in time")
    try:
        content = images.read(part.image_url.url)
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_image") from error
    overview_alone = {"max_slices": 1} if part.image_url.detail == "low" else {}
    return {"type": "image", "image": content, **overview_alone}


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

    def whole(self, result: Result) -> dict[str, Any]:
        message = {"role": "assistant", "content": result.text}
        choice = {"index": 0, "message": message, "finish_reason": result.finish_reason, "logprobs": None}
        return {
            **self.head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage(result),
            "timings": _rounded(result),
        }

    def piece(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {**self.head, "object": "chat.completion.chunk", "choices": [choice]}

    def usage_piece(self, result: Result) -> dict[str, Any]:
        chunk = {**self.head, "object": "chat.completion.chunk", "choices": []}
        return {**chunk, "usage": usage(result), "timings": _rounded(result)}


def _rounded(result: Result) -> dict[str, float]:
    return {name: round(seconds, 4) for name, seconds in asdict(result.timings).items()}
