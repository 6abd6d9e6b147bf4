"""Recipe of stage 0 as typed, frozen dataclasses; see `training.recipe`."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictStr
from pydantic.dataclasses import dataclass

from ..recipe_types import (
    SETTINGS,
    Count,
    CountOrZero,
    NotNegative,
    Number,
    PathText,
    Rate,
    Seed,
    Whole,
    Workers,
    check_names,
)

# Parameters of the up-sampler that may have learning rates of their own.
UPSAMPLER_PARAMETERS = ("range_temp", "sigma_spatial", "range_proj", "fixup_proj")


@dataclass(frozen=True, config=SETTINGS)
class UpsamplerModelRecipe:
    """Tower and up-sampler of stage 0.

    Attributes:
        vision_tower: folder or hub id of CLIP or SigLIP, or of a model of this package, whose tower is taken.
        feature_layer: hidden state of the tower that is used, -2 as published.
        highest: level of the highest map: 2, 4 or 8.
    """

    vision_tower: StrictStr
    feature_layer: Annotated[Whole, Field(ge=-1000, le=1000)] = -2
    highest: Literal[2, 4, 8] = 4


@dataclass(frozen=True, config=SETTINGS)
class UpsamplerDataRecipe:
    """Images of stage 0.

    Attributes:
        images: folder, searched for images at any depth.
        held_out: number of held-out images, the last ones by name.
        image_size: side of the square crop; with `keep_aspect` of the square of equal area.
        keep_aspect: keep an image's aspect ratio (sides in multiples of the patch) instead of cropping.
        resample: filter of the resizing; `nearest` as published.
        normalization: `imagenet` as published, or `clip`, which is what the model sees later.
        workers: processes that read images.
    """

    images: StrictStr
    held_out: CountOrZero = 32
    image_size: Annotated[Whole, Field(ge=1, le=16384)] = 336
    keep_aspect: StrictBool = False
    resample: Literal["nearest", "bicubic"] = "nearest"
    normalization: Literal["imagenet", "clip"] = "imagenet"
    workers: Workers = 4


@dataclass(frozen=True, config=SETTINGS)
class UpsamplerLossRecipe:
    """Loss of stage 0.

    Attributes:
        objective: `reconstruction` as published: maps moved and pooled down again match the tower's map of the moved
            image. `closer_look`: maps match the tower's features of the enlarged image, tile by tile; nothing of
            `jitters` to `tv` below is used.
        levels: `every` level has a loss of its own and gives no gradient to the level below it, as published;
            `highest` trains all levels by the loss of the highest map.
        jitters: views of each image.
        images_per_jitter: images of a batch that share their jitters; None for all of a device. The reference
            implementation has eight devices with two images each, so two.
        max_pad: padding and shift of a view, in pixels.
        max_zoom: largest zoom of a view.
        downsampler_kernel: side of the squares that the attention down-sampler pools.
        projection: random directions onto which features are compared; 0 compares all channels.
        crf: weight of the smoothness term (conditional random field).
        crf_samples: positions that it compares.
        crf_jittered_guidance: pair the features with the view they come from; the reference implementation takes
            the image without its jitter.
        tv: weight of the total variation.
    """

    objective: Literal["reconstruction", "closer_look"] = "reconstruction"
    levels: Literal["every", "highest"] = "every"
    jitters: Annotated[Whole, Field(ge=1, le=1024)] = 2
    images_per_jitter: Count | None = None
    max_pad: Annotated[Whole, Field(ge=0, le=16384)] = 30
    max_zoom: Annotated[Number, Field(ge=1, le=1024)] = 2.0
    downsampler_kernel: Annotated[Whole, Field(ge=1, le=1024)] = 14
    projection: Annotated[Whole, Field(ge=0, le=65536)] = 30
    crf: NotNegative = 0.001
    crf_samples: Annotated[Whole, Field(ge=1, le=10**7)] = 1000
    crf_jittered_guidance: StrictBool = True
    tv: NotNegative = 0.0


@dataclass(frozen=True, config=SETTINGS)
class UpsamplerOptimizationRecipe:
    """Optimization of stage 0.

    Attributes:
        global_batch: images per step, over all devices.
        optimizer: `nadam` as in the reference implementation, or `adam` as in the paper.
        learning_rate: learning rate of all parameters that `learning_rates` does not name.
        learning_rates: learning rates of parameters by name (`range_temp`, `sigma_spatial`, `range_proj`,
            `fixup_proj`). Adam moves a scalar by at most rate x steps, so a short run needs larger rates for the two
            scalars to change the kernels.
        max_grad_norm: maximum gradient norm of the first steps.
        clip_first: number of first steps whose gradients are clipped.
    """

    global_batch: Count = 16
    optimizer: Literal["nadam", "adam"] = "nadam"
    learning_rate: Rate = 1e-3
    learning_rates: dict[StrictStr, NotNegative] = field(default_factory=dict)
    max_grad_norm: NotNegative = 1e-4
    clip_first: CountOrZero = 10

    def __post_init__(self) -> None:
        check_names(self.learning_rates, UPSAMPLER_PARAMETERS, "the up-sampler has")


@dataclass(frozen=True, config=SETTINGS)
class UpsamplerScheduleRecipe:
    """Length of stage 0: passes over the images, and the maximum number of steps below that."""

    epochs: Annotated[Whole, Field(ge=1, le=10**6)] = 1
    max_steps: Count | None = None


@dataclass(frozen=True, config=SETTINGS)
class UpsamplerCheckpointRecipe:
    """Steps between checkpoints of stage 0."""

    save_every: Count = 500


@dataclass(frozen=True, config=SETTINGS)
class UpsamplerMonitoringRecipe:
    """Logs of stage 0.

    Attributes:
        log_every: steps between lines of `log.jsonl`.
        images_every: steps between logged images of the pyramid; 0 disables them.
    """

    log_every: Count = 10
    images_every: CountOrZero = 500


@dataclass(frozen=True, config=SETTINGS)
class UpsamplerRecipe:
    """Stage 0: the up-sampler learns to reconstruct the tower's features from several views of an image."""

    stage: Literal["upsampler"]
    out: PathText
    model: UpsamplerModelRecipe
    data: UpsamplerDataRecipe
    loss: UpsamplerLossRecipe = field(default_factory=UpsamplerLossRecipe)
    optimization: UpsamplerOptimizationRecipe = field(default_factory=UpsamplerOptimizationRecipe)
    schedule: UpsamplerScheduleRecipe = field(default_factory=UpsamplerScheduleRecipe)
    checkpoints: UpsamplerCheckpointRecipe = field(default_factory=UpsamplerCheckpointRecipe)
    monitoring: UpsamplerMonitoringRecipe = field(default_factory=UpsamplerMonitoringRecipe)
    seed: Seed = 0
