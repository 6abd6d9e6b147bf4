"""What one visitor's page remembers: the conversation, and the last answer for the panel to look into."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..answering import Message, question_message


@dataclass
class Session:
    """One visitor.

    Attributes:
        messages: turns that were answered, images as paths of their uploads.
        answer_ids: tokens of the last answer.
        max_slices: of the images, as the last question was asked.
    """

    messages: list[Message] = field(default_factory=list)
    answer_ids: list[int] = field(default_factory=list)
    max_slices: int | None = None

    @property
    def images(self) -> list[Path]:
        """All images of the conversation, in order."""
        parts = [part for message in self.messages for part in message["content"]]
        return [part["image"] for part in parts if part["type"] == "image"]

    @property
    def last_question(self) -> list[Message]:
        """The conversation up to the last question, which is what the last answer was made from."""
        return self.messages[:-1]

    def answered(
        self, files: Sequence[str], question: str, answer: str, answer_ids: list[int], max_slices: int | None
    ) -> "Session":
        """The session with one more turn."""
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        asked = question_message([Path(file) for file in files], question)
        return Session([*self.messages, asked, reply], answer_ids, max_slices)


def with_bytes(messages: Sequence[Message]) -> list[Message]:
    """Messages for the engine: uploads are read here, so that its errors do not name where they lie."""
    return [
        {
            **message,
            "content": [
                {**part, "image": part["image"].read_bytes()} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]
