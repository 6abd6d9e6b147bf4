"""Numbers on a device: goldens in fp32 and bf16, batch neighbors, attention implementations, offloading, autocast."""

import copy
import importlib.util

import pytest
import torch

from llava_uhd.answering import question_message
from llava_uhd.model.image_processing_llava_uhd import LlavaUhdImageProcessor
from llava_uhd.serving.engine import Engine, EngineOptions
from llava_uhd.serving.generation import Sampling
from tests.conftest import build_model, golden_image, random_image, small_config
from tests.golden import load, relative_error
from tests.model.test_end_to_end import expand
from tests.model.test_hiwin import MASKS, NUM_VIEWS, SHAPES, build
from tests.model.test_modeling import sample


def tokens_of(golden, projector, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Compute the tokens of the golden's three images on a device, view by view."""
    tokens = []
    for view, (height, width) in enumerate(SHAPES):
        features = golden["features"][view, : height * width].T.reshape(1, 16, height, width)
        with torch.no_grad():
            pixels = golden[f"image_{view}"][None].to(device, dtype)
            tokens.append(projector(features.to(device, dtype), pixels)[0].float().cpu())
    return list(torch.stack(tokens).split(NUM_VIEWS))


@pytest.mark.parametrize("mask", MASKS)
def test_projector_golden_in_fp32(device, mask):
    golden = load("hiwin.npz")
    images = tokens_of(golden, build(golden, mask).to(device), device, torch.float32)
    for image, tokens in enumerate(images):
        assert relative_error(tokens[:, :: 1 if mask == "mask7" else 3], golden[f"{mask}.out_image{image}"]) < 1e-5


@pytest.fixture
def golden_inputs(golden_on_device, device):
    """Prompt and image of the end-to-end golden on the device."""
    golden, processor = load("e2e.npz"), LlavaUhdImageProcessor()
    image = processor(golden_image(240, 500), return_tensors="pt")
    ids, labels = expand(golden["input_ids"], golden["labels"], golden_on_device, processor.plan(240, 500))
    pixels = image.pop("pixel_values").to(device)
    return {"input_ids": ids.to(device), "labels": labels.to(device), "pixel_values": pixels, **image}


@torch.no_grad()
def test_whole_model_golden_in_fp32(golden_on_device, golden_inputs):
    golden, outputs = load("e2e.npz"), golden_on_device(**golden_inputs)
    assert relative_error(outputs.logits[0, -1].cpu(), golden["logits_last"]) < 1e-5
    assert abs(outputs.loss.item() - golden["loss"][0]) < 1e-5


@torch.no_grad()
def test_whole_model_golden_in_bf16(golden_on_device, golden_inputs):
    golden, model = load("e2e_bf16.npz"), golden_on_device.bfloat16()
    model.model.multi_modal_projector.box_dtype = "bfloat16"
    outputs = model(**golden_inputs)
    logits = outputs.logits[0, golden["logits_pos"].to(outputs.logits.device), :256].float().cpu()
    assert (logits - golden["logits_pos_first256"]).std() < 0.1 * golden["logits_pos_first256"].std()
    assert abs(outputs.loss.item() - golden["loss"][0]) < 0.05


@torch.no_grad()
def test_autocast_stays_near_fp32(golden_on_device, golden_inputs, device):
    expected = golden_on_device(**golden_inputs).logits.float()
    with torch.autocast(device.type, torch.bfloat16):
        actual = golden_on_device(**golden_inputs).logits.float()
    assert 0 < relative_error(actual, expected) < 0.05


@pytest.mark.parametrize("batch_size", [1, 8, 32])
def test_answers_do_not_depend_on_batch_neighbors(small, batch_size):
    model, processor = small
    asked = [
        [question_message([random_image(40 + 9 * n, 60, n)], f"What is number {n}?")]
        for n in range(min(batch_size, 9))
    ]
    sampling = Sampling(max_new_tokens=6)
    options = EngineOptions(batch_size=batch_size, prefix_bytes=0)
    with Engine(model, processor, options) as engine:
        alone = [engine.submit(messages, sampling).result().token_ids for messages in asked]
        running = [engine.submit(messages, sampling) for messages in asked]
        assert [generation.result().token_ids for generation in running] == alone


@torch.no_grad()
def test_logits_do_not_depend_on_batch_neighbors(small):
    model, processor = small
    with Engine(model, processor, EngineOptions(batch_size=8)) as engine:
        decoder = engine.generator.decoder
        prompts = [torch.tensor([[5, 6, 7, 8][: 1 + n % 4]]) for n in range(8)]

        @torch.inference_mode()
        def step(ids):
            caches = [decoder.read(prompt)[1] for prompt in ids]
            return decoder.step([7] * len(ids), [cache.get_seq_length() for cache in caches], caches)

        together = engine.run(lambda: step(prompts))
        alone = [engine.run(lambda prompt=prompt: step([prompt])[0]) for prompt in prompts]
    assert all(torch.equal(row, single) for row, single in zip(together, alone, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention", "flash_attention_2"])
def test_attention_implementations_agree_with_eager(device, implementation):
    if implementation != "sdpa" and device.type == "cpu":
        pytest.skip(f"{implementation} is tested on CUDA alone: on a CPU it is compiled or missing")
    if implementation == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash_attn is not installed")
    dtype = torch.bfloat16 if implementation == "flash_attention_2" else torch.float32
    model = build_model(small_config()).to(device, dtype)
    inputs = {name: value.to(device) for name, value in sample(small_config(), [(150, 120)]).items()}
    model.set_attn_implementation("eager")
    expected = model(**inputs).logits.float()
    model.set_attn_implementation(implementation)
    tolerance = 5e-2 if dtype == torch.bfloat16 else 1e-4
    assert relative_error(model(**inputs).logits.float(), expected) < tolerance


@torch.no_grad()
def test_offloaded_weights_give_the_same_logits(device):
    accelerate = pytest.importorskip("accelerate")
    model = build_model(small_config())
    inputs = {name: value.to(device) for name, value in sample(small_config(), [(150, 120)]).items()}
    expected = copy.deepcopy(model).to(device)(**inputs).logits
    offloaded = accelerate.cpu_offload(model, execution_device=device)
    torch.testing.assert_close(offloaded(**inputs).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.accelerator
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_loading_answers(cuda, quantization):
    pytest.importorskip("bitsandbytes")
    from llava_uhd.loading import load

    model, processor = load("tiny", "cuda:0", "bfloat16", quantization)
    with Engine(model, processor) as engine:
        messages = [question_message([golden_image(240, 500)], "What is the total?")]
        assert engine.submit(messages, Sampling(max_new_tokens=4)).result().token_ids
