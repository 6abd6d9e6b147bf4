"""Rows of the ablation: data alone. Add a row here, and the command runs, reports and compares it."""

from dataclasses import dataclass, field
from typing import Any

from experiments.tiny_v1.setting import build_config
from llava_uhd.model.configuration_llava_uhd import LlavaUhdConfig, LlavaUhdProjectorConfig

# Windows along a side of a view of 8 x 8 patches: four patches a token, as 576 patches for 144 published ones.
QUERY_GRID = 4
TASKS = ("characters", "sub-cells")


@dataclass(frozen=True)
class ProjectorRow:
    """A projector, and the views that it is given.

    Attributes:
        label: first column of the tables.
        projector: options of `LlavaUhdProjectorConfig`, in place of its defaults.
        stage0: up-sampler to begin with, by its name in `STAGE0`; None without one.
        trained: parameter groups that learn, of those that the model has.
        overview_only: encode the whole page as one view, without slices.
        tasks: tasks that the row is measured on.
    """

    label: str
    projector: dict[str, Any]
    stage0: str | None = None
    trained: tuple[str, ...] = ("projector", "upsampler_fixup")
    overview_only: bool = False
    tasks: tuple[str, ...] = TASKS

    def build_config(self) -> LlavaUhdConfig:
        """Return the built-in model's config with this projector in it."""
        config = build_config()
        # Published heads are 128 channels wide; the built-in model's width of 192 has four.
        defaults = {"query_grid": QUERY_GRID, "num_attention_heads": 4, "unshuffle_factor": 2}
        config.projector = LlavaUhdProjectorConfig(**{**defaults, **self.projector})
        return config


@dataclass(frozen=True)
class Table:
    """Rows that are shown together, and the pairs whose differences are reported.

    Attributes:
        title: heading, with the table or figure of the paper.
        rows: names of rows, in order.
        pairs: (better, worse) as the paper orders them.
    """

    title: str
    rows: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...] = field(default=())


# Published settings are neither aligned nor tell bins apart; `LEARNS` is what a short run needs.
LEARNS: dict[str, Any] = {"aligned_windows": True, "bin_embedding": True}
ONE_LEVEL: dict[str, Any] = {"levels": (1,), "upsampler": "none"}
TWO_LEVELS: dict[str, Any] = {"levels": (1, 2)}

# Stage 0 by name: overrides of the recipe `tiny-upsampler`; None takes the up-sampler shipped with the model.
STAGE0: dict[str, dict[str, Any] | None] = {
    "shipped": None,
    "published": {"schedule.max_steps": 150},
    "published-4x": {"schedule.max_steps": 150, "model.highest": 4},
    "highest-4x": {"schedule.max_steps": 150, "model.highest": 4, "loss.levels": "highest"},
    "long": {"schedule.max_steps": 200, "optimization.learning_rate": 1e-2},
    "closer-look": {"schedule.max_steps": 300, "optimization.learning_rate": 1e-2, "loss.objective": "closer_look"},
}

ROWS: dict[str, ProjectorRow] = {
    "mlp": ProjectorRow("pixel-unshuffle and MLP", {"type": "mlp", **ONE_LEVEL}),
    "resampler": ProjectorRow("resampler of v1", {"type": "resampler", **ONE_LEVEL}),
    "resampler-aligned": ProjectorRow(
        "resampler of v1, aligned", {"type": "resampler", **ONE_LEVEL, "aligned_windows": True}
    ),
    "hiwin-1": ProjectorRow("HiWin, 1x", {**ONE_LEVEL}),
    "hiwin-1-bins": ProjectorRow("HiWin, 1x, bin embedding", {**ONE_LEVEL, "bin_embedding": True}),
    "hiwin-1-aligned": ProjectorRow("HiWin, 1x, aligned", {**ONE_LEVEL, "aligned_windows": True}),
    "hiwin-1-both": ProjectorRow("HiWin, 1x, both", {**ONE_LEVEL, **LEARNS}),
    "bilinear": ProjectorRow("HiWin, 1x 2x, bilinear", {**TWO_LEVELS, "upsampler": "bilinear"}),
    "bilinear-both": ProjectorRow("HiWin, 1x 2x, bilinear, both", {**TWO_LEVELS, **LEARNS, "upsampler": "bilinear"}),
    "jbu": ProjectorRow("HiWin, 1x 2x, JBU", {**TWO_LEVELS}, stage0="shipped"),
    "jbu-both": ProjectorRow("HiWin, 1x 2x, JBU, both", {**TWO_LEVELS, **LEARNS}, stage0="shipped"),
    "jbu-closer-look-both": ProjectorRow(
        "HiWin, 1x 2x, JBU of the closer look, both", {**TWO_LEVELS, **LEARNS}, stage0="closer-look"
    ),
    "resampler-vdim": ProjectorRow(
        "resampler of v1 on 2x, JBU, aligned",
        {**TWO_LEVELS, "type": "resampler", "input_level": 2, "aligned_windows": True},
        stage0="shipped",
    ),
    "perceiver-vdim": ProjectorRow(
        "perceiver resampler on 2x, JBU", {**TWO_LEVELS, "type": "perceiver", "input_level": 2}, stage0="shipped"
    ),
    "mlp-vdim": ProjectorRow(
        "pixel-unshuffle and MLP on 2x, JBU",
        {**TWO_LEVELS, "type": "mlp", "input_level": 2, "unshuffle_factor": 4},
        stage0="shipped",
    ),
    "deconvolution-both": ProjectorRow(
        "HiWin, 1x 2x, deconvolution, both",
        {**TWO_LEVELS, **LEARNS, "upsampler": "deconvolution"},
    ),
    "jbu-14-both": ProjectorRow("HiWin, 1x 4x, JBU, both", {"levels": (1, 4), **LEARNS}, stage0="published-4x"),
    "jbu-124-both": ProjectorRow("HiWin, 1x 2x 4x, JBU, both", {"levels": (1, 2, 4), **LEARNS}, stage0="published-4x"),
    "jbu-124-highest-both": ProjectorRow(
        "HiWin, 1x 2x 4x, JBU of the loss on 4x alone, both", {"levels": (1, 2, 4), **LEARNS}, stage0="highest-4x"
    ),
    "jbu-pyramid-grid-both": ProjectorRow(
        "HiWin, 1x 2x, JBU, both, grids 1 and 2", {**TWO_LEVELS, **LEARNS, "bin_grid": "pyramid"}, stage0="shipped"
    ),
    "overview-both": ProjectorRow(
        "HiWin, 1x 2x, JBU, both, overview only",
        {**TWO_LEVELS, **LEARNS},
        stage0="shipped",
        overview_only=True,
        tasks=("characters",),
    ),
}

TABLES: dict[str, Table] = {
    "options": Table(
        "Options of the projector: one level, `bin_embedding` x `aligned_windows`",
        ("hiwin-1", "hiwin-1-aligned", "hiwin-1-bins", "hiwin-1-both"),
        (("hiwin-1-bins", "hiwin-1"), ("hiwin-1-aligned", "hiwin-1"), ("hiwin-1-both", "hiwin-1-bins")),
    ),
    "main": Table(
        "Main rows, with both options",
        ("resampler-aligned", "mlp", "hiwin-1-both", "bilinear-both", "jbu-both", "jbu-closer-look-both"),
        (
            ("hiwin-1-both", "resampler-aligned"),
            ("hiwin-1-both", "mlp"),
            ("bilinear-both", "hiwin-1-both"),
            ("jbu-both", "bilinear-both"),
            ("jbu-closer-look-both", "bilinear-both"),
        ),
    ),
    "published": Table(
        "The same with published settings: unaligned, no bin embedding",
        ("resampler", "hiwin-1", "bilinear", "jbu"),
        (("hiwin-1", "resampler"), ("bilinear", "hiwin-1"), ("jbu", "bilinear")),
    ),
    "modules": Table(
        "Table 2 of the paper: modules",
        ("resampler-aligned", "resampler-vdim", "jbu-both"),
        (("resampler-vdim", "resampler-aligned"), ("jbu-both", "resampler-vdim")),
    ),
    "pyramids": Table(
        "Table 3 of the paper: pyramids",
        ("hiwin-1-both", "deconvolution-both", "bilinear-both", "jbu-both"),
        (("bilinear-both", "deconvolution-both"),),
    ),
    "levels": Table(
        "Table 4 of the paper: levels",
        ("jbu-both", "jbu-14-both", "jbu-124-both", "jbu-124-highest-both"),
        (("jbu-124-both", "jbu-14-both"), ("jbu-124-both", "jbu-124-highest-both")),
    ),
    "grids": Table(
        "Table 6 of the paper: grids; of square slices selective is fixed 3 x 3",
        ("jbu-pyramid-grid-both", "jbu-both"),
        (("jbu-both", "jbu-pyramid-grid-both"),),
    ),
    "projectors": Table(
        "Figure 5a of the paper: projectors of one pyramid",
        ("perceiver-vdim", "mlp-vdim", "resampler-vdim", "jbu-both"),
        (("jbu-both", "perceiver-vdim"), ("jbu-both", "mlp-vdim")),
    ),
}
