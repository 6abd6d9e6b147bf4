"""Access to the goldens, and the key mapping from original names to HF names that the tests need."""

from pathlib import Path

import numpy as np
import torch

GOLDENS = Path(__file__).parent / "goldens"


def load(name: str) -> dict[str, torch.Tensor]:
    """All arrays of a golden file."""
    with np.load(GOLDENS / name) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """L2 norm of the difference over that of the expected values."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} against {tuple(expected.shape)}"
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def under(prefix: str, arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The entries below a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def attention_state(published: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Shared names of v1 and v2 projectors: original to HF format."""
    state = {"positions": published["pos_embed"], "proj": published["proj"]}
    for kind in ("weight", "bias"):
        for name, part in zip("qkv", published[f"attn.in_proj_{kind}"].chunk(3), strict=True):
            state[f"attention.{name}_proj.{kind}"] = part
        state[f"attention.out_proj.{kind}"] = published[f"attn.out_proj.{kind}"]
        for norm in ("ln_q", "ln_kv", "ln_post"):
            state[f"{norm}.{kind}"] = published[f"{norm}.{kind}"]
    return state


def hiwin_state(published: dict[str, torch.Tensor], levels: list[int]) -> dict[str, torch.Tensor]:
    """State dict of a `HiWinProjector` with these levels, its up-sampler apart."""
    state = attention_state(published)
    state["queries"] = torch.stack([published[f"query_{index}"] for index in (1, 2, 3, 4)])
    for kind in ("weight", "bias"):
        state[f"ln_proj.{kind}"] = published[f"ln_proj.{kind}"]
        state[f"join.{kind}"] = published[f"cat_proj.{kind}"]
        for level in levels:
            state[f"projections.{level}x.linear.{kind}"] = published[f"features_{level}x_projector.{kind}"]
    for level in levels:
        state[f"projections.{level}x.embedding"] = published[f"feature_{level}x_embedding"].flatten()
    return state


def resampler_state(published: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """State dict of a `SpatiallyConstrainedResampler`."""
    state = attention_state(published)
    state["queries"] = published["query"][None]
    state["kv_proj.weight"] = published["kv_proj.weight"]
    return state
