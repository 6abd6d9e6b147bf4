"""The reference formulation of the vision path: the baseline of `llava-uhd bench`, and an independent check in tests.

It computes as the reference implementation does, without the rearrangements of `llava_uhd.model`: all layers of the
tower, an image's slices together and then its overview; JBU by 49 weighted shifts; every position of every level
projected to the language model's width; keys and values pooled apart; one attention call per query set, which projects
the pooled keys and values anew. It is no straw man: window pooling is separable, attention is PyTorch's, and there are
no needless copies.

Shapes: N views of one shape, C channels of the encoder, h w source map, H W = 2h 2w, P = 49 taps in row-major order,
E hidden size of the language model, G query grid, K keys of a window over all levels, p patch side in pixels.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from ..model.attention import WindowAttention, resize_positions
from ..model.hiwin import HiWinProjector, pool
from ..model.modeling_llava_uhd import LlavaUhdModel
from ..model.pyramid import BilinearPyramid, JBUPyramid, JointBilateralUpsampler, Pyramid
from ..model.vision_tower import patches_to_pixels
from ..model.windows import bin_shape, resize_bins


def shift(map_: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    """Shift a map by up to three positions, (N, C, H, W); reflected at its border, or replicated if too small."""
    mode = "reflect" if min(map_.shape[-2:]) > 3 else "replicate"
    height, width = map_.shape[-2:]
    return F.pad(map_, (3, 3, 3, 3), mode=mode)[..., 3 + dy : 3 + dy + height, 3 + dx : 3 + dx + width]


OFFSETS = [(dy, dx) for dy in range(-3, 4) for dx in range(-3, 4)]


def kernels(up: JointBilateralUpsampler, guidance: torch.Tensor) -> torch.Tensor:
    """Compute JBU kernels: (N, 3, H, W) pixels to (N, P, H, W) weights.

    softmax over taps of exp(temperature) · <key, shifted key>, times exp(-distance² / 2 sigma²) with distances in
    thirds, normalized, plus 0.1 times a fix-up.
    """
    keys = up.range_proj(guidance)
    similarity = torch.stack([(shift(keys, dy, dx) * keys).sum(dim=1) for dy, dx in OFFSETS], dim=1)
    range_kernel = (up.range_temp.exp().clamp(1e-4, 1e4) * similarity).softmax(dim=1)
    distances = torch.tensor([(dy / 3) ** 2 + (dx / 3) ** 2 for dy, dx in OFFSETS], device=keys.device)
    spatial_kernel = torch.exp(-distances / (2 * up.sigma_spatial**2)).view(1, -1, 1, 1)
    combined = range_kernel * spatial_kernel
    combined = combined / combined.sum(dim=1, keepdim=True).clamp(min=1e-7)
    return combined + 0.1 * up.fixup_proj(torch.cat([combined.to(guidance.dtype), guidance], dim=1))


def upsample(up: JointBilateralUpsampler, source: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Upsample 2x: (N, C, h, w) and pixels at any resolution to (N, C, H, W), summed in float32."""
    shape = (2 * source.shape[-2], 2 * source.shape[-1])
    weights = kernels(up, F.adaptive_avg_pool2d(pixels, shape))
    upsampled = F.interpolate(source, size=shape, mode="bicubic", align_corners=False).to(weights.dtype)
    padded = F.pad(upsampled, (3, 3, 3, 3), mode="reflect" if min(shape) > 3 else "replicate")
    out, with_gradient = torch.zeros_like(upsampled), upsampled.requires_grad or weights.requires_grad
    for tap, (dy, dx) in enumerate(OFFSETS):
        shifted = padded[..., 3 + dy : 3 + dy + shape[0], 3 + dx : 3 + dx + shape[1]]
        weight = weights[:, tap, None]
        # In place where no gradient is needed: the baseline makes no needless copies.
        out = torch.addcmul(out, shifted, weight) if with_gradient else out.addcmul_(shifted, weight)
    return out.to(source.dtype)


def fix_up(fixup: nn.Sequential, map_: torch.Tensor) -> torch.Tensor:
    """Return x + 0.1 · (1 x 1 convolution of x)."""
    return map_ + 0.1 * fixup(map_)


def pyramid_maps(pyramid: Pyramid, features: torch.Tensor, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Compute the maps of a pyramid's levels: (N, C, h, w) to a list of (N, C, s·h, s·w)."""
    if not isinstance(pyramid, JBUPyramid | BilinearPyramid):
        return pyramid(features, pixels)  # no formulation of the paper's
    if isinstance(pyramid, BilinearPyramid):
        return [
            F.interpolate(features, scale_factor=level, mode="bilinear", align_corners=False)
            for level in pyramid.levels
        ]
    maps = {1: features, 2: upsample(pyramid.up1, features, pixels)}
    if pyramid.highest == 8:
        maps[2] = fix_up(pyramid.fixup_proj_2x, maps[2])
        maps[4] = fix_up(pyramid.fixup_proj_4x, upsample(pyramid.up2, maps[2], pixels))
        maps[8] = fix_up(pyramid.fixup_proj_8x, upsample(pyramid.up3, maps[4], pixels))
    elif pyramid.highest == 4:
        maps[4] = fix_up(pyramid.fixup_proj, upsample(pyramid.up2, maps[2], pixels))
    else:
        maps[2] = fix_up(pyramid.fixup_proj, maps[2])
    return [maps[level] for level in pyramid.levels]


def keys_and_values(
    projector: HiWinProjector, features: torch.Tensor, pixels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Project and normalize every position of every level, pool keys and values: two of (N, G², K, E)."""
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    maps = pyramid_maps(projector.upsampler, features, pixels)
    for level, projection, feature_map in zip(projector.levels, projector.projections.values(), maps, strict=True):
        bins = bin_shape(features.shape[-2:], projector.bin_grid, level)
        projected, embedding, bin_embedding = projection(feature_map.permute(0, 2, 3, 1))
        value = projector.ln_kv(projected)  # N, H, W, E
        key = value + resize_positions(projector.positions, value.shape[1:3]) + embedding
        keys.append(pool(projector, key, bins))
        if bin_embedding is not None:
            keys[-1] = keys[-1] + resize_bins(bin_embedding, bins).to(value.dtype)
        values.append(pool(projector, value, bins))
    return torch.cat(keys, dim=2), torch.cat(values, dim=2)


def attend(
    attention: WindowAttention, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Attend from one query per window, (G², E), to its window's keys and values, (N, G², K, E); (N, G², E)."""
    q = attention.heads(attention.q_proj(queries)[:, None])  # G², h, 1, d
    k, v = attention.heads(attention.k_proj(keys)), attention.heads(attention.v_proj(values))  # N, G², h, K, d
    out = F.scaled_dot_product_attention(q.expand(len(k), -1, -1, -1, -1), k, v)
    return attention.out_proj(out.flatten(-3))


def tokens(projector: HiWinProjector, features: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Project (N, C, h, w) features and their pixels to (N, G², E) tokens, one attention call per query set."""
    keys, values = keys_and_values(projector, features, pixels)
    sets = [
        projector.ln_proj(attend(projector.attention, projector.ln_q(queries) + projector.positions, keys, values))
        for queries in projector.queries
    ]
    return projector.ln_post(projector.join(torch.cat(sets, dim=-1))) @ projector.proj


def encode(tower: PreTrainedModel, pixels: torch.Tensor, feature_layer: int = -2) -> torch.Tensor:
    """Hidden state `feature_layer`, the class token dropped: (N, 3, h·p, w·p) to (N, C, h, w).

    Every layer is run and every hidden state kept, as `output_hidden_states=True` does.
    """
    is_clip = tower.config.model_type == "clip_vision_model"
    hidden = tower.embeddings(pixels, interpolate_pos_encoding=True)
    states = [tower.pre_layrnorm(hidden) if is_clip else hidden]
    # By the class: the model's own tower skips the layers behind the one that is used.
    run: Callable[..., torch.Tensor] = CLIPEncoderLayer.forward if is_clip else SiglipEncoderLayer.forward
    for layer in tower.encoder.layers:
        states.append(run(layer, states[-1], None))
    p = tower.config.patch_size
    height, width = pixels.shape[2] // p, pixels.shape[3] // p
    return states[feature_layer][:, -height * width :].transpose(1, 2).unflatten(2, (height, width))


def view_tokens(model: LlavaUhdModel, patches: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Compute the tokens of views of one shape: (N, h·w, 3·p·p) to (N, G², E)."""
    pixels = patches_to_pixels(patches, shape, model.config.vision_config.patch_size)
    features = encode(model.vision_tower, pixels, model.config.vision_feature_layer)
    projector = model.multi_modal_projector
    assert isinstance(projector, HiWinProjector), "only HiWin has a reference formulation here"
    return tokens(projector, features, pixels.to(features.dtype))


def image_tokens(
    model: LlavaUhdModel,
    slices: torch.Tensor | None,
    slice_shape: tuple[int, int] | None,
    overview: torch.Tensor,
    overview_shape: tuple[int, int],
) -> list[torch.Tensor]:
    """Compute the tokens of one image, slices first: two passes, one over its slices, one over its overview."""
    tokens_of_overview = view_tokens(model, overview[None], overview_shape)
    if slices is None or slice_shape is None:
        return [tokens_of_overview]
    return [view_tokens(model, slices, slice_shape), tokens_of_overview]
