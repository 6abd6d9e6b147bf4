"""The semantic pyramid: a view's feature map at 1x and up-sampled to 2x, 4x, 8x (arXiv 2412.13871, section 3.2).

Joint bilateral up-sampling (JBU, as in FeatUp): a map is enlarged 2x bicubically, then every position becomes a
weighted sum of its 7 x 7 neighbors. The weights come from the view's own pixels: neighbors of similar color count more
(range kernel), near ones count more (spatial kernel), and a small network corrects both.

Shapes: N views, C channels, h w source map, H W = 2h 2w, P = 49 taps in row-major order.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .custom_pyramid import CustomPyramid
from .deconvolution import DeconvolutionPyramid
from .upsample_2x import SPAN, TAPS, border_mode, upsample_2x
from .upsampler_registry import register_upsampler, upsampler_names

KEY_DIM = 32
# Weight of the learned fix-ups, of the kernels and of the up-sampled maps, as in the reference implementation.
FIXUP_SCALE = 0.1


def similarities(keys: torch.Tensor) -> torch.Tensor:
    """Dot products of every position's key with those of its 7 x 7 neighbors: (N, D, H, W) to (N, P, H, W).

    In 49 passes over the map, which is fastest on a CPU, or in seven matrix products, which is fastest elsewhere.
    """
    return similarities_by_shifts(keys) if keys.device.type == "cpu" else similarities_by_rows(keys)


def similarities_by_shifts(keys: torch.Tensor) -> torch.Tensor:
    """Multiply the map by its P shifted views, none of which is a copy; see `similarities`."""
    height, width = keys.shape[-2:]
    padded = F.pad(keys, (SPAN // 2,) * 4, mode=border_mode((height, width)))
    shifts = [padded[..., dy : dy + height, dx : dx + width] for dy in range(SPAN) for dx in range(SPAN)]
    return torch.stack([(shifted * keys).sum(dim=1) for shifted in shifts], dim=1)


def similarities_by_rows(keys: torch.Tensor) -> torch.Tensor:
    """Multiply each row by its neighboring rows and keep the diagonals next to the main one; see `similarities`."""
    height, width = keys.shape[-2:]
    padded = F.pad(keys, (SPAN // 2,) * 4, mode=border_mode((height, width)))
    rows = keys.permute(0, 2, 3, 1)  # N, H, W, D
    neighbors = padded.permute(0, 2, 1, 3)  # N, H + 6, D, W + 6
    products = [rows @ neighbors[:, dy : dy + height] for dy in range(SPAN)]  # each N, H, W, W + 6
    return torch.stack([product.diagonal(dx, -2, -1) for product in products for dx in range(SPAN)], dim=1)


def reset_convolutions(module: nn.Module) -> None:
    """Initialize every convolution below `module` as PyTorch does, which the reference implementation keeps."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            bound = (layer.weight.numel() / len(layer.weight)) ** -0.5
            init.uniform_(layer.weight, -bound, bound)
            if layer.bias is not None:
                init.uniform_(layer.bias, -bound, bound)


class JointBilateralUpsampler(nn.Module):
    """The kernels of one 2x step, from the pixels at the upsampled resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.range_temp = nn.Parameter(torch.zeros(1))
        self.sigma_spatial = nn.Parameter(torch.ones(1))
        self.range_proj = nn.Sequential(
            nn.Conv2d(3, KEY_DIM, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(KEY_DIM, KEY_DIM, 1)
        )
        self.fixup_proj = nn.Sequential(
            nn.Conv2d(TAPS + 3, TAPS, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(TAPS, TAPS, 1)
        )

    def range_kernel(self, guidance: torch.Tensor) -> torch.Tensor:
        """Softmax over the neighbors' similarity in color: (N, 3, H, W) to (N, P, H, W)."""
        keys = self.range_proj(guidance)  # N, 32, H, W
        similarity = similarities(keys)
        return (self.range_temp.exp().clamp(1e-4, 1e4) * similarity).softmax(dim=1)

    def spatial_kernel(self) -> torch.Tensor:
        """Gaussian of the distance, not normalized: (1, P, 1, 1)."""
        axis = torch.linspace(-1, 1, SPAN, device=self.sigma_spatial.device)
        distance = axis[:, None] ** 2 + axis[None, :] ** 2
        return torch.exp(-distance / (2 * self.sigma_spatial**2)).view(1, TAPS, 1, 1)

    def forward(self, guidance: torch.Tensor) -> torch.Tensor:
        """Compute the kernels, (N, 3, H, W) to (N, P, H, W). The fix-up keeps them from summing to one."""
        combined = self.range_kernel(guidance) * self.spatial_kernel()
        combined = combined / combined.sum(dim=1, keepdim=True).clamp(min=1e-7)
        fixup: torch.Tensor = self.fixup_proj(torch.cat([combined.to(guidance.dtype), guidance], dim=1))
        return combined + FIXUP_SCALE * fixup


def guide(pixels: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Average the pixels to the shape of the map they guide: (N, 3, ., .) at any resolution to (N, 3, H, W).

    Raises:
        ValueError: the pixels have no size.
    """
    if not pixels.numel():
        raise ValueError(f"the up-sampler is guided by the pixels of the views, got none: {tuple(pixels.shape)}")
    return F.adaptive_avg_pool2d(pixels, shape)


def upsample(upsampler: JointBilateralUpsampler, features: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Upsample 2x, without the map's fix-up: (N, C, h, w), (N, 3, ., .) to (N, C, 2h, 2w)."""
    kernels = upsampler(guide(pixels, (2 * features.shape[-2], 2 * features.shape[-1])))
    # Summed in the kernels' precision: fp32 even when the features are bf16, as in the reference implementation.
    return upsample_2x(features.to(kernels.dtype), kernels).to(features.dtype)


class MapFixup(nn.Sequential):
    """The fix-up of a map, of which 0.1 is added: dropout of channels, and a 1 x 1 convolution."""

    def __init__(self, channels: int):
        super().__init__(nn.Dropout2d(0.2), nn.Conv2d(channels, channels, 1))

    @property
    def convolution(self) -> nn.Conv2d:
        """The 1 x 1 convolution."""
        _, convolution = self
        assert isinstance(convolution, nn.Conv2d)
        return convolution

    def dropout_factors(self, num_views: int) -> torch.Tensor:
        """Draw the factors by which a training step's dropout multiplies channels: (N, C), float32."""
        dropout, convolution = self[0], self.convolution
        assert isinstance(dropout, nn.Dropout2d)
        factors: torch.Tensor = dropout(convolution.weight.new_ones(num_views, convolution.in_channels, 1, 1))
        return factors.flatten(1).float()


class JBUPyramid(nn.Module):
    """2x steps up to the highest level, parameters named as in the original checkpoints.

    The stacks differ: up to 4x only the last map gets a fix-up, and the raw 2x map feeds the next step; at 8x each map
    gets one and feeds the next with it (`forward_stageloss` of the reference implementation; `fixup_proj` is then
    unused, and kept for the checkpoint's sake).
    """

    def __init__(self, channels: int, levels: list[int]):
        super().__init__()
        self.levels = levels
        self.highest = max(levels)
        self.up1 = JointBilateralUpsampler()
        if self.highest >= 4:
            self.up2 = JointBilateralUpsampler()
        if self.highest >= 8:
            self.up3 = JointBilateralUpsampler()
            self.fixup_proj_2x = MapFixup(channels)
            self.fixup_proj_4x = MapFixup(channels)
            self.fixup_proj_8x = MapFixup(channels)
        self.fixup_proj = MapFixup(channels)

    def reset_parameters(self) -> None:
        """Draw new weights as the reference implementation does."""
        reset_convolutions(self)
        for upsampler, _ in self.steps():
            init.zeros_(upsampler.range_temp)
            init.ones_(upsampler.sigma_spatial)

    def steps(self) -> list[tuple[JointBilateralUpsampler, MapFixup | None]]:
        """The 2x steps from low to high, each with the fix-up of its map."""
        if self.highest == 8:
            return [
                (self.up1, self.fixup_proj_2x),
                (self.up2, self.fixup_proj_4x),
                (self.up3, self.fixup_proj_8x),
            ]
        if self.highest == 4:
            return [(self.up1, None), (self.up2, self.fixup_proj)]
        return [(self.up1, self.fixup_proj)]

    def kernels(
        self, shape: tuple[int, int], pixels: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        """Compute what the 2x steps of a map of `shape`, (h, w), take from the pixels, without a map.

        Returns:
            the kernels of each step, (N, P, 2h, 2w) and so on, float32; and the dropout factors, (N, C), of its map's
            fix-up, None where nothing is dropped. Drawn in the order in which `forward` draws them.
        """
        kernels: list[torch.Tensor] = []
        factors: list[torch.Tensor | None] = []
        for step, (upsampler, fixup) in enumerate(self.steps(), start=1):
            kernels.append(upsampler(guide(pixels, (2**step * shape[0], 2**step * shape[1]))).float())
            factors.append(fixup.dropout_factors(len(pixels)) if fixup is not None and fixup.training else None)
        return kernels, factors

    def forward(self, features: torch.Tensor, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps of the levels, ascending: (N, C, h, w), (N, 3, ., .) to a list of (N, C, s·h, s·w)."""
        maps = {1: features}
        current = features
        for step, (upsampler, fixup) in enumerate(self.steps(), start=1):
            current = upsample(upsampler, current, pixels)
            if fixup is not None:
                current = current + FIXUP_SCALE * fixup(current)
            maps[2**step] = current
        return [maps[level] for level in self.levels]


class BilinearPyramid(nn.Module):
    """The pyramid without learning or guidance: each level interpolated from the encoder's own map."""

    def __init__(self, levels: list[int]):
        super().__init__()
        self.levels = levels

    def reset_parameters(self) -> None:
        """Do nothing: there are no weights."""

    def forward(self, features: torch.Tensor, pixels: torch.Tensor) -> list[torch.Tensor]:
        """See `JBUPyramid.forward`; the pixels are ignored."""
        return [
            features
            if level == 1
            else F.interpolate(features, scale_factor=level, mode="bilinear", align_corners=False)
            for level in self.levels
        ]


Pyramid = JBUPyramid | BilinearPyramid | DeconvolutionPyramid | CustomPyramid


def build_pyramid(upsampler: str, channels: int, levels: list[int]) -> Pyramid:
    """Build the pyramid of a config; level 1 alone needs no up-sampler, whichever is named.

    Args:
        upsampler: name of a built-in or registered up-sampler.
        channels: channels of the encoder, C.
        levels: levels of the pyramid, ascending.

    Raises:
        ValueError: no up-sampler of this name is registered.
    """
    if upsampler in ("bilinear", "none") or levels == [1]:
        return BilinearPyramid(levels)
    if upsampler == "jbu":
        return JBUPyramid(channels, levels)
    if upsampler == "deconvolution":
        return DeconvolutionPyramid(channels, levels)
    return CustomPyramid(upsampler, channels, levels)


__all__ = ["JBUPyramid", "build_pyramid", "register_upsampler", "upsampler_names"]
