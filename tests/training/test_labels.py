"""Labels against the published data preparation, on every published conversation."""

import pytest

from llava_uhd.training.labels import IGNORE, answer_labels, chatml_labels, plain_labels, vicuna_labels
from tests.conversations import (
    CASES,
    IMAGE,
    PLACEHOLDER,
    encode,
    llama_tokenizer,
    messages,
    one_token_processor,
    qwen_tokenizer,
)

QWEN = dict(turn_start=422, assistant_header=[64, 268, 279, 83, 198], always_learned={198, 422, 420})


def published(name):
    return [pytest.param(case, case[name], id=f"{case['name']}-{name}") for case in CASES if name in case]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_vicuna(case, legacy):
    golden = case[f"dec24_v1_legacy{legacy}"]
    processor = one_token_processor(llama_tokenizer(legacy=legacy), "vicuna")
    labels = vicuna_labels(
        golden["input_ids"], case["v1_prompt"], lambda text: len(encode(processor, text)), legacy=legacy
    )
    assert labels == golden["labels"]


def test_vicuna_ignores_a_sample_whose_rounds_do_not_add_up():
    case = CASES[1]
    processor = one_token_processor(llama_tokenizer(legacy=False), "vicuna")
    ids = case["dec24_v1_legacyFalse"]["input_ids"]
    labels = vicuna_labels(ids, case["v1_prompt"], lambda text: len(encode(processor, text)), legacy=True)
    assert labels == [IGNORE] * len(ids)


@pytest.mark.parametrize("legacy", [False, True])
def test_plain(legacy):
    golden = CASES[0][f"dec24_plain_legacy{legacy}"]
    assert plain_labels(golden["input_ids"], 2) == golden["labels"]


@pytest.mark.parametrize("case, golden", published("apr25_qwen_1_5"))
def test_chatml(case, golden):
    tokenizer = qwen_tokenizer()
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [422, 420]
    assert tokenizer("assistant\n")["input_ids"] == QWEN["assistant_header"]
    assert chatml_labels(golden["input_ids"], ignored={PLACEHOLDER}, **QWEN) == golden["labels"]


MARKED = [
    pytest.param(template, legacy, case, case[name], id=f"{template}-legacy{legacy}-{case['name']}")
    for template, published_name in (("vicuna", "v1"), ("plain", "plain"))
    for legacy in (False, True)
    for case in CASES
    if (name := f"dec24_{published_name}_legacy{legacy}") in case
]


@pytest.mark.parametrize("template, legacy, case, golden", MARKED)
def test_the_templates_marks_give_the_published_labels(template, legacy, case, golden):
    processor = one_token_processor(llama_tokenizer(legacy=legacy), template)
    assert marked_labels(processor, case) == golden["labels"]


@pytest.mark.parametrize("case, golden", published("apr25_qwen_1_5"))
def test_chatml_marks_are_the_answers_alone(case, golden):
    """Exclude the headers and newlines that the reference implementation learns besides."""
    labels = marked_labels(one_token_processor(qwen_tokenizer(), "qwen"), case)
    learned = [token for token in labels if token != IGNORE]
    tokenizer = qwen_tokenizer()
    answers = "".join(turn["value"] + "<|im_end|>" for turn in case["conversation"] if turn["from"] == "gpt")
    assert learned == tokenizer(answers)["input_ids"]
    assert all(label in (IGNORE, expected) for label, expected in zip(labels, golden["labels"], strict=True))


def marked_labels(processor, case):
    outputs = processor.apply_chat_template(
        messages(case["conversation"]),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs={"images": [IMAGE]} if case["has_image"] else {},
    )
    return answer_labels(outputs["input_ids"][0], outputs["assistant_masks"][0])


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(ValueError, match="3 tokens, but a mask of 2"):
        answer_labels([1, 2, 3], [0, 1])
