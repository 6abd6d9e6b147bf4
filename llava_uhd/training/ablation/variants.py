"""What is compared: the steps from v1 to v2, the levels, and what stands beside them."""

from dataclasses import dataclass

from experiments.tiny_v1.setting import build_config

from ...model.configuration_llava_uhd import LlavaUhdConfig, LlavaUhdProjectorConfig

# Windows along a side of a view of 8 x 8 patches: four patches for a token, as 576 patches for 144 published ones.
QUERY_GRID = 4


@dataclass(frozen=True)
class Variant:
    """A projector, and the views it is given.

    Attributes:
        label: of its row in the table.
        type, levels, upsampler: see `LlavaUhdProjectorConfig`.
        overview_only: it sees the whole page in one view, not its slices.
    """

    label: str
    type: str = "hiwin"
    levels: tuple[int, ...] = (1, 2, 4)
    upsampler: str = "jbu"
    overview_only: bool = False

    @property
    def stage0(self) -> int | None:
        """The highest level of the up-sampler from stage 0 that it begins with, None without one."""
        return max(self.levels) if self.type == "hiwin" and self.upsampler == "jbu" else None

    def build_config(self) -> LlavaUhdConfig:
        """The built-in model's configuration with this projector in it."""
        config = build_config()
        # As many heads as the built-in model has: published ones are 128 channels wide.
        options = {"type": self.type, "levels": self.levels, "upsampler": self.upsampler}
        config.projector = LlavaUhdProjectorConfig(
            **options, query_grid=QUERY_GRID, num_attention_heads=4, unshuffle_factor=2
        )
        return config


VARIANTS = {
    "mlp": Variant("pixel-unshuffle and MLP, as many tokens", type="mlp", levels=(1,), upsampler="none"),
    "resampler": Variant("v1's resampler", type="resampler", levels=(1,), upsampler="none"),
    "hiwin-1": Variant("HiWin on 1x: no pyramid", levels=(1,), upsampler="none"),
    "hiwin-bilinear": Variant("HiWin on 1x 2x 4x, bilinear", upsampler="bilinear"),
    "hiwin-jbu-2": Variant("HiWin on 1x 2x, JBU", levels=(1, 2)),
    "hiwin-jbu": Variant("HiWin on 1x 2x 4x, JBU: v2", levels=(1, 2, 4)),
    "overview": Variant("v2 without slices: the overview only", overview_only=True),
}
