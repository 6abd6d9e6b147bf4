"""Original checkpoints of tiny size, made of the goldens' tensors in the layout of the original files."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.conftest import procedural
from tests.golden import GOLDENS, load, under

TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model."
PROJECTOR_PREFIX = "model.mm_projector."
SECOND_CLIP = PROJECTOR_PREFIX + "upsampler.model.0.vision_tower.vision_model."

LLAMA = {
    "model_type": "llava_llama",
    "architectures": ["LlavaLlamaForCausalLM"],
    "_name_or_path": "lmsys/vicuna-7b-v1.5",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "torch_dtype": "float32",
    "transformers_version": "4.37.2",
    "tokenizer_model_max_length": 4096,
    "tokenizer_padding_side": "right",
}
MULTIMODAL = {
    "mm_vision_tower": "/home/someone/clip-vit-large-patch14-336-tiny",
    "mm_projector_type": "adapt_spatial_resampler",
    "mm_hidden_size": 32,
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "feature_mode": "featup_muti_res",
    "feature_scale_mask": 7,
}
TOWER = {
    "model_type": "clip",
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 336,
        "patch_size": 14,
    },
}


def original_tensors() -> dict[str, torch.Tensor]:
    """A full December 2024 checkpoint, dead tensors and all; scalars have no axis, as in the real files."""
    tensors = under("w.", load("e2e.npz"))
    tensors["model.embed_tokens.weight"] = procedural((32000, 64), seed=81, scale=1.0)
    tensors["lm_head.weight"] = procedural((32000, 64), seed=1081, scale=0.5)
    for name in [name for name in tensors if name.startswith(TOWER_PREFIX)]:
        tensors[SECOND_CLIP + name.removeprefix(TOWER_PREFIX)] = tensors[name] + 1
    return {
        name: value.squeeze() if name.endswith(("_temp", "_spatial")) else value for name, value in tensors.items()
    }


def april_tensors() -> dict[str, torch.Tensor]:
    """The same vision path before a Qwen2, of random weights: an April 2025 checkpoint."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: value for name, value in original_tensors().items() if "vision" in name or "mm_" in name}
    shapes = {"model.embed_tokens.weight": (29900, 64), "lm_head.weight": (29900, 64), "model.norm.weight": (64,)}
    for layer in (0, 1):
        for name, rows, columns in (
            ("self_attn.q_proj", 64, 64),
            ("self_attn.k_proj", 32, 64),
            ("self_attn.v_proj", 32, 64),
            ("self_attn.o_proj", 64, 64),
            ("mlp.gate_proj", 128, 64),
            ("mlp.up_proj", 128, 64),
            ("mlp.down_proj", 64, 128),
        ):
            shapes[f"model.layers.{layer}.{name}.weight"] = (rows, columns)
            if name[-6] in "qkv":
                shapes[f"model.layers.{layer}.{name}.bias"] = (rows,)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{norm}.weight"] = (64,)
    tensors |= {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    tensors["model.image_newline"] = torch.ones(64)
    return tensors


QWEN = {
    **{key: value for key, value in LLAMA.items() if key != "rope_theta"},
    "model_type": "llava_qwen",
    "architectures": ["LlavaQwenForCausalLM"],
    "_name_or_path": "Qwen/Qwen2-7B-Instruct",
    "num_key_value_heads": 2,
    "vocab_size": 29900,  # the separators have the ids of the Vicuna vocabulary
    "rope_theta": 1000000.0,
    "bos_token_id": None,
}
APRIL = {key: value for key, value in MULTIMODAL.items() if key != "feature_mode"} | {
    "mm_projector_type": "adapt_spatial_resampler_v2",
    "model_mode": "uhd_v2",
    "jbu_vdim": "vdim.ckpt",
}


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content))


def write_tower_config(folder: Path) -> Path:
    """A CLIP folder with the config alone."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", TOWER)
    return folder


def write_numbered_tokenizer(folder: Path) -> None:
    """A tokenizer whose words are t0, t1, ... up to a vocabulary of Vicuna's size: any id can be written as text."""
    words = ["<unk>", "<s>", "</s>", *(f"t{number}" for number in range(3, 32000))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})


def write_sentencepiece(folder: Path, **settings: Any) -> None:
    """A small sentencepiece tokenizer as Vicuna ships it."""
    shutil.copy(GOLDENS / "tokenizers" / "llama_tiny" / "tokenizer.model", folder)
    write_json(folder / "tokenizer_config.json", {"model_max_length": 4096, "legacy": False, **settings})


def write_qwen_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(GOLDENS / "tokenizers" / "qwen_tiny" / name, folder)


def write_shards(folder: Path, tensors: dict[str, torch.Tensor], kind: str, count: int = 2) -> None:
    """Weights as `kind`: safetensors or bin, in so many shards with an index, or one file without."""
    stem, suffix = ("model", ".safetensors") if kind == "safetensors" else ("pytorch_model", ".bin")
    names, weight_map = list(tensors), {}
    for number in range(count):
        shard = {name: tensors[name].contiguous() for name in names[number::count]}
        file = f"{stem}-{number + 1:05}-of-{count:05}{suffix}" if count > 1 else stem + suffix
        if kind == "safetensors":
            save_file(shard, folder / file, metadata={"format": "pt"})
        else:
            torch.save(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    if count > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / f"{stem}{suffix}.index.json", index)


def write_original(
    folder: Path,
    tensors: dict[str, torch.Tensor] | None = None,
    config: dict[str, Any] | None = None,
    tokenizer: Any = write_numbered_tokenizer,
    kind: str = "safetensors",
    count: int = 2,
) -> Path:
    """Write a complete original checkpoint; by default that of December 2024 of the end-to-end golden."""
    folder.mkdir(parents=True)
    write_shards(folder, original_tensors() if tensors is None else tensors, kind, count)
    write_json(folder / "config.json", {**LLAMA, **MULTIMODAL} if config is None else config)
    tokenizer(folder)
    return folder
