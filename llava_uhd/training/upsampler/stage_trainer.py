"""Stage 0 in the Trainer of stages 1 and 2: its gradients, batches, images for TensorBoard, and former run folders.

The draws of a step are seeded by its number, so that a resumed run continues bit by bit.
"""

import random
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...files import read_checked, seal_folder, write_text
from ..recipe import UpsamplerRecipe, recipe_text
from ..trainer import COMPLETE, RECIPE_COPY, UNREADABLE, StageTrainer, unreadable_because
from ..watch import RunStopped
from .features import Features
from .images import Images, batches
from .jitter import draw_move, move
from .quality import Quality, false_colors

# State of a run of earlier versions; runs of today have checkpoints.
FORMER_STATE = "state.pt"
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"nadam": torch.optim.NAdam, "adam": torch.optim.Adam}
OTHER = "other"


def learning_rates(recipe: UpsamplerRecipe) -> dict[str, float]:
    """Return the learning rate of each named parameter of the up-sampler, and of all others."""
    return {OTHER: recipe.optimization.learning_rate, **recipe.optimization.learning_rates}


def rate_name(name: str, recipe: UpsamplerRecipe) -> str:
    """Return the name of a parameter's learning rate.

    Args:
        name: name of the parameter in the trained module.
        recipe: recipe of the run.
    """
    if not name.startswith("pyramid."):
        return OTHER
    return next((step for step in name.split(".") if step in recipe.optimization.learning_rates), OTHER)


class ImageOrder(Sampler[int]):
    """Sampler of images in batches of one size; call `set_epoch` before each pass.

    Args:
        images: training images.
        global_batch: images per step, over all devices.
        seed: seed of the order.
    """

    def __init__(self, images: Images, global_batch: int, seed: int):
        self.images, self.global_batch, self.seed, self.epoch = images, global_batch, seed, 0
        self.steps = len(batches(images, global_batch, seed, 0))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = batches(self.images, self.global_batch, self.seed, self.epoch)
        return iter([index for batch in order for index in batch])

    def __len__(self) -> int:
        return self.steps * self.global_batch


def collate(samples: list[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack images of one size; each comes at several scales, ascending from 1."""
    return {f"pixels_{index}": torch.stack(images) for index, images in enumerate(zip(*samples, strict=True))}


class ImageMeter:
    """Throughput meter of this device since the last reading.

    Args:
        devices: number of devices.
    """

    def __init__(self, devices: int):
        self.devices, self.images, self.since = devices, 0, time.perf_counter()

    def add(self, inputs: dict[str, torch.Tensor]) -> None:
        """Count a batch."""
        self.images += len(inputs["pixels_0"])

    def read(self) -> dict[str, float]:
        """Return images per second of all devices since the last reading."""
        now = time.perf_counter()
        per_second = self.devices * self.images / (now - self.since)
        self.images, self.since = 0, now
        return {"samples_per_second": per_second}


class UpsamplerTrainer(StageTrainer):
    """Trainer of stage 0.

    Args:
        recipe: recipe of the run.
        features: frozen vision tower.
        kwargs: arguments of `StageTrainer`.
    """

    advice = "optimization.global_batch or data.image_size"

    def __init__(self, *args: Any, recipe: UpsamplerRecipe, features: Features, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.recipe, self.features = recipe, features
        self.add_callback(LogLastStep)

    def _backward(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Compute the gradients of a step, one loss after another, and return the sum of the losses."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        pixels = [inputs[name] for name in sorted(inputs)]
        step = self.state.global_step + 1
        total = 0.0
        losses = self._closer_look if self.recipe.loss.objective == "closer_look" else self._reconstruction
        for loss in losses(model, pixels, step):
            self.accelerator.backward(loss)
            total += loss.item()
        if step <= self.recipe.optimization.clip_first:
            self.accelerator.clip_grad_norm_(model.parameters(), self.recipe.optimization.max_grad_norm)
        return torch.tensor(total, device=self.args.device)

    def _closer_look(self, model: nn.Module, pixels: list[torch.Tensor], step: int) -> Iterator[torch.Tensor]:
        """Yield the one loss of a step: regression on the tower's features of enlarged tiles."""
        seed_draws(self.recipe, step, self.args.process_index)
        low, enlarged = pixels[0], pixels[1:]
        closer = [self.features.of_tiles(large, large.shape[2] // low.shape[2]) for large in enlarged]
        yield model(self.features(low), low, closer)

    def _reconstruction(self, model: nn.Module, pixels: list[torch.Tensor], step: int) -> Iterator[torch.Tensor]:
        """Yield the loss of every jitter; groups of images draw their own, whatever device they are on."""
        recipe, images = self.recipe.loss, pixels[0]
        groups = images.split(recipe.images_per_jitter or len(images))
        for number, group in enumerate(groups):
            rng = seed_draws(self.recipe, step, self.args.process_index * len(groups) + number)
            low, share = self.features(group), len(group) / len(images)
            for jitter in range(recipe.jitters):
                by = draw_move((group.shape[2], group.shape[3]), recipe.max_pad, recipe.max_zoom, rng)
                moved = move(group, by, recipe.max_pad)
                yield share * model(low, group, self.features(moved), moved, by, jitter == 0)


def seed_draws(recipe: UpsamplerRecipe, step: int, group: int) -> random.Random:
    """Seed the draws of a group of images at a step."""
    rng = random.Random(f"{recipe.seed}:{step}:{group}")
    torch.manual_seed(rng.getrandbits(63))
    return rng


class LogLastStep(TrainerCallback):
    """Log the last step too, whatever the steps between logs."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_log = control.should_log or state.global_step >= state.max_steps


class TensorBoard(TrainerCallback):
    """Loss, quality, and the pyramid of a held-out image in false colors, in the run's folder `tensorboard`.

    Args:
        out: folder of the run.
        images_every: steps between images; 0 disables them.
        held_out: held-out images, of which the first is shown.
        features: frozen vision tower.
        module: trained module, with `pyramid`.
    """

    def __init__(self, out: Path, images_every: int, held_out: Images, features: Features, module: Any):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("stage 0 shows its images in TensorBoard: pip install 'llava-uhd[train]'") from error
        self.writer: Any = SummaryWriter(str(out / "tensorboard"))
        self.images_every, self.held_out, self.features, self.module = images_every, held_out, features, module

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and "loss" in logs:
            self.writer.add_scalar("loss", logs["loss"], state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        step, is_last = state.global_step, state.global_step >= state.max_steps
        if self.images_every and len(self.held_out) and (step % self.images_every == 0 or is_last):
            self.writer.add_image("pyramid", self._image(args.device), step)

    @torch.no_grad()
    def _image(self, device: torch.device) -> torch.Tensor:
        """Return the first held-out image and its pyramid side by side, (3, H, maps · W)."""
        was_training = self.module.training
        self.module.eval()
        pixels = self.held_out[0][None].to(device)
        maps = [map_[0] for map_ in self.module.pyramid(self.features(pixels), pixels)]
        shown = false_colors(maps, (pixels.shape[2], pixels.shape[3]))
        self.module.train(was_training)
        return torch.cat([self.held_out.denormalize(pixels[0]), shown], dim=2).cpu()

    def write_quality(self, quality: Quality, step: int) -> None:
        """Write the measures of the trained up-sampler, and close the log."""
        for level, measures in quality.items():
            for name, value in measures["jbu"].items():
                self.writer.add_scalar(f"quality/{level}_{name}", value, step)
        self.writer.close()


def convert_former_state(
    out: Path, recipe: UpsamplerRecipe, module: nn.Module, arguments: TrainingArguments, steps_per_epoch: int
) -> Path:
    """Write the `state.pt` of a run of earlier versions as a checkpoint to resume from.

    Args:
        out: folder of the run.
        recipe: recipe of the run.
        module: module that is trained, whose weights are replaced.
        arguments: arguments of the trainer.
        steps_per_epoch: steps of a pass over the images.

    Raises:
        RunStopped: the state is damaged.
    """
    file = out / FORMER_STATE
    try:
        state = torch.load(BytesIO(read_checked(file)), weights_only=True, map_location="cpu")
        module.load_state_dict(state["module"])
        step, optimizer = int(state["step"]), state["optimizer"]
    except UNREADABLE as error:
        reason = unreadable_because(error)
        raise RunStopped(f"{file} cannot be read ({reason}): remove it to begin stage 0 again") from error
    rates = [group["lr"] for group in optimizer["param_groups"]]
    for group in optimizer["param_groups"]:
        group["initial_lr"] = group["lr"]  # as the constant schedule writes it
    history = [] if state.get("loss") is None else [{"step": step, "loss": state["loss"]}]
    placeholders = [nn.Parameter(torch.zeros(1)) for _ in rates]
    schedule = LambdaLR(
        torch.optim.SGD([{"params": [one], "lr": lr} for one, lr in zip(placeholders, rates, strict=True)]),
        [lambda _: 1.0] * len(rates),
    ).state_dict()
    schedule |= {"last_epoch": step, "_step_count": step + 1}
    folder = out / f"checkpoint-{step}"
    folder.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in state["module"].items()}, folder / "model.safetensors")
    torch.save(optimizer, folder / "optimizer.pt")
    torch.save(schedule, folder / "scheduler.pt")
    progress = TrainerState(
        global_step=step,
        epoch=step / steps_per_epoch,
        max_steps=arguments.max_steps,
        train_batch_size=arguments.per_device_train_batch_size,
        log_history=history,
        stateful_callbacks=[TrainerControl()],  # as the Trainer writes it
    )
    for name in ("logging_steps", "save_steps", "eval_steps"):
        setattr(progress, name, getattr(arguments, name))
    progress.save_to_json(str(folder / "trainer_state.json"))
    write_text(folder / RECIPE_COPY, recipe_text(recipe))
    seal_folder(folder, COMPLETE)
    return folder
