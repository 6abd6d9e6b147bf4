"""Chat templates against the published prompts, as text and as token ids."""

import pytest
from transformers import PreTrainedTokenizerBase

from llava_uhd.model.chat_templates import CHAT_TEMPLATES
from tests.conversations import CASES, IMAGE, encode, llama_tokenizer, messages, one_token_processor, qwen_tokenizer

NAMES = [case["name"] for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_vicuna_text(case):
    processor = one_token_processor(llama_tokenizer(), "vicuna")
    chat = messages(case["conversation"])
    assert processor.apply_chat_template(chat) == case["v1_prompt"]
    assert processor.apply_chat_template(chat[:1], add_generation_prompt=True) == case["v1_generation_prompt"]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_vicuna_ids(case, legacy):
    processor = one_token_processor(llama_tokenizer(legacy=legacy), "vicuna")
    prompt = processor.apply_chat_template(messages(case["conversation"]))
    assert encode(processor, prompt) == case[f"dec24_v1_legacy{legacy}"]["input_ids"]
    if not legacy:
        assert encode(processor, case["v1_generation_prompt"]) == case["v1_generation_ids_legacyFalse"]


@pytest.mark.parametrize("legacy", [False, True])
def test_plain_ids(legacy):
    processor = one_token_processor(llama_tokenizer(legacy=legacy), "plain")
    prompt = processor.apply_chat_template(messages(CASES[0]["conversation"]))
    assert encode(processor, prompt) == CASES[0][f"dec24_plain_legacy{legacy}"]["input_ids"]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_qwen_text_and_ids(case):
    processor = one_token_processor(qwen_tokenizer(), "qwen")
    chat = messages(case["conversation"])
    assert processor.apply_chat_template(chat[:1], add_generation_prompt=True) == case["qwen_1_5_generation_prompt"]
    assert encode(processor, processor.apply_chat_template(chat)) == case["apr25_qwen_1_5"]["input_ids"]


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_blocks_read_as_strings_do_and_the_image_comes_first(case, template):
    processor = one_token_processor(llama_tokenizer(), template)
    blocks = []
    for message in messages(case["conversation"]):
        text, placeholder, rest = message["content"].partition("<image>")
        content = [{"type": "text", "text": text}] if text else []
        content += [{"type": "image"}] if placeholder else []
        content += [{"type": "text", "text": rest}] if rest else []
        blocks.append({"role": message["role"], "content": content})
    as_strings = [
        {"role": message["role"], "content": turn["value"]}
        for message, turn in zip(blocks, case["after_preprocess_multimodal"], strict=True)
    ]
    assert processor.apply_chat_template(blocks) == processor.apply_chat_template(as_strings)


def test_several_images_keep_their_places():
    processor = one_token_processor(llama_tokenizer(), "qwen")
    content = [
        {"type": "text", "text": "first "},
        {"type": "image"},
        {"type": "text", "text": "second "},
        {"type": "image"},
    ]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}])
    assert "<|im_start|>user\nfirst <image>\nsecond <image>\n<|im_end|>" in prompt


@pytest.mark.parametrize(
    "template, start", [("vicuna", "Be brief. USER: hi "), ("qwen", "<|im_start|>system\nBe brief.<|im_end|>\n")]
)
def test_a_system_message_replaces_the_published_one(template, start):
    processor = one_token_processor(llama_tokenizer(), template)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert processor.apply_chat_template(chat).startswith(start)


@pytest.mark.parametrize("tokenizer", [llama_tokenizer(), llama_tokenizer(legacy=True), qwen_tokenizer()])
@pytest.mark.parametrize("template", ["vicuna", "qwen"])
def test_the_model_continues_what_it_was_trained_on(tokenizer: PreTrainedTokenizerBase, template):
    """The tokens of the generation prompt begin those of the whole conversation."""
    processor = one_token_processor(tokenizer, template)
    question = {"role": "user", "content": [{"type": "image", "image": IMAGE}, {"type": "text", "text": "How many?"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "42 of them"}]}
    prompt = processor.apply_chat_template([question], tokenize=True, add_generation_prompt=True)[0]
    whole = processor.apply_chat_template([question, answer], tokenize=True)[0]
    assert whole[: len(prompt)] == prompt
    marked = processor.apply_chat_template(
        [question, answer], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert marked["assistant_masks"][0].index(1) == len(prompt)
