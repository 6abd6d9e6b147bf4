"""Limits of a request, each checked before work is spent on what exceeds it; `docs/limits.md` lists them."""

from dataclasses import dataclass, fields

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Limits of one request and of what the server holds of all requests.

    Attributes:
        body_bytes: bytes of a body (413).
        pending_bytes: bytes of all bodies that are being received or read (429).
        body_seconds: seconds for a body to arrive (408).
        json_values: values of a body, keys included (400).
        json_depth: nesting of a body (400).
        messages: messages of a request (400).
        parts: content parts of all messages (400).
        text: characters of all texts (400); None for `TEXT_PER_TOKEN` for each token of the model's context.
        images: images of a request (400).
        slices: largest `max_slices` a request may ask for (400).
    """

    body_bytes: int = 20 * MIB
    pending_bytes: int = 256 * MIB
    body_seconds: float = 30.0
    json_values: int = 20_000
    json_depth: int = 32
    messages: int = 1_000
    parts: int = 2_000
    text: int | None = None
    images: int = 16
    slices: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 0 if field.name == "images" else 1
            value = getattr(self, field.name)
            if value is not None and not (value >= least or (field.name == "body_seconds" and value > 0)):
                raise ValueError(f"{field.name} must be at least {least}, got {value}")


TEXT_PER_TOKEN = 32  # characters; long tokens of real vocabularies have as many
