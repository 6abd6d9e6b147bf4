r"""Validation of a sample: messages and images.

    {"id": "7", "image": "page.png", "conversations": [{"from": "human", "value": "<image>\\nTotal?"},
                                                       {"from": "gpt", "value": "12.40"}]}

`image` (or `images`) is a name, a list of names, null or absent. In place of `conversations` (LLaVA) a sample may have
`messages` (`role` and `content`; content is text, or parts of text and images), `texts` (pairs of `user` and
`assistant`) or `question` and `answer`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
IMAGE = "<image>"


class BadSample(ValueError):
    """Error: a sample cannot be used."""


@dataclass(frozen=True)
class Conversation:
    """Messages for a chat template, `<image>` in their text, and the images in order.

    Attributes:
        messages: `role` and `content` of each turn.
        images: name of each image, or what a dataset has in its place.
    """

    messages: list[dict[str, str]]
    images: list[Any]

    @property
    def text(self) -> str:
        return "\n".join(message["content"] for message in self.messages)


def read_conversation(record: Any) -> Conversation:
    """Read the conversation of a sample. Turns before the first question are dropped, as published.

    Raises:
        BadSample: it is none, or its placeholders are not as many as its images.
    """
    form = next((name for name in FORMS if isinstance(record, Mapping) and record.get(name) is not None), None)
    if form is None:
        raise BadSample(f"it has no list of conversations, nor {', '.join(name for name in FORMS if name != FIRST)}")
    found: list[Any] = []  # images in the parts of messages
    messages = FORMS[form](record, found)
    for place, message in enumerate(messages):
        _check_text(message["content"], f"turn {place}")
    while messages and messages[0]["role"] == "assistant":
        messages.pop(0)
    roles = [message["role"] for message in messages if message["role"] != "system"]
    if roles[:2] != ["user", "assistant"]:
        raise BadSample("it has no answer to a question")
    if len(messages) - len(roles) > 1 or (len(messages) > len(roles) and messages[0]["role"] != "system"):
        raise BadSample("only its first turn may be from system")
    if any(role == following for role, following in zip(roles, roles[1:], strict=False)):
        raise BadSample("two turns in a row are from one side")
    for place, message in enumerate(messages):
        if message["role"] == "assistant" and IMAGE in message["content"]:
            raise BadSample(f"turn {place} is an answer and holds {IMAGE}: images belong to questions")
    images = _images(record, found)
    num_placeholders = sum(message["content"].count(IMAGE) for message in messages)
    if num_placeholders == 0 and images and form != FIRST:
        # Only the LLaVA format has image positions; otherwise images precede the first question.
        first = next(message for message in messages if message["role"] == "user")
        first["content"] = f"{IMAGE}\n" * len(images) + first["content"]
        num_placeholders = len(images)
    if num_placeholders != len(images):
        raise BadSample(f"its text has {num_placeholders} {IMAGE} placeholders, but it has {len(images)} images")
    return Conversation(messages, images)


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadSample(
            f"{where} has half a character, a lone surrogate ({ascii(text[error.start])}), at {error.start}"
        ) from error


def _images(record: Mapping[str, Any], found: list[Any]) -> list[Any]:
    """Return the images of a sample: those beside the conversation, or those in its messages."""
    beside = [name for name in ("image", "images") if record.get(name) is not None]
    if len(beside) > 1:
        raise BadSample("it has both 'image' and 'images'")
    images = record[beside[0]] if beside else []
    images = [images] if isinstance(images, str | bytes) or is_encoded_image(images) else images
    if not isinstance(images, list) or not all(isinstance(image, str) or is_encoded_image(image) for image in images):
        raise BadSample(f"{beside[0]!r} must be a name or a list of names, got {record[beside[0]]!r:.200}")
    for image in [*images, *found]:
        if isinstance(image, str):
            _check_text(image, "the name of its image")
            if "\0" in image or not image:
                raise BadSample(f"the name of its image is {image!r:.200}")
    if images and found:
        raise BadSample("it has images both beside its messages and in them")
    return images or found


def is_encoded_image(value: Any) -> bool:
    """Return whether a value is an image as datasets store it: `bytes`, or a `path` where there are none."""
    return (
        isinstance(value, Mapping)
        and value.keys() <= {"bytes", "path"}
        and (isinstance(value.get("bytes"), bytes) or isinstance(value.get("path"), str))
    )


def _turn(place: int, role: Any, content: Any, value: str) -> dict[str, str]:
    if not isinstance(content, str):
        raise BadSample(f"turn {place} has no text under {value!r}")
    if not isinstance(role, str) or role not in ROLES:
        raise BadSample(f"turn {place} is from {role!r:.200}, which is none of {', '.join(ROLES)}")
    return {"role": ROLES[role], "content": content}


def _turns(record: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    turns = record[name]
    if not isinstance(turns, list):
        raise BadSample(f"it has no list of {name}")
    for place, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise BadSample(f"turn {place} has no text: it is a {type(turn).__name__}")
    return turns


def _from_conversations(record: Mapping[str, Any], found: list[Any]) -> list[dict[str, str]]:
    return [
        _turn(place, turn.get("from"), turn.get("value"), "value")
        for place, turn in enumerate(_turns(record, "conversations"))
    ]


def _from_messages(record: Mapping[str, Any], found: list[Any]) -> list[dict[str, str]]:
    messages = []
    for place, turn in enumerate(_turns(record, "messages")):
        content = turn.get("content")
        if isinstance(content, list):
            content = "".join(_part(place, part, found) for part in content)
        messages.append(_turn(place, turn.get("role"), content, "content"))
    return messages


def _part(place: int, part: Any, found: list[Any]) -> str:
    """Return the text of a part of a message; an image in it is added to those found."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind == "image":
        # If dataset columns hold the images, the parts only give their positions.
        for name in ("image", "path", "url"):
            if isinstance(part.get(name), str) or is_encoded_image(part.get(name)):
                found.append(part[name])
                break
        return f"{IMAGE}\n"
    raise BadSample(f"turn {place} has a part that is neither text nor an image: {part!r:.200}")


def _from_texts(record: Mapping[str, Any], found: list[Any]) -> list[dict[str, str]]:
    messages = []
    for place, pair in enumerate(_turns(record, "texts")):
        for role in ("user", "assistant"):
            messages.append(_turn(2 * place, role, pair.get(role), role))
    return messages


def _from_question(record: Mapping[str, Any], found: list[Any]) -> list[dict[str, str]]:
    answer = record.get("answer")
    if answer is None:
        answer = record.get("answers")
    if isinstance(answer, list) and answer:
        answer = answer[0]
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        if not math.isfinite(answer):
            raise BadSample(f"its answer is {answer}, as of an empty cell")
        answer = str(answer)
    if not isinstance(record["question"], str) or not isinstance(answer, str):
        raise BadSample("its question must be text, and its answer text or a number")
    return [{"role": "user", "content": record["question"]}, {"role": "assistant", "content": answer}]


FIRST = "conversations"
FORMS: dict[str, Callable[[Mapping[str, Any], list[Any]], list[dict[str, str]]]] = {
    FIRST: _from_conversations,
    "messages": _from_messages,
    "texts": _from_texts,
    "question": _from_question,
}
