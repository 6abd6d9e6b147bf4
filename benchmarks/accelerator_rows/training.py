"""Rows of training: steps of stages 1 and 2, LoRA, QLoRA and stage 0, and the input pipeline beside them."""

import gc
import importlib.util
import io
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from llava_uhd import LlavaUhdForConditionalGeneration, LlavaUhdImageProcessor
from llava_uhd.benchmark.sizes import build
from llava_uhd.flops import folding_in_training, sample_flops, training_flops
from llava_uhd.model.layout import TokenType, plan_layout
from llava_uhd.model.modeling_llava_uhd import token_grid
from llava_uhd.training.data.collation import Collator
from llava_uhd.training.data.encoding import Encoded
from llava_uhd.training.labels import IGNORE
from llava_uhd.training.loss import use_training_forward
from llava_uhd.training.parts import train_only

from .language import random_model
from .setting import Cells, Run, Setting, dearest, mebibytes, median

if TYPE_CHECKING:
    from llava_uhd.training.upsampler.recipe import UpsamplerRecipe

STAGE_1 = ["projector"]
STAGE_2 = ["language_model", "projector", "vision_tower", "upsampler_fixup"]


def make_samples(model: LlavaUhdForConditionalGeneration, setting: Setting, count: int, stage: int) -> list[Encoded]:
    """Make samples of random images: one view and a caption (stage 1), or 5 views and a conversation (stage 2)."""
    rng = np.random.default_rng(0)
    sizes, config = setting.sizes, model.config
    processor = LlavaUhdImageProcessor(view_size=sizes.view_size, max_slices=1 if stage == 1 else 6)
    num_text = 26 if stage == 1 else 256
    separators = {
        TokenType.SLICE_SEPARATOR: config.slice_separator_id,
        TokenType.ROW_SEPARATOR: config.row_separator_id,
    }
    width, height = 2 * sizes.view_size, 2 * sizes.view_size
    samples = []
    for _ in range(count):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        template = plan_layout(processor.plan(width, height), token_grid(config), config.layout).template
        ids = [separators.get(token_type, config.image_token_id) for token_type in template]
        text = rng.integers(5, sizes.vocabulary, num_text).tolist()
        input_ids = torch.tensor([1, *ids, *text])
        labels = input_ids.clone()
        labels[: len(ids) + 1 + num_text // 3] = IGNORE
        samples.append(Encoded(input_ids, labels, dict(processor(image, return_tensors="pt"))))
    return samples


def step_flop(model: LlavaUhdForConditionalGeneration, samples: list[Encoded], trained: list[str]) -> float:
    """Count the operations of a training step; recomputation is work but no progress, so it is left out."""
    total = folding_in_training(model.config, trained)
    for sample in samples:
        shapes = [(rows, columns) for rows, columns in sample.images["view_shapes"].tolist()]
        learned = int(sample.labels.ne(IGNORE).sum())
        total += training_flops(sample_flops(model.config, shapes, len(sample.input_ids), learned), trained)
    return total


def _optimizer(model: nn.Module, setting: Setting) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=1e-5, fused=setting.device.type == "cuda")


def _lower_frozen(model: nn.Module, setting: Setting) -> None:
    """Keep frozen weights in the setting's dtype and trained ones in fp32, as the trainer does."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else setting.dtype)


def _step(model: Any, samples: list[Encoded], setting: Setting) -> tuple[Run, torch.optim.Optimizer]:
    """Return a step of forward pass, backward pass and optimizer on packed samples under autocast."""
    optimizer = _optimizer(model, setting)
    batch = {name: value.to(setting.device) for name, value in Collator(0, pack=True)(samples).items()}
    for name in ("view_shapes", "num_views", "grids"):
        batch[name] = batch[name].cpu()

    def step() -> torch.Tensor:
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=setting.dtype == torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step, optimizer


def _cells(name: str, step: Run, setting: Setting, flop: float, samples: list[Encoded], rate: float) -> Cells:
    if setting.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    taken = median(step, replace_runs(setting), warmup=1)
    tokens = sum(len(sample.input_ids) for sample in samples)
    cells: Cells = {
        "measured": name,
        "ms": 1000 * taken.seconds,
        "tokens/s": tokens / taken.seconds,
        "samples/s": len(samples) / taken.seconds,
        "TFLOP/s": flop / taken.seconds / 1e12,
        "of matmul rate": flop / taken.seconds / rate,
        # Weights and optimizer states too: what a training run needs.
        "peak MiB": torch.cuda.max_memory_allocated() / 2**20 if setting.is_cuda else mebibytes(taken.peak_bytes),
    }
    if setting.with_profile:
        cells["kernels"] = dearest(step, setting)
    return cells


def replace_runs(setting: Setting) -> Setting:
    """Return the setting with the few runs that a training step takes."""
    return replace(setting, num_runs=1 if setting.small else 3)


def _num_samples(setting: Setting, stage: int) -> int:
    return 2 if setting.small else (64 if stage == 1 else 8)


def stage_1(setting: Setting) -> Iterator[Cells]:
    """A step of stage 1: the projector learns, with every layer of the frozen language model behind it."""
    rate = setting.rate()
    model = build(setting.sizes, setting.device, setting.dtype, with_text=True)
    train_only(model, model.config, STAGE_1)
    _lower_frozen(model, setting)
    samples = make_samples(model, setting, _num_samples(setting, 1), 1)
    use_training_forward(model, loss_chunk=1024)
    step, _ = _step(model.train(), samples, setting)
    name = f"stage 1, {setting.sizes.text_layers} text layers, {len(samples)} samples"
    yield _cells(name, step, setting, step_flop(model, samples, STAGE_1), samples, rate)


def stage_2(setting: Setting) -> Iterator[Cells]:
    """A step of stage 2 with few layers, all of them learning, at two depths; the full depth by arithmetic.

    16 bytes of weights, gradients and optimizer states a parameter leave no room for 32 layers on one device.
    """
    rate, measured = setting.rate(), []
    for layers in (1, 2) if setting.small else (4, 8):
        few = replace(setting, sizes_replaced={"text_layers": layers})
        model = build(few.sizes, setting.device, setting.dtype, with_text=True)
        train_only(model, model.config, STAGE_2)
        _lower_frozen(model, setting)
        samples = make_samples(model, few, _num_samples(setting, 2), 2)
        use_training_forward(model, loss_chunk=1024)
        step, optimizer = _step(model.train(), samples, setting)
        flop = step_flop(model, samples, STAGE_2)
        cells = _cells(f"stage 2, {layers} text layers, {len(samples)} samples", step, setting, flop, samples, rate)
        measured.append((layers, cells["ms"], flop))
        yield cells
        # A replaced forward pass and its model hold each other.
        del model.forward, model, step, optimizer
        gc.collect()
    (few_layers, few_ms, few_flop), (more_layers, more_ms, more_flop) = measured
    layers = setting.sizes.text_layers
    further = (layers - more_layers) / (more_layers - few_layers)
    milliseconds, flop = more_ms + further * (more_ms - few_ms), more_flop + further * (more_flop - few_flop)
    tokens = sum(len(sample.input_ids) for sample in samples)
    yield {
        "measured": f"stage 2, {layers} text layers, by arithmetic",
        "ms": milliseconds,
        "tokens/s": 1000 * tokens / milliseconds,
        "samples/s": 1000 * len(samples) / milliseconds,
        "TFLOP/s": flop / milliseconds / 1e9,
        "of matmul rate": 1000 * flop / milliseconds / rate,
    }


def _missing(*packages: str) -> str | None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return f"skipped: {', '.join(missing)} not installed" if missing else None


def _quantize(module: nn.Module, device: torch.device) -> None:
    """Replace the linear layers below a module by 4-bit ones with the same weights, NF4 with double quantization."""
    import bitsandbytes as bnb

    for name, child in list(module.named_children()):
        if not isinstance(child, nn.Linear):
            _quantize(child, device)
            continue
        quantized = bnb.nn.Linear4bit(
            child.in_features,
            child.out_features,
            bias=child.bias is not None,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
            compress_statistics=True,
            device="meta",
        )
        quantized.weight = bnb.nn.Params4bit(
            child.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        quantized.bias = child.bias
        setattr(module, name, quantized.to(device))


def lora(setting: Setting, quantized: bool) -> Iterator[Cells]:
    """A step that trains adapters of the language model's linear layers, the weights in bf16 or in 4 bits."""
    name = "QLoRA" if quantized else "LoRA"
    if (reason := _missing("peft", *(["bitsandbytes"] if quantized else []))) is not None:
        yield {"measured": name, "status": reason}
        return
    from peft import LoraConfig, get_peft_model

    rate = setting.rate()
    model = build(setting.sizes, setting.device, setting.dtype, with_text=True).requires_grad_(False)
    if quantized:
        _quantize(model.model.language_model.layers, setting.device)
    samples = make_samples(model, setting, 2 if setting.small else 4, 2)
    flop = step_flop(model, samples, ["adapters"])
    use_training_forward(model, loss_chunk=1024)
    targets = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    step, _ = _step(adapted.train(), samples, setting)
    name = f"{name}, {setting.sizes.text_layers} text layers, {len(samples)} samples"
    yield _cells(name, step, setting, flop, samples, rate)


def stage_0_recipe(side: int, count: int) -> "UpsamplerRecipe":
    """Return a recipe of stage 0 for images of a side in pixels, so many a step; its folders are not read."""
    from llava_uhd.training.recipe import build_recipe
    from llava_uhd.training.upsampler.recipe import UpsamplerRecipe

    recipe = build_recipe(
        {
            "stage": "upsampler",
            "out": "runs/stage-0",
            "model": {"vision_tower": "random"},
            "data": {"images": "random", "image_size": side},
            "loss": {"downsampler_kernel": 14, "max_pad": min(30, side // 4)},
            "optimization": {"global_batch": count},
        }
    )
    assert isinstance(recipe, UpsamplerRecipe)
    return recipe


def stage_0(setting: Setting) -> Iterator[Cells]:
    """A step of stage 0 on images of the view's size: two jitters of each, NAdam."""
    if (reason := _missing("accelerate", "yaml", "pydantic")) is not None:
        yield {"measured": "stage 0", "status": f"{reason}: pip install 'llava-uhd[train]'"}
        return
    from llava_uhd.training.upsampler.features import Features
    from llava_uhd.training.upsampler.jitter import draw_move, move
    from llava_uhd.training.upsampler.training import Reconstruction

    sizes = setting.sizes
    side, count = sizes.view_size, 1 if setting.small else 4
    recipe = stage_0_recipe(side, count)
    tower = build(sizes, setting.device, torch.float32).model.vision_tower.requires_grad_(False)
    features = Features(tower, -2)
    module = Reconstruction(sizes.vision_hidden, recipe).to(setting.device).train()
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.NAdam(learned, lr=recipe.optimization.learning_rate)
    pixels = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0)).to(setting.device)

    def step() -> torch.Tensor:
        rng, low = random.Random(0), features(pixels)
        for jitter in range(recipe.loss.jitters):
            by = draw_move((side, side), recipe.loss.max_pad, recipe.loss.max_zoom, rng)
            moved = move(pixels, by, recipe.loss.max_pad)
            loss = module(low, pixels, features(moved), moved, by, jitter == 0)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    taken = median(step, replace_runs(setting), warmup=1)
    cells: Cells = {
        "measured": f"stage 0, {count} images of {side}x{side}, fp32",
        "ms": 1000 * taken.seconds,
        "samples/s": count / taken.seconds,
        "peak MiB": mebibytes(taken.peak_bytes),
    }
    if setting.with_profile:
        cells["kernels"] = dearest(step, setting)
    yield cells


def input_pipeline(setting: Setting) -> Iterator[Cells]:
    """Samples a second of one core: decode a JPEG, resize, slice, normalize, tokenize."""
    torch.set_num_threads(1)
    count = 2 if setting.small else 24
    _, processor = random_model(replace(setting, device=torch.device("cpu"), small=True))
    real = setting.sizes
    processor.image_processor.view_size = real.view_size
    rng = np.random.default_rng(0)
    width, height = 2 * real.view_size, 2 * real.view_size
    # Smooth content: noise would make the JPEG, and its decoding, larger than a photograph's.
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    content = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    text = " ".join(["What is the total of the second column?"] * 16)
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]},
        {"role": "assistant", "content": [{"type": "text", "text": text}]},
    ]

    def run() -> Any:
        for _ in range(count):
            image = Image.open(io.BytesIO(content.getvalue())).convert("RGB")
            inputs = processor.apply_chat_template(
                messages, tokenize=True, return_dict=True, processor_kwargs={"images": [image]}
            )
        return inputs

    taken = median(run, replace(replace_runs(setting), device=torch.device("cpu")), warmup=1)
    yield {
        "measured": f"input pipeline, one core, JPEG of {width}x{height}, 5 views",
        "ms": 1000 * taken.seconds / count,
        "samples/s": count / taken.seconds,
    }
