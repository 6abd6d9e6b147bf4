"""One sample of the LLaVA format, checked: its messages and the names of its images.

    {"id": "7", "image": "page.png", "conversations": [{"from": "human", "value": "<image>\\nTotal?"},
                                                       {"from": "gpt", "value": "12.40"}]}

`image` is a name, a list of names, or absent.
"""

from dataclasses import dataclass
from typing import Any

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
IMAGE = "<image>"


class BadSample(ValueError):
    """A sample that cannot be used as it is."""


@dataclass(frozen=True)
class Conversation:
    """Messages for a chat template, `<image>` in their text, and the images in order."""

    messages: list[dict[str, str]]
    images: list[str]

    @property
    def text(self) -> str:
        return "\n".join(message["content"] for message in self.messages)


def read_conversation(record: Any) -> Conversation:
    """The conversation of a sample. Turns before the first question are dropped, as published.

    Raises:
        BadSample: it is none, or its placeholders are not as many as its images.
    """
    if not isinstance(record, dict) or not isinstance(record.get("conversations"), list):
        raise BadSample("it has no list of conversations")
    messages = []
    for place, turn in enumerate(record["conversations"]):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise BadSample(f"turn {place} has no text under 'value'")
        if turn.get("from") not in ROLES:
            raise BadSample(f"turn {place} is from {turn.get('from')!r}, which is none of {', '.join(ROLES)}")
        messages.append({"role": ROLES[turn["from"]], "content": turn["value"]})
    while messages and messages[0]["role"] == "assistant":
        messages.pop(0)
    spoken = [message["role"] for message in messages if message["role"] != "system"]
    if spoken[:2] != ["user", "assistant"]:
        raise BadSample("it has no answer to a question")
    if len(messages) - len(spoken) > 1 or (len(messages) > len(spoken) and messages[0]["role"] != "system"):
        raise BadSample("only its first turn may be from system")
    if any(role == following for role, following in zip(spoken, spoken[1:], strict=False)):
        raise BadSample("two turns in a row are from one side")
    images = record.get("image", [])
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise BadSample(f"'image' must be a name or a list of names, got {record['image']!r}")
    num_placeholders = sum(message["content"].count(IMAGE) for message in messages)
    if num_placeholders != len(images):
        raise BadSample(f"its text has {num_placeholders} {IMAGE} placeholders, but it has {len(images)} images")
    return Conversation(messages, images)
