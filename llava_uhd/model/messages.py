"""Conversations before the chat template: which `<image>` is a placeholder, and which is a word.

In a list of content parts only parts of type `image` are images, as in OpenAI's API; a text part is text, whatever it
says. A content that is one string may be of the LLaVA format, where `<image>` is the placeholder: it is read so if no
message of the conversation has an image part. A caller whose strings come from a user passes them through
`as_parts` first.

A placeholder that is meant as text is escaped with a noncharacter of Unicode after its first character. Special tokens
are matched before a text is normalized, so the escaped one is not matched; the tokenizer's normalizer then removes the
noncharacter, and the tokens are those of the plain text.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tokenizers import normalizers

Message = dict[str, Any]
ESCAPE = "\ufdd0"


def escape(text: str, tokens: Iterable[str]) -> str:
    """Return the text with each of the tokens in it escaped, so that it is tokenized as plain text."""
    for token in tokens:
        text = text.replace(token, token[:1] + ESCAPE + token[1:])
    return text


def remove_escapes(tokenizer: Any) -> bool:
    """Let a tokenizer's normalizer remove the escapes; return whether it can (a slow tokenizer has no normalizer)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    existing = backend.normalizer
    if existing is None or ESCAPE not in repr(existing):
        remove = normalizers.Replace(ESCAPE, "")
        backend.normalizer = remove if existing is None else normalizers.Sequence([remove, existing])
    return True


def as_parts(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with each string content as one text part, in which `<image>` is a word."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]


def escape_text(message: Message, tokens: Sequence[str]) -> Message:
    """Return the message with each of the tokens escaped in its text parts.

    Args:
        message: message whose content is a list of parts.
        tokens: strings to escape, such as the tokenizer's special tokens in what a user wrote.
    """
    parts = [
        {**part, "text": escape(part["text"], tokens)} if part.get("type") == "text" else part
        for part in message["content"]
    ]
    return {**message, "content": parts}


def prepare_messages(
    messages: Sequence[Message], images: Sequence[Any] | None, image_token: str, tokens: Sequence[str]
) -> list[Message]:
    """Return the messages for the chat template: text escaped, images at their placeholders.

    Args:
        messages: one conversation.
        images: images to put at its placeholders, in order; None if they are in its parts, or are passed elsewhere.
        image_token: placeholder of an image in a string.
        tokens: strings to escape in text.

    Raises:
        ValueError: there are more or fewer images than placeholders.
    """
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list | tuple) for part in content]
    has_image_parts = any(_is_image(part) for part in parts)
    left = None if images is None else iter(images)
    prepared = []
    for message, content in zip(messages, contents, strict=True):
        if isinstance(content, str):
            if has_image_parts:
                content = escape(content, tokens)
            elif left is not None and image_token in content:
                content = list(_split(content, image_token))
        elif isinstance(content, list | tuple):
            content = [
                {**part, "text": escape(part["text"], tokens)}
                if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
                else part
                for part in content
            ]
        prepared.append(message if content is None else {**message, "content": content})
    if left is not None:
        _fill(prepared, list(left))
    return prepared


def _is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("image", "image_url")


def _split(content: str, image_token: str) -> Iterator[Message]:
    """A string of the LLaVA format as parts."""
    for index, text in enumerate(content.split(image_token)):
        if index:
            yield {"type": "image"}
        if text:
            yield {"type": "text", "text": text}


def _fill(messages: list[Message], images: list[Any]) -> None:
    """Put the images into the image parts, in order."""
    parts = [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]
    placeholders = [part for part in parts if _is_image(part)]
    if len(placeholders) != len(images):
        raise ValueError(
            f"the messages have {len(placeholders)} image placeholders, but {len(images)} images were given"
        )
    filled = {
        id(placeholder): {"type": "image", "image": image}
        for placeholder, image in zip(placeholders, images, strict=True)
    }
    for message in messages:
        if isinstance(message.get("content"), list):
            message["content"] = [filled.get(id(part), part) for part in message["content"]]
