"""Questions about rendered documents, and the token ids that `generate` answers them with."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import ExifTags, Image

from llava_uhd.generation.prompt import prepare, question_message
from llava_uhd.loading import load
from llava_uhd.synthetic.documents import make_document
from llava_uhd.synthetic.render import render

MAX_TOKENS = 32


@dataclass
class Question:
    """A request and the token ids of its answer.

    Attributes:
        images: images of the request.
        text: text after the images.
        max_slices: most slices of an image, None for the model's own.
        expected: token ids of the answer, its end included.
    """

    images: tuple[Image.Image, ...]
    text: str
    max_slices: int | None = None
    expected: list[int] = field(default_factory=list)

    def body(self, model: str) -> dict[str, Any]:
        """The request as JSON."""
        parts = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in self.images]
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
            "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": self.text}]}],
        }
        if self.max_slices is not None:
            body["mm_processor_kwargs"] = {"max_slices": self.max_slices}
        return body


def data_url(image: Image.Image) -> str:
    """An image as a data URL of a PNG."""
    file = io.BytesIO()
    image.save(file, "PNG", exif=image.getexif())
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def one_image(count: int, seed: str) -> list[Question]:
    """Questions about documents of one view and of many, each of its own."""
    documents = [make_document(seed, index, num_slices=1 + index % 6) for index in range(count)]
    return [Question((render(document.page),), document.questions[0].text) for document in documents]


def many_kinds(count: int, seed: str, two_images: int) -> dict[str, list[Question]]:
    """Every kind of request that is compared.

    Args:
        count: questions about one image.
        seed: seed of the documents.
        two_images: questions about two different images.
    """
    single = one_image(count, seed)
    pairs = [
        Question((first.images[0], second.images[0]), second.text)
        for first, second in zip(single, single[1:], strict=False)
    ]
    images = [question.images[0] for question in single[:4]]
    return {
        "one image": single,
        "two images": pairs[:two_images],
        "the same image twice": [Question((image, image), "What is the total?") for image in images],
        "text alone": [Question((), text) for text in ("What is 2 + 3?", "Hello there", " a leading space", "你好")],
        "the image token as text": [Question((image,), "Is <image> or </s> written here?") for image in images],
        "max_slices 1": [Question(question.images, question.text, max_slices=1) for question in single[:8]],
        "color modes": [Question((image,), "What is the total?") for image in color_modes(images[1])],
        "a strip": [Question((image.resize((800, 40)),), "What is written here?") for image in images],
    }


def color_modes(image: Image.Image) -> list[Image.Image]:
    """An image with alpha, with a palette, in gray, in black and white, and turned by its orientation tag."""
    alpha = Image.linear_gradient("L").resize(image.size)
    with_alpha = image.convert("RGBA")
    with_alpha.putalpha(alpha)
    turned = image.copy()
    turned.getexif()[ExifTags.Base.Orientation] = 6
    return [with_alpha, with_alpha.convert("LA"), image.convert("P"), image.convert("L"), image.convert("1"), turned]


def answer_with_package(folder: str, questions: Sequence[Question]) -> None:
    """Note the answers of `generate`, one question at a time."""
    model, processor = load(folder, device="cpu", dtype="float32")
    for question in questions:
        options = {} if question.max_slices is None else {"max_slices": question.max_slices}
        message = question_message(question.images, question.text)
        inputs = prepare(model, processor, [message], MAX_TOKENS, **options)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        question.expected = ids[0, inputs["input_ids"].shape[1] :].tolist()
