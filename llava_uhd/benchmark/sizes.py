"""Sizes of measured models, and models of those sizes with random weights. The defaults are the published ones."""

from dataclasses import dataclass

import torch
from transformers.initialization import no_init_weights

from ..model.configuration_llava_uhd import LlavaUhdConfig
from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model and of its views.

    Attributes:
        levels: levels of the pyramid.
        upsampler: `jbu`, `bilinear` or `none`.
        bin_embedding: True adds bin embeddings to the keys of the projector.
        aligned_windows: True pools windows at pixel centers.
        query_grid: side of the grid of tokens of a view.
        hidden: hidden size of the language model, a multiple of 4.
        heads: number of heads of the projector; None for one per 128 channels.
        vision_hidden, vision_layers, vision_intermediate, vision_heads: sizes of the tower.
        view_size: side of a view in pixels, in patches of 14.
        text_layers, vocabulary: sizes of the language model; its other sizes are Llama's for 4096 channels, scaled.
    """

    levels: tuple[int, ...] = (1, 2, 4)
    upsampler: str = "jbu"
    bin_embedding: bool = False
    aligned_windows: bool = False
    query_grid: int = 12
    hidden: int = 4096
    heads: int | None = None
    vision_hidden: int = 1024
    vision_layers: int = 24
    vision_intermediate: int = 4096
    vision_heads: int = 16
    view_size: int = 336
    text_layers: int = 32
    vocabulary: int = 32000

    @property
    def text_heads(self) -> int:
        """Number of attention heads of the language model."""
        return max(self.hidden // 128, 1)

    @property
    def text_intermediate(self) -> int:
        """Intermediate size of the language model's MLPs."""
        return self.hidden * 11008 // 4096

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches of a square view."""
        return self.view_size // 14, self.view_size // 14

    def config(self, with_text: bool = True) -> LlavaUhdConfig:
        """Return the model's config; without text its language model has no layers and a vocabulary of 64."""
        return LlavaUhdConfig(
            vision_config={
                "hidden_size": self.vision_hidden,
                "intermediate_size": self.vision_intermediate,
                "num_hidden_layers": self.vision_layers,
                "num_attention_heads": self.vision_heads,
                "image_size": self.view_size,
                "patch_size": 14,
            },
            text_config={
                "model_type": "llama",
                "hidden_size": self.hidden,
                "intermediate_size": self.text_intermediate,
                "num_hidden_layers": self.text_layers if with_text else 0,
                "num_attention_heads": self.text_heads,
                "num_key_value_heads": self.text_heads,
                "vocab_size": self.vocabulary if with_text else 64,
                "max_position_embeddings": 8192,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": 0,
            },
            projector={
                "levels": self.levels,
                "upsampler": self.upsampler,
                "bin_embedding": self.bin_embedding,
                "aligned_windows": self.aligned_windows,
                "query_grid": self.query_grid,
                "num_attention_heads": self.heads,
            },
            image_token_id=self.vocabulary if with_text else 64,
            # Any two tokens of the vocabulary: answers of random weights mean nothing.
            slice_separator_id=3,
            row_separator_id=4,
            max_slices=64,
        )


def build(
    sizes: Sizes, device: torch.device, dtype: torch.dtype, with_text: bool = False
) -> LlavaUhdForConditionalGeneration:
    """Build a model with random weights, in evaluation mode.

    Matrices are uniform with a standard deviation of 0.02, as at initialization; biases and all other vectors are
    disturbed a little, so that none of them is without effect.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), no_init_weights():
            model = LlavaUhdForConditionalGeneration(sizes.config(with_text)).eval()
    finally:
        torch.set_default_dtype(default)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("projector.positions"):
                continue  # computed, not drawn
            bound = 0.02 * 3**0.5
            is_gain = ("norm" in name or ".ln_" in name or "layrnorm" in name) and name.endswith("weight")
            parameter.uniform_(-bound, bound, generator=generator)
            if is_gain or name.endswith("sigma_spatial"):
                parameter.add_(1)
    return model
