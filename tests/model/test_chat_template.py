"""Chat templates against the published prompts, as text and as token ids."""

import copy

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llava_uhd import LlavaUhdImageProcessor, LlavaUhdProcessor, built_in
from llava_uhd.model.chat_templates import CHAT_TEMPLATES
from llava_uhd.model.messages import as_parts
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


@pytest.mark.parametrize("template", ["vicuna", "qwen", "plain"])
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


# No message is dropped, and text is text

ROLES_IN_ORDER = ["user", "assistant", "system", "user"]


def tiny_processor():
    return LlavaUhdProcessor.from_pretrained(built_in("tiny"))


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_no_template_drops_a_message(name):
    processor = one_token_processor(qwen_tokenizer(), name)
    for role in ("system", "tool", "developer", "function"):
        chat = [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a"}]
        chat += [{"role": role, "content": "CALLED OUT"}, chat[0]]
        try:
            prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
        except ValueError as error:
            assert f"got {role}" in str(error) and name != "qwen"
        else:
            assert prompt.count("CALLED OUT") == 1 and name != "plain"


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
@pytest.mark.parametrize(
    "message, complaint",
    [
        ({"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}, "type text or image, got video"),
        ({"role": "user", "content": [{"type": "text"}]}, "type text or image, got text"),
        ({"role": "user", "content": None}, "role user has no content"),
        ({"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}, "tool calls"),
    ],
)
def test_what_a_template_cannot_render_is_refused(name, message, complaint):
    processor = one_token_processor(qwen_tokenizer(), name)
    with pytest.raises(ValueError, match=complaint):
        processor.apply_chat_template([message])


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_tools_and_empty_conversations_are_refused(name):
    processor = one_token_processor(qwen_tokenizer(), name)
    with pytest.raises(ValueError, match="there are no messages"):
        processor.apply_chat_template([])
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    with pytest.raises(ValueError, match="cannot render tools, and 1 were given"):
        processor.apply_chat_template([{"role": "user", "content": "hi"}], tools=[tool])


def test_a_question_to_the_plain_template_is_refused():
    processor = one_token_processor(llama_tokenizer(), "plain")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    with pytest.raises(ValueError, match="takes images alone"):
        processor.apply_chat_template(chat, add_generation_prompt=True)
    assert processor.apply_chat_template(chat) == "<image>"


RESERVED = ["<image>", "<|slice_separator|>", "<|row_separator|>"]


def reserved_chat(word: str) -> list[dict]:
    text = f"what does the {word} tag mean, or{word}?"
    return [{"role": role, "content": [{"type": "text", "text": text}]} for role in ROLES_IN_ORDER]


@pytest.mark.parametrize("tokenizer", [llama_tokenizer(), llama_tokenizer(legacy=True), qwen_tokenizer()])
@pytest.mark.parametrize("name", ["vicuna", "qwen", "tiny"])
@pytest.mark.parametrize("word", RESERVED)
def test_a_reserved_word_in_a_text_part_is_tokenized_as_if_it_were_not_reserved(tokenizer, name, word):
    processor = one_token_processor(copy.deepcopy(tokenizer), name)
    rendered = processor.apply_chat_template(reserved_chat(word), add_generation_prompt=True)
    begins = tokenizer.bos_token is not None and rendered.startswith(tokenizer.bos_token)
    expected = tokenizer(rendered.replace("\ufdd0", ""), add_special_tokens=not begins)["input_ids"]
    ids = processor.apply_chat_template(reserved_chat(word), tokenize=True, add_generation_prompt=True)[0]
    assert ids == expected


@pytest.mark.parametrize("word", RESERVED)
def test_a_reserved_word_asked_of_the_built_in_model_is_its_letters(word):
    processor = tiny_processor()
    ids = processor.apply_chat_template(reserved_chat(word), tokenize=True, add_generation_prompt=True)[0]
    assert not {262, 263, processor.image_token_id} & set(ids)
    assert processor.decode(ids).count(word) == 2 * len(ROLES_IN_ORDER)


def test_only_image_parts_are_images():
    processor = one_token_processor(qwen_tokenizer(), "qwen")
    chat = [
        {"role": "system", "content": "Describe the <image>."},
        {"role": "user", "content": [{"type": "image", "image": IMAGE}, {"type": "text", "text": "<image> means?"}]},
        {"role": "assistant", "content": "An <image> tag."},
        {"role": "user", "content": [{"type": "text", "text": "And <|row_separator|>?"}]},
    ]
    ids = processor.apply_chat_template(chat, tokenize=True)[0]
    assert ids.count(processor.image_token_id) == 1
    text = processor.decode(ids)
    assert text.index("Describe the <image>.") < text.index("<image>\n<image> means?") < text.index("An <image> tag.")
    assert processor.apply_chat_template(as_parts(chat)) == processor.apply_chat_template(chat)


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_images_beside_a_conversation_are_those_in_it(name):
    """LLaVA's format, with the images given to the processor: the same inputs and marks as with image parts."""
    processor = one_token_processor(qwen_tokenizer(), name)
    other = Image.new("RGB", (56, 56), "blue")
    strings = [
        {"role": "user", "content": "<image>\nand<image>" if name != "plain" else "<image><image>"},
        {"role": "assistant", "content": "two of them"},
        {"role": "user", "content": "" if name == "plain" else "sure?"},
        {"role": "assistant", "content": "yes"},
    ]
    parts = [
        {"type": "image", "image": IMAGE},
        {"type": "text", "text": "\nand"},
        {"type": "image", "image": other},
    ]
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True, "return_tensors": "pt"}
    beside = processor.apply_chat_template(strings, processor_kwargs={"images": [IMAGE, other]}, **options)
    inside = processor.apply_chat_template(
        [{"role": "user", "content": parts if name != "plain" else parts[::2]}, *strings[1:]], **options
    )
    batch = processor.apply_chat_template([strings], processor_kwargs={"images": [[IMAGE, other]]}, **options)
    assert set(beside) == set(inside) == set(batch) >= {"pixel_values", "assistant_masks", "input_ids"}
    for key, value in beside.items():
        assert torch.equal(value, batch[key]), key
        if name not in ("vicuna", "qwen") or key != "input_ids":
            assert value.shape[1:] == inside[key].shape[1:] or key in ("input_ids", "attention_mask")
    assert torch.equal(beside["pixel_values"], inside["pixel_values"])
    marked = processor.tokenizer.decode(beside["input_ids"][0][beside["assistant_masks"][0].bool()])
    assert "".join(marked.split()).replace("<|im_end|>", "").replace("<|endoftext|>", "") == "twoofthemyes"
    with pytest.raises(ValueError, match="have 2 image placeholders, but 1 images"):
        processor.apply_chat_template(strings, processor_kwargs={"images": [IMAGE]}, **options)


@pytest.mark.parametrize("tokenizer", [llama_tokenizer(), qwen_tokenizer()])
@pytest.mark.parametrize("image", [IMAGE, Image.new("RGB", (900, 400), "red")])
def test_answers_after_expanded_images_are_marked(tokenizer, image):
    processor = LlavaUhdProcessor(
        LlavaUhdImageProcessor(), tokenizer, chat_template=CHAT_TEMPLATES["qwen"], query_grid=3
    )
    chat = [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "first?"}]},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": [{"type": "text", "text": "second?"}, {"type": "image", "image": image}]},
        {"role": "assistant", "content": "two"},
    ]
    out = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = out["input_ids"][0], out["assistant_masks"][0]
    marked = processor.tokenizer.decode([token for token, learned in zip(ids, mask, strict=True) if learned])
    assert "".join(marked.split()) == "one<|im_end|>two<|im_end|>"


def test_slow_tokenizers_refuse_reserved_words():
    processor = one_token_processor(qwen_tokenizer(), "qwen")
    processor.can_escape = False
    with pytest.raises(ValueError, match="a text holds <image>, which this tokenizer"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": "the <image> tag"}]}])


def test_escapes_survive_saving(tmp_path):
    processor = one_token_processor(qwen_tokenizer(), "qwen")
    processor.save_pretrained(tmp_path)
    loaded = LlavaUhdProcessor.from_pretrained(tmp_path)
    text = processor.escape("the <image> tag")
    ids = loaded.tokenizer(text)["input_ids"]
    assert processor.image_token_id not in ids and ids == processor.tokenizer(text)["input_ids"]
    # A reader of the tokenizer alone, such as a server of another make, sees the same.
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == ids
