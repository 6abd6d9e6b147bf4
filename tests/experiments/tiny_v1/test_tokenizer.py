"""The byte tokenizer, and the conversation as the processor and the trainer write it."""

import random

import pytest
from PIL import Image

from experiments.tiny_v1.samples import IGNORED, collate, make_sample
from experiments.tiny_v1.setting import build_config
from experiments.tiny_v1.symbols import FIRST_CHARACTER, sequence_symbols
from experiments.tiny_v1.tokenizer import CHAT_TEMPLATE, EOS_ID, IMAGE_ID, build_tokenizer, byte_id, encode
from llava_uhd.model.processing_llava_uhd import LlavaUhdProcessor
from llava_uhd.synthetic import Document, make_document, render


@pytest.mark.parametrize("text", ["Total: $12.30", "  two  spaces\n", "naïve Größe 100 €", "日本 \t"])
def test_any_text_comes_back(text):
    tokenizer = build_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == encode(text)
    assert tokenizer.decode(ids) == text


def test_ascii_ids():
    tokenizer = build_tokenizer()
    assert tokenizer(",\n", add_special_tokens=False)["input_ids"] == [byte_id(","), byte_id("\n")]


def conversation(document: Document, image: Image.Image) -> list[dict]:
    first, second = document.questions[:2]
    return [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": first.text}]},
        {"role": "assistant", "content": [{"type": "text", "text": first.answer}]},
        {"role": "user", "content": [{"type": "text", "text": second.text}]},
        {"role": "assistant", "content": [{"type": "text", "text": second.answer}]},
    ]


@pytest.mark.parametrize("index", [0, 1, 7])
def test_training_sequences_are_the_processors(index):
    """Training tokens equal those of `processor` for the same conversation."""
    document = make_document(1, index, kind="form")
    document = Document(document.kind, document.page, document.questions[:2])
    image = render(document.page)
    processor = LlavaUhdProcessor.from_config(build_config(), build_tokenizer(), chat_template=CHAT_TEMPLATE)
    prompt = processor.apply_chat_template(conversation(document, image), tokenize=False)
    ids = processor(images=[image], text=[prompt])["input_ids"][0]
    for seed in range(20):
        sample = make_sample(document, random.Random(seed), max_questions=2)
        asked = [document.questions[0].text, document.questions[1].text]
        if sample.input_ids.index(encode(asked[0])[0]) and sample.input_ids == list(ids):
            break
    else:
        pytest.fail("no order of the questions gives the processor's sequence")
    labels = [label for label in sample.labels if label != IGNORED]
    answers = [question.answer for question in document.questions]
    assert labels == [*encode(answers[0]), EOS_ID, *encode(answers[1]), EOS_ID]


def test_collate_pads_on_the_right():
    samples = [make_sample(make_document(1, index), random.Random(0), 3) for index in range(3)]
    ids, labels, pointers = collate(samples)
    assert ids.shape == labels.shape == pointers.shape == (3, max(len(sample.input_ids) for sample in samples))
    for row, sample in enumerate(samples):
        assert ids[row, : len(sample.input_ids)].tolist() == sample.input_ids
        assert (labels[row, len(sample.input_ids) :] == IGNORED).all()
        assert (pointers[row, len(sample.input_ids) :] == -1).all()


def test_pointers_lead_to_the_printed_characters():
    """A pointer is the position of an image token in whose window the next character of the answer stands."""
    right = wrong = 0
    for index in range(8):
        sample = make_sample(make_document(1, index), random.Random(0), 5)
        symbols = sequence_symbols(sample.document, sample.plan)
        windows = iter(symbols)
        window_at = {at: next(windows) for at, token in enumerate(sample.input_ids) if token == IMAGE_ID}
        for position, pointer in enumerate(sample.pointers):
            printed = sample.input_ids[position + 1] if pointer >= 0 else byte_id(" ")
            if printed != byte_id(" "):
                found = any(byte_id(chr(symbol - FIRST_CHARACTER + 32)) == printed for symbol in window_at[pointer])
                right, wrong = right + found, wrong + (not found)
    assert right > 100 and wrong <= 0.02 * right  # a window holds at most four characters
