"""Prompts of the server: texts that come from users hold no placeholders."""

import pytest

from llava_uhd import LlavaUhdProcessor, built_in
from llava_uhd.generation.bounded import BoundedCache
from llava_uhd.serving.prompts import PromptBuilder
from tests.conftest import random_image


@pytest.mark.parametrize("content", ["the <image> tag", [{"type": "text", "text": "the <image> tag"}]])
def test_the_word_image_in_a_text_is_no_image(content):
    processor = LlavaUhdProcessor.from_pretrained(built_in("tiny"))
    builder = PromptBuilder(processor, BoundedCache(1000, lambda _: 1), None)
    for role in ("system", "user"):
        prompt = builder.build([{"role": role, "content": content}, {"role": "user", "content": "?"}], None)
        assert prompt.num_image_tokens == 0 and not prompt.images
        assert "the <image> tag" in processor.decode(prompt.input_ids[0])
    shown = [{"type": "image", "image": random_image(60, 40)}, {"type": "text", "text": "the <image> tag"}]
    prompt = builder.build([{"role": "user", "content": shown}], 1)
    assert prompt.num_image_tokens == processor.image_layout(60, 40, max_slices=1).num_image_tokens
