"""Model and processor together, as transformers' own tools use them."""

import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_uhd import LlavaUhdForConditionalGeneration, LlavaUhdProcessor
from tests.conftest import build_model, random_image, small_config

PROJECTORS = [{}, {"type": "resampler"}, {"type": "mlp"}, {"levels": [1, 2, 4, 8]}]


@pytest.fixture(scope="module", params=["stitched", "sequential"])
def pair(request, qwen_tokenizer):
    config = small_config(layout=request.param)
    return build_model(config), LlavaUhdProcessor.from_config(config, qwen_tokenizer, "qwen")


def test_pipeline(pair):
    from transformers import pipeline

    model, processor = pair
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    image = random_image(300, 200)
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]}]
    generation = {"max_new_tokens": 5, "do_sample": False}
    (result,) = ask(text=messages, generate_kwargs=generation)
    answer = result["generated_text"][-1]
    assert answer["role"] == "assistant"
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    out = model.generate(**inputs, **generation)[:, inputs["input_ids"].shape[1] :]
    assert answer["content"] == processor.batch_decode(out, skip_special_tokens=True)[0]


def test_saved_processor_and_model_give_the_same_answer(pair, tmp_path):
    model, processor = pair
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = LlavaUhdForConditionalGeneration.from_pretrained(tmp_path), LlavaUhdProcessor.from_pretrained(tmp_path)
    outputs = []
    for model, processor in (pair, loaded):
        inputs = processor(images=random_image(200, 300), text="<image>\nWhat is it?", return_tensors="pt")
        outputs.append(model.generate(**inputs, max_new_tokens=5, do_sample=False).tolist())
    assert outputs[0] == outputs[1]


def test_saved_folder_answers_where_the_package_is_not_installed(pair, tmp_path):
    """Remote code: model, processor and image processor from the folder alone."""
    model, processor = pair
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    random_image(200, 300).save(tmp_path / "image.png")
    script = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'llava_uhd':
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
from transformers import AutoModelForImageTextToText, AutoProcessor
processor = AutoProcessor.from_pretrained('model', trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained('model', trust_remote_code=True)
inputs = processor(images='image.png', text='<image>\\nWhat is it?', return_tensors='pt')
print(model.generate(**inputs, max_new_tokens=5, do_sample=False).tolist())
"""
    environment = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    inputs = processor(images=random_image(200, 300), text="<image>\nWhat is it?", return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False).tolist()
    assert result.stdout.strip() == str(expected), result.stderr


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_prompts_have_as_many_image_tokens_as_features(qwen_tokenizer, data):
    """Any sizes, prompts and batches, either padding: the model takes them, and a sample ignores its neighbors."""
    projector = data.draw(st.sampled_from(PROJECTORS))
    config = small_config(layout=data.draw(st.sampled_from(["stitched", "sequential"])), **projector)
    model, processor = build_model(config), LlavaUhdProcessor.from_config(config, qwen_tokenizer, "qwen")
    side = st.integers(1, 400)
    sizes = data.draw(st.lists(st.lists(st.tuples(side, side), max_size=2), min_size=1, max_size=3))
    options = {"return_tensors": "pt", "max_slices": data.draw(st.integers(1, 8))}
    samples = []
    for index, of_sample in enumerate(sizes):
        words = data.draw(st.lists(st.sampled_from(["a", "what", "total?", "7"]), min_size=1, max_size=4))
        text = "".join(f"{'<image>' * (place < len(of_sample))}{word} " for place, word in enumerate(words))
        text += "<image>" * (len(of_sample) - text.count("<image>"))
        samples.append((text, [random_image(*size, seed=index) for size in of_sample]))
    padding_side = data.draw(st.sampled_from(["left", "right"]))
    together = processor(
        text=[text for text, _ in samples],
        images=[images for _, images in samples],
        padding=True,
        padding_side=padding_side,
        **options,
    )
    with torch.no_grad():
        logits = model(**together).logits
        if "pixel_values" in together:
            images = {key: together[key] for key in ("pixel_values", "view_shapes", "num_views", "grids")}
            features = model.get_image_features(**images).pooler_output
            assert [len(feature) for feature in features] == [
                processor.image_layout(*image.size, max_slices=options["max_slices"]).num_image_tokens
                for _, images in samples
                for image in images
            ]
        for row, mask, (text, images) in zip(logits, together["attention_mask"].bool(), samples, strict=True):
            alone = model(**processor(text=text, images=images or None, **options)).logits[0]
            torch.testing.assert_close(row[mask], alone, rtol=1e-3, atol=1e-3)
