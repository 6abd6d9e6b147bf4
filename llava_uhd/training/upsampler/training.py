"""Stage 0: from a folder of images to `<out>/upsampler.safetensors`."""

import copy
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import TrainingArguments

from ...distributed import Rank
from ...files import lock_folder, replace_file, write_json
from ...model.pyramid import FIXUP_SCALE, JBUPyramid, upsample
from ..assembly import CHECKSUM, UPSAMPLER_FILE, weights_checksum
from ..folder import check_data, claim_folder, record_data
from ..recipe import UpsamplerRecipe, recipe_text
from ..recipe_types import LARGEST_INT
from ..trainer import step_of
from ..tuning import find_checkpoint
from .features import Features, load_tower
from .images import Images, find_images, images_fingerprint
from .jitter import Move, move
from .losses import crf_loss, draw_places, draw_projection, project, reconstruction_loss, total_variation
from .quality import Quality, measure, pyramid_upsample
from .reconstruction import AttentionDownsampler, ScaleNet
from .stage_trainer import (
    FORMER_STATE,
    OPTIMIZERS,
    ImageMeter,
    ImageOrder,
    TensorBoard,
    UpsamplerTrainer,
    collate,
    convert_former_state,
    learning_rates,
    rate_name,
)

CHECKPOINTS_KEPT = 2


def stage_maps(
    pyramid: JBUPyramid, features: torch.Tensor, pixels: torch.Tensor, every_level: bool = True
) -> list[torch.Tensor]:
    """The maps above 1x, ascending.

    Args:
        pyramid: the up-sampler.
        features: maps of the tower, (N, C, h, w).
        pixels: images, (N, 3, H, W).
        every_level: each level learns from its own loss, the map below it detached; otherwise gradients reach the
            levels below.
    """
    maps = []
    for upsampler, fixup in pyramid.steps():
        current = upsample(upsampler, features, pixels)
        if fixup is not None:
            current = current + FIXUP_SCALE * fixup(current)
        maps.append(current)
        features = current.detach() if every_level else current
    return maps


def build_pyramid(channels: int, recipe: UpsamplerRecipe) -> JBUPyramid:
    """The untrained up-sampler of a recipe."""
    pyramid = JBUPyramid(channels, [level for level in (1, 2, 4, 8) if level <= recipe.model.highest])
    if recipe.model.highest == 8:
        pyramid.fixup_proj.requires_grad_(False)  # used by no map
    return pyramid


class CloserLook(nn.Module):
    """The up-sampler trained by regression on the tower's features of the enlarged image, tile by tile."""

    def __init__(self, channels: int, recipe: UpsamplerRecipe):
        super().__init__()
        self.recipe = recipe
        self.pyramid = build_pyramid(channels, recipe)

    def forward(self, features: torch.Tensor, pixels: torch.Tensor, closer: list[torch.Tensor]) -> torch.Tensor:
        """Sum over the levels of the squared error, divided by the variance of the closer look.

        Args:
            features: maps of the tower, (N, C, h, w).
            pixels: images, (N, 3, H, W).
            closer: closer look of each level above 1x, ascending, (N, C, s·h, s·w).
        """
        every_level = self.recipe.loss.levels == "every"
        maps = stage_maps(self.pyramid, features, pixels, every_level)
        used = slice(None) if every_level else slice(-1, None)
        losses = [
            (map_ - target).square().mean() / (target - target.mean(dim=(0, 2, 3), keepdim=True)).square().mean()
            for map_, target in zip(maps[used], closer[used], strict=True)
        ]
        return torch.stack(losses).sum()


class Reconstruction(nn.Module):
    """The up-sampler with all that it is trained with; its forward pass is the loss of one move of some images."""

    def __init__(self, channels: int, recipe: UpsamplerRecipe):
        super().__init__()
        self.recipe = recipe
        self.pyramid = build_pyramid(channels, recipe)
        trained = len(self.pyramid.steps()) if recipe.loss.levels == "every" else 1
        self.downsamplers = nn.ModuleList(
            AttentionDownsampler(channels, recipe.loss.downsampler_kernel) for _ in range(trained)
        )
        self.scale_nets = nn.ModuleList(ScaleNet(channels) for _ in range(trained))

    def forward(
        self,
        features: torch.Tensor,
        pixels: torch.Tensor,
        moved_features: torch.Tensor,
        moved_pixels: torch.Tensor,
        by: Move,
        smooth: bool,
    ) -> torch.Tensor:
        """The loss, divided by the number of moves.

        Args:
            features: (N, C, h, w), of the tower for `pixels`.
            pixels: (N, 3, H, W).
            moved_features: (N, C, h, w), of the tower for `moved_pixels`.
            moved_pixels: (N, 3, H, W).
            by: the move between them.
            smooth: add the smoothness terms, for one jitter of a step.
        """
        recipe, shape = self.recipe.loss, (features.shape[2], features.shape[3])
        size = (pixels.shape[2], pixels.shape[3])
        total = features.new_zeros(())
        every_level = recipe.levels == "every"
        maps = stage_maps(self.pyramid, features, pixels, every_level)
        if not every_level:
            maps = maps[-1:]
        for map_, downsampler, scale_net in zip(maps, self.downsamplers, self.scale_nets, strict=True):
            projection = None
            if recipe.projection:
                projection = draw_projection(len(features), features.shape[1], recipe.projection, features.device)
            large = F.interpolate(map_, size=size, mode="bilinear")
            moved = move(large, by, recipe.max_pad)
            rebuilt = downsampler(moved, shape)
            loss = reconstruction_loss(rebuilt, moved_features, scale_net(moved_features), projection)
            total = total + loss / recipe.jitters
            if smooth and recipe.crf > 0:
                guidance = moved_pixels if recipe.crf_jittered_guidance else pixels
                positions = draw_places(size, recipe.crf_samples, features.device)
                total = total + recipe.crf * crf_loss(guidance, project(moved, projection), positions)
            if smooth and recipe.tv > 0:
                total = total + recipe.tv * total_variation(project(moved, projection))
        return total


@dataclass(frozen=True)
class TrainedUpsampler:
    """Result of a run.

    Attributes:
        upsampler: file of the weights.
        steps: number of steps, including those before a resumption.
        loss: mean training loss at the last log.
        quality: measures of the up-sampler, the untrained one and the baselines by level, see `quality.measure`;
            empty without held-out images.
        resumed_from: step that the run continued from, None from the start.
    """

    upsampler: str
    steps: int
    loss: float | None
    quality: Quality
    resumed_from: int | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def train_upsampler(recipe: UpsamplerRecipe) -> TrainedUpsampler:
    """Run stage 0 to its end, or resume it from its newest complete checkpoint.

    Raises:
        ValueError: the recipe does not fit its images, its tower, the devices or its folder.
        RunStopped: a check stopped the run; the message says why.
    """
    out, rank = Path(recipe.out), Rank.from_environment()
    if recipe.optimization.global_batch % rank.count:
        raise ValueError(f"a batch of {recipe.optimization.global_batch} does not divide among {rank.count} devices")
    # Lock of the first rank: a second run in the same folder is rejected.
    with lock_folder(out) if rank.is_main else nullcontext():
        return _train(recipe, rank.count)


def _train(recipe: UpsamplerRecipe, devices: int) -> TrainedUpsampler:
    out, data, optimization = Path(recipe.out), recipe.data, recipe.optimization
    begun = (out / FORMER_STATE).is_file()
    arguments = _arguments(recipe, devices)
    resumed = find_checkpoint(recipe, out, UPSAMPLER_FILE, arguments, begun)
    is_main = arguments.process_index == 0
    features = Features(load_tower(recipe.model.vision_tower).to(arguments.device), recipe.model.feature_layer)
    files, held_out_files = find_images(data.images, data.held_out)
    fingerprint = images_fingerprint(files)
    check_data(out, fingerprint, begun or resumed is not None)
    style = (data.image_size, features.patch_size, data.keep_aspect, data.resample, data.normalization)
    images, held_out = Images(files, *style), Images(held_out_files, *style)
    order = ImageOrder(images, optimization.global_batch, recipe.seed)
    if not order.steps:
        raise ValueError(f"{data.images}: no {optimization.global_batch} of {len(files)} images have one size")
    arguments.max_steps = min(recipe.schedule.epochs * order.steps, recipe.schedule.max_steps or LARGEST_INT)

    torch.manual_seed(recipe.seed)
    objective = CloserLook if recipe.loss.objective == "closer_look" else Reconstruction
    module = objective(features.channels, recipe)
    untrained = copy.deepcopy(module.pyramid)
    if is_main:
        claim_folder(recipe, out)
        record_data(out, fingerprint)
        if begun and resumed is None:
            resumed = convert_former_state(out, recipe, module, arguments, order.steps)
    resumed = broadcast_object_list([resumed])[0]
    scales = [1, *_factors(module)] if recipe.loss.objective == "closer_look" else [1]
    trainer = UpsamplerTrainer(
        model=module,
        args=arguments,
        train_dataset=images.at_scales(scales),
        data_collator=collate,
        optimizer_cls_and_kwargs=(OPTIMIZERS[optimization.optimizer], {}),
        rates=learning_rates(recipe),
        group_of=partial(rate_name, recipe=recipe),
        order=order,
        meter=ImageMeter(devices),
        max_loss_rise=0.0,
        checkpoints_kept=CHECKPOINTS_KEPT,
        recipe_text=recipe_text(recipe),
        recipe=recipe,
        features=features,
    )
    board = TensorBoard(out, recipe.monitoring.images_every, held_out, features, module) if is_main else None
    if board is not None:
        trainer.add_callback(board)
    trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))

    quality: Quality = {}
    if len(held_out):
        candidates = {"untrained": untrained.to(arguments.device), "jbu": module.pyramid}
        upsamplers = {name: pyramid_upsample(pyramid) for name, pyramid in candidates.items()}
        quality = measure(upsamplers, features, held_out, _factors(module), arguments.device)
    steps = trainer.state.global_step
    if board is not None:
        write_json(out / "quality.json", quality, indent=1)
        board.write_quality(quality, steps)
        weights = {key: value.contiguous().cpu() for key, value in module.pyramid.state_dict().items()}
        with replace_file(out / UPSAMPLER_FILE) as temporary:
            save_file(weights, temporary, metadata={CHECKSUM: weights_checksum(weights)})
        (out / FORMER_STATE).unlink(missing_ok=True)
    trainer.accelerator.wait_for_everyone()
    loss = next((entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry), None)
    return TrainedUpsampler(
        str(out / UPSAMPLER_FILE), steps, loss, quality, None if resumed is None else step_of(resumed)
    )


def _arguments(recipe: UpsamplerRecipe, devices: int) -> TrainingArguments:
    """Convert the recipe to `TrainingArguments`; `max_steps` is set when the images are known."""
    return TrainingArguments(
        output_dir=recipe.out,
        per_device_train_batch_size=recipe.optimization.global_batch // devices,
        learning_rate=recipe.optimization.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,  # only the first steps are clipped, by the trainer
        logging_steps=recipe.monitoring.log_every,
        logging_nan_inf_filter=False,
        save_steps=recipe.checkpoints.save_every,
        eval_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_num_workers=recipe.data.workers,
        dataloader_pin_memory=torch.accelerator.is_available(),
        ddp_find_unused_parameters=False,
        use_cpu=not torch.accelerator.is_available(),
        disable_tqdm=True,
        seed=recipe.seed,
    )


def _factors(module: CloserLook | Reconstruction) -> list[int]:
    """Factors of the levels above 1x."""
    return [level for level in module.pyramid.levels if level > 1]
