"""Put an up-sampler of your own in the place of JBU: a guided filter in ten lines, and the place for AnyUp and others.

    python examples/own_upsampler.py

builds a small model whose pyramid is up-sampled by the guided filter, saves it, and loads it again.
"""

import tempfile

import torch
from torch import nn
from torch.nn import functional as F
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from llava_uhd import LlavaUhdConfig, LlavaUhdForConditionalGeneration, register_upsampler


class GuidedFilter(nn.Module):
    """Guided filter (He et al., 2010): in each window the map is a linear function of the pixels' brightness."""

    def __init__(self, channels: int, radius: int = 2):
        super().__init__()
        self.side = 2 * radius + 1
        self.log_smoothness = nn.Parameter(torch.full((channels,), -4.0))  # learned per channel

    def mean(self, maps: torch.Tensor) -> torch.Tensor:
        """Average each position's window."""
        return F.avg_pool2d(maps, self.side, stride=1, padding=self.side // 2, count_include_pad=False)

    def forward(self, features: torch.Tensor, pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Up-sample (N, C, h, w) by pixels (N, 3, ., .) to (N, C, *size)."""
        guide = F.adaptive_avg_pool2d(pixels.mean(dim=1, keepdim=True), size).to(features.dtype)  # N, 1, H, W
        low = F.adaptive_avg_pool2d(guide, features.shape[2:])  # N, 1, h, w
        mean_low, mean_features = self.mean(low), self.mean(features)
        covariance = self.mean(low * features) - mean_low * mean_features  # N, C, h, w
        variance = self.mean(low * low) - mean_low**2 + self.log_smoothness.exp()[:, None, None]
        slope = covariance / variance
        offset = mean_features - slope * mean_low
        slope, offset = (F.interpolate(maps, size=size, mode="bilinear") for maps in (slope, offset))
        return slope * guide + offset


class AnyUp(nn.Module):
    """AnyUp's pretrained model, frozen; it takes the features of any encoder.

    JAFAR, LoftUp, NAF and UPLiFT are wrapped likewise: load their module, reorder its arguments.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.model = torch.hub.load("wimmerth/anyup", "anyup", verbose=False).requires_grad_(False)

    def forward(self, features: torch.Tensor, pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Up-sample (N, C, h, w) by pixels (N, 3, ., .), normalized as CLIP's, to (N, C, *size)."""
        clip_mean, clip_std, mean, std = (
            pixels.new_tensor(values)[:, None, None]
            for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )
        return self.model((pixels * clip_std + clip_mean - mean) / std, features, output_size=size)


class ConvStages(nn.Module):
    """Stages of a convolutional tower in place of an up-sampled map: strides 4, 8 and 16 of a ConvNeXt, frozen.

    It ignores the encoder's features; a 1 x 1 convolution per stage, learned, brings the stages to their channels.
    """

    def __init__(self, channels: int, name: str = "facebook/convnext-tiny-224"):
        super().__init__()
        from transformers import AutoModel, ConvNextConfig

        config = ConvNextConfig.from_pretrained(name)
        self.tower = AutoModel.from_pretrained(name).requires_grad_(False)
        self.project = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in config.hidden_sizes)

    def forward(self, features: torch.Tensor, pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return the stage nearest in size to (H, W), resized to it: (N, C, *size)."""
        stages = self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states[1:]
        nearest = min(range(len(stages)), key=lambda stage: abs(stages[stage].shape[2] - size[0]))
        return F.interpolate(self.project[nearest](stages[nearest]), size=size, mode="bilinear")


# Before a model that uses them is built or loaded. A package can register them with an entry point instead:
# [project.entry-points."llava_uhd.upsamplers"]
# guided = "my_package.upsamplers:GuidedFilter"
register_upsampler("guided", GuidedFilter)
register_upsampler("anyup", AnyUp)
register_upsampler("convnext", ConvStages)


def main() -> None:
    """Build, save and load a model with the guided filter."""
    config = LlavaUhdConfig(
        vision_config={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        text_config={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        projector={"levels": [1, 2], "upsampler": "guided", "num_attention_heads": 4, "query_grid": 4},
    )
    model = LlavaUhdForConditionalGeneration(config).eval()
    projector = model.model.multi_modal_projector
    features, pixels = torch.randn(1, 64, 24, 24), torch.randn(1, 3, 336, 336)
    with torch.no_grad():
        tokens = projector(features, pixels)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = LlavaUhdForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        same = torch.equal(again.model.multi_modal_projector(features, pixels), tokens)
    print(f"{tokens.shape[1]} tokens of a view; after loading {'the same' if same else 'others'}")


if __name__ == "__main__":
    main()
