"""Memory of a conversion and of loading, on random weights of the released shapes.

    python benchmarks/checkpoint_memory.py --model vicuna-7b --work runs/memory --load bfloat16 8bit 4bit

Writes a original checkpoint (bfloat16, the second CLIP included), converts it, and loads the result; each step runs in
a process of its own, whose peak is the kernel's account (VmHWM, mapped files included). Needs 29 GB of disk for the 7B
model, and for `--load` as much memory as the table will show; `--layers 4` cuts the language model short. Linux only.
"""

import argparse
import ctypes
import json
import multiprocessing
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GIB = 1 << 30
TOKENIZER = Path(__file__).parents[1] / "tests" / "goldens" / "tokenizers" / "llama_tiny" / "tokenizer.model"
# Language models of the releases: width, MLP width, layers, heads, heads of keys, vocabulary.
SHAPES = {
    "vicuna-7b": ("llava_llama", 4096, 11008, 32, 32, 32, 32000),
    "vicuna-13b": ("llava_llama", 5120, 13824, 40, 40, 40, 32000),
    "qwen2-7b": ("llava_qwen", 3584, 18944, 28, 28, 4, 152064),
}
PRECISIONS = ("float32", "bfloat16", "8bit", "4bit")


def released_config(model: str, layers: int | None) -> dict[str, Any]:
    """Config of a original checkpoint of December 2024."""
    keys = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config: dict[str, Any] = dict(zip((*keys, "num_key_value_heads", "vocab_size"), SHAPES[model], strict=True))
    config |= {"bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
    config |= {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "adapt_spatial_resampler"}
    config |= {"feature_mode": "featup_muti_res", "feature_scale_mask": 7}
    return config | ({"num_hidden_layers": layers} if layers else {})


def make(folder: Path, model: str, layers: int | None, shard_bytes: int) -> dict[str, Any]:
    """Write the original checkpoint. The numbers repeat every 2^24: random enough, and quick to draw."""
    import torch

    from llava_uhd.checkpoints.key_mapping import PROJECTOR, TOWER, build_key_mapping
    from llava_uhd.checkpoints.packaging import state_shapes
    from llava_uhd.checkpoints.variants import Overrides, to_hf_config, vision_config_of
    from llava_uhd.checkpoints.writing import Planned, write_json, write_model

    released = released_config(model, layers)
    config = to_hf_config(released, vision_config_of(released, None), torch.bfloat16, Overrides())
    shapes = {}
    for mapping in build_key_mapping(config, state_shapes(config)):
        shapes |= dict(zip(mapping.original_names, mapping.original_shapes, strict=True))
    second_clip = PROJECTOR + "upsampler.model.0.vision_tower.vision_model."
    shapes |= {second_clip + n.removeprefix(TOWER): shape for n, shape in shapes.items() if n.startswith(TOWER)}
    numbers = (torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()

    def draw(name: str) -> torch.Tensor:
        count = torch.Size(shapes[name]).numel()
        return numbers.repeat(-(-count // len(numbers)))[:count].view(shapes[name])

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    planned = [Planned(name, shape, torch.bfloat16) for name, shape in shapes.items()]
    write_model(folder, planned, draw, shard_bytes)
    write_json(folder / "config.json", released)
    shutil.copy(TOKENIZER, folder)
    files = [file.stat().st_size for file in folder.glob("*.safetensors")]
    return {"gib": sum(files) / GIB, "largest_shard_gib": max(files) / GIB, "shards": len(files)}


def convert(source: Path, out: Path) -> dict[str, Any]:
    """Converts it."""
    from llava_uhd.checkpoints.convert import Options, convert_to_hf
    from llava_uhd.checkpoints.sources import Parts

    report = convert_to_hf(Parts(str(source)), out, Options(overwrite=True))
    return {"gib": report.num_bytes / GIB}


def load(folder: Path, precision: str, answer: bool) -> dict[str, Any]:
    """Load it as documented, and answer on demand one token about an image of seven views."""
    import torch
    from PIL import Image

    from llava_uhd import LlavaUhdForConditionalGeneration, LlavaUhdProcessor
    from llava_uhd.loading import QUANTIZATIONS, quantization_config

    quantized = {"quantization_config": quantization_config(precision)} if precision in QUANTIZATIONS else {}
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    model = LlavaUhdForConditionalGeneration.from_pretrained(folder, dtype=dtype, device_map="cpu", **quantized)
    tensors = [*model.parameters(), *model.buffers()]
    # Unquantized weights are pages of the mapped files until they are first read, as the first question would.
    for tensor in tensors:
        tensor.detach().flatten().view(torch.uint8)[::512].sum()
    loaded = {"weights_gib": sum(tensor.nbytes for tensor in tensors) / GIB, "loaded_peak_gib": peak_gib()}
    if not answer:
        return loaded
    processor = LlavaUhdProcessor.from_pretrained(folder)
    image = Image.linear_gradient("L").resize((1008, 672)).convert("RGB")
    inputs = processor(images=image, text=f"{processor.image_token}\nWhat is it?", return_tensors="pt")
    start = time.perf_counter()
    with torch.inference_mode():
        logits = model(**inputs, logits_to_keep=1).logits
    return {
        **loaded,
        "prompt_tokens": inputs["input_ids"].shape[1],
        "prompt_seconds": time.perf_counter() - start,
        "finite": bool(logits.isfinite().all()),
    }


def status_gib(field: str) -> float:
    """A field of the kernel's account of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024 / GIB


def peak_gib() -> float:
    """Most memory that was resident until now."""
    return status_gib("VmHWM")


def measured(step: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Runs in the child: the step, its peak, and that without the pages of mapped files, sampled."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process is the one to go
    # Freed memory goes back at once, as the peak should show what is held, not what the allocator keeps.
    ctypes.CDLL("libc.so.6").mallopt(-3, 1 << 20)
    anonymous, done = [0.0], threading.Event()

    def sample() -> None:
        while not done.wait(0.01):
            anonymous[0] = max(anonymous[0], status_gib("RssAnon"))

    sampler = threading.Thread(target=sample)
    sampler.start()
    start = time.perf_counter()
    try:
        result = step(*arguments)
    finally:
        done.set()
        sampler.join()
    seconds = time.perf_counter() - start
    return {**result, "peak_gib": peak_gib(), "peak_without_files_gib": anonymous[0], "seconds": seconds}


def run(step: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """One step in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply(measured, (step, arguments))
    print(json.dumps({"step": step.__name__, **result}), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="vicuna-7b")
    parser.add_argument("--layers", type=int, help="of the language model; default: all")
    parser.add_argument("--shard-gb", type=float, default=5.0)
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoints, emptied at the end")
    parser.add_argument("--load", nargs="*", choices=PRECISIONS, default=[])
    parser.add_argument("--answer", action="store_true", help="run the model, too: hours on a CPU without bfloat16")
    options = parser.parse_args()
    source, out = options.work / "original", options.work / "hf"
    try:
        made = run(make, source, options.model, options.layers, int(options.shard_gb * 1e9))
        peak = run(convert, source, out)["peak_gib"]
        ratio = peak / made["largest_shard_gib"]
        verdict = "within" if ratio <= 1.5 else "ABOVE"
        print(f"conversion: peak {peak:.2f} GiB, {ratio:.2f} of the largest shard ({verdict} 1.5)")
        shutil.rmtree(source)
        for precision in options.load:
            print(precision, end=" ", flush=True)
            run(load, out, precision, options.answer)
    finally:
        for folder in (source, out):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
