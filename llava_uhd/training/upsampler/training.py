"""The loop of stage 0: from a folder of pictures to `<out>/upsampler.safetensors`.

Every step seeds its draws by its number, so that a run that was killed goes on as if it had not been.
"""

import copy
import json
import random
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from ...files import append_line, lock_folder, read_checked, replace_file, write_checked, write_json
from ...model.pyramid import FIXUP_SCALE, JBUPyramid, upsample
from ..assembly import UPSAMPLER_FILE
from ..folder import check_data, check_folder, claim_folder, record_data
from ..recipe import UpsamplerRecipe
from ..trainer import UNREADABLE
from ..watch import RunStopped, forget_later_steps
from .features import Features, load_tower
from .jitter import Move, draw_move, move
from .losses import crf_loss, draw_places, draw_projection, project, reconstruction_loss, total_variation
from .pictures import Pictures, batches, find_pictures, pictures_fingerprint
from .quality import Quality, false_colors, measure, pyramid_upsample
from .reconstruction import AttentionDownsampler, ScaleNet

STATE_FILE = "state.pt"
OPTIMIZERS = {"nadam": torch.optim.NAdam, "adam": torch.optim.Adam}


def stage_maps(
    pyramid: JBUPyramid, features: torch.Tensor, pixels: torch.Tensor, every_level: bool = True
) -> list[torch.Tensor]:
    """The maps above 1x, ascending.

    Args:
        pyramid: the up-sampler.
        features: maps of the tower, (N, C, h, w).
        pixels: pictures, (N, 3, H, W).
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
    """The up-sampler trained by regression on the tower's features of the enlarged picture, tile by tile."""

    def __init__(self, channels: int, recipe: UpsamplerRecipe):
        super().__init__()
        self.recipe = recipe
        self.pyramid = build_pyramid(channels, recipe)

    def forward(self, features: torch.Tensor, pixels: torch.Tensor, closer: list[torch.Tensor]) -> torch.Tensor:
        """Sum over the levels of the squared error, divided by the variance of the closer look.

        Args:
            features: maps of the tower, (N, C, h, w).
            pixels: pictures, (N, 3, H, W).
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
    """The up-sampler with all that it is trained with; its forward pass is the loss of one move of some pictures."""

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
                places = draw_places(size, recipe.crf_samples, features.device)
                total = total + recipe.crf * crf_loss(guidance, project(moved, projection), places)
            if smooth and recipe.tv > 0:
                total = total + recipe.tv * total_variation(project(moved, projection))
        return total


@dataclass(frozen=True)
class TrainedUpsampler:
    """Result of a run.

    Attributes:
        upsampler: file of the weights.
        steps: output folder of the run.
        loss: loss of the last step; None where a run resumed behind it and its state does not tell.
        quality: measures of the up-sampler, the untrained one and the baselines by level, see `quality.measure`;
            empty without held-out pictures.
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
    """Run stage 0 to its end.

    Raises:
        ValueError: the recipe does not fit its pictures, its tower or the devices.
        RunStopped: the loss is not a number.
    """
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    devices = accelerator.num_processes
    if recipe.optimization.global_batch % devices:
        raise ValueError(f"a batch of {recipe.optimization.global_batch} does not divide among {devices} devices")
    # Held by the first process for all: a second run into the same folder is refused.
    with lock_folder(Path(recipe.out)) if accelerator.is_main_process else nullcontext():
        return _train(recipe, accelerator)


def _train(recipe: UpsamplerRecipe, accelerator: Accelerator) -> TrainedUpsampler:
    devices, device, out = accelerator.num_processes, accelerator.device, Path(recipe.out)
    check_folder(recipe, out, UPSAMPLER_FILE, begun=(out / STATE_FILE).is_file())
    features = Features(load_tower(recipe.model.vision_tower).to(device), recipe.model.feature_layer)
    files, held_out_files = find_pictures(recipe.data.images, recipe.data.held_out)
    data, batch = recipe.data, recipe.optimization.global_batch
    fingerprint = pictures_fingerprint(files)
    check_data(out, fingerprint, begun=(out / STATE_FILE).is_file())
    style = (data.image_size, features.patch_size, data.keep_aspect, data.resample, data.normalization)
    pictures, held_out = Pictures(files, *style), Pictures(held_out_files, *style)
    orders = [batches(pictures, batch, recipe.seed, epoch) for epoch in range(recipe.schedule.epochs)]
    order = [indices for epoch in orders for indices in epoch][: recipe.schedule.max_steps]
    if not order:
        raise ValueError(f"{data.images}: no {batch} of {len(files)} pictures have one size")

    if accelerator.is_main_process:
        claim_folder(recipe, out)
        record_data(out, fingerprint)
    torch.manual_seed(recipe.seed)
    objective = CloserLook if recipe.loss.objective == "closer_look" else Reconstruction
    module = objective(features.channels, recipe)
    untrained = copy.deepcopy(module.pyramid)
    optimization = recipe.optimization
    groups = parameter_groups(module, recipe)
    optimizer: Any = OPTIMIZERS[optimization.optimizer](groups, lr=optimization.learning_rate)
    resumed = _resume(out, module, optimizer)
    trained, optimizer = accelerator.prepare(module, optimizer)
    first, loss = resumed or (0, None)
    if accelerator.is_main_process:
        forget_later_steps(out / "log.jsonl", first)
    writer: Any = _tensorboard(out) if accelerator.is_main_process else None

    share = batch // devices
    mine = [indices[accelerator.process_index * share :][:share] for indices in order]
    scales = [1, *_factors(module)] if recipe.loss.objective == "closer_look" else [1]
    loader = DataLoader(pictures.at_scales(scales), batch_sampler=mine[first:], num_workers=data.workers)
    bar = tqdm(total=len(order), initial=first, unit="step", file=sys.stderr, disable=not accelerator.is_main_process)
    for step, pixels in enumerate(loader, start=first + 1):
        pixels = [of_scale.to(device) for of_scale in pixels]
        loss = _step(recipe, trained, optimizer, features, pixels, step, accelerator)
        if not torch.isfinite(torch.tensor(loss)):
            file = out / f"stopped-step-{step}-rank-{accelerator.process_index}.pt"
            with replace_file(file) as temporary:
                torch.save(pixels, temporary)
            raise RunStopped(f"the loss is {loss} at step {step}; the pictures are in {file}")
        if accelerator.is_main_process:
            bar.update()
            bar.set_postfix(loss=f"{loss:.4g}")
            last = step == len(order)
            if step % recipe.monitoring.log_every == 0 or last:
                append_line(out / "log.jsonl", json.dumps({"step": step, "loss": loss}))
                writer.add_scalar("loss", loss, step)
            images_every = recipe.monitoring.images_every
            if images_every and len(held_out) and (step % images_every == 0 or last):
                writer.add_image("pyramid", _picture(module, features, held_out, device), step)
            if step % recipe.checkpoints.save_every == 0 or last:
                _save_state(out, step, loss, module, optimizer.optimizer)
    bar.close()

    quality: Quality = {}
    if len(held_out):
        candidates = {"untrained": untrained.to(device), "jbu": module.pyramid}
        upsamplers = {name: pyramid_upsample(pyramid) for name, pyramid in candidates.items()}
        quality = measure(upsamplers, features, held_out, _factors(module), device)
    if accelerator.is_main_process:
        write_json(out / "quality.json", quality, indent=1)
        for level, of_level in quality.items():
            for name, value in of_level["jbu"].items():
                writer.add_scalar(f"quality/{level}_{name}", value, len(order))
        writer.close()
        weights = {key: value.contiguous().cpu() for key, value in module.pyramid.state_dict().items()}
        with replace_file(out / UPSAMPLER_FILE) as temporary:
            save_file(weights, temporary)
    accelerator.wait_for_everyone()
    return TrainedUpsampler(str(out / UPSAMPLER_FILE), len(order), loss, quality, first if resumed else None)


def _factors(module: CloserLook | Reconstruction) -> list[int]:
    """Factors of the levels above 1x."""
    return [level for level in module.pyramid.levels if level > 1]


def parameter_groups(module: nn.Module, recipe: UpsamplerRecipe) -> list[dict[str, Any]]:
    """Return the trained parameters in one group per learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    rates, other_rate = recipe.optimization.learning_rates, recipe.optimization.learning_rate
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            named = set(name.split(".")) & rates.keys() if name.startswith("pyramid.") else set()
            rate = rates[named.pop()] if named else other_rate
            groups.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


def _step(
    recipe: UpsamplerRecipe,
    trained: nn.Module,
    optimizer: Any,
    features: Features,
    pixels: list[torch.Tensor],
    step: int,
    accelerator: Accelerator,
) -> float:
    """One step: the gradients of each loss in turn, then the optimizer. Returns the loss.

    Args:
        pixels: pictures of this device, (N, 3, H, W); for the closer look enlarged ones of each level after them.
    """
    trained.train()
    if recipe.loss.objective == "closer_look":
        total = _closer_look_gradients(recipe, trained, features, pixels, step, accelerator)
    else:
        total = _reconstruction_gradients(recipe, trained, features, pixels[0], step, accelerator)
    if step <= recipe.optimization.clip_first:
        accelerator.clip_grad_norm_(trained.parameters(), recipe.optimization.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return total


def _seed(recipe: UpsamplerRecipe, step: int, group: int) -> random.Random:
    """Seed the draws of a group of pictures at a step."""
    rng = random.Random(f"{recipe.seed}:{step}:{group}")
    torch.manual_seed(rng.getrandbits(63))
    return rng


def _closer_look_gradients(
    recipe: UpsamplerRecipe,
    trained: nn.Module,
    features: Features,
    pixels: list[torch.Tensor],
    step: int,
    accelerator: Accelerator,
) -> float:
    _seed(recipe, step, accelerator.process_index)
    low, enlarged = pixels[0], pixels[1:]
    closer = [features.of_tiles(large, large.shape[2] // low.shape[2]) for large in enlarged]
    loss = trained(features(low), low, closer)
    accelerator.backward(loss)
    return float(loss.item())


def _reconstruction_gradients(
    recipe: UpsamplerRecipe,
    trained: nn.Module,
    features: Features,
    pixels: torch.Tensor,
    step: int,
    accelerator: Accelerator,
) -> float:
    """Gradients of every jitter; groups of pictures draw their own, whatever device they are on."""
    groups = pixels.split(recipe.loss.images_per_jitter or len(pixels))
    total = 0.0
    for number, group in enumerate(groups):
        rng = _seed(recipe, step, accelerator.process_index * len(groups) + number)
        low, share = features(group), len(group) / len(pixels)
        for jitter in range(recipe.loss.jitters):
            by = draw_move((group.shape[2], group.shape[3]), recipe.loss.max_pad, recipe.loss.max_zoom, rng)
            moved = move(group, by, recipe.loss.max_pad)
            loss = share * trained(low, group, features(moved), moved, by, jitter == 0)
            accelerator.backward(loss)
            total += loss.item()
    return total


def _save_state(out: Path, step: int, loss: float, module: nn.Module, optimizer: Any) -> None:
    """Replaces the state of the run at once: a kill leaves the one before."""
    state: dict[str, Any] = {"step": step, "loss": loss}
    state |= {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
    content = BytesIO()
    torch.save(state, content)
    try:
        write_checked(out / STATE_FILE, content.getbuffer())
    except OSError as error:
        raise RunStopped(f"the state of step {step} could not be written ({error}); the one before is kept") from error


def _resume(out: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float | None] | None:
    """Read step and loss of the last state; None where there is none."""
    file = out / STATE_FILE
    if not file.is_file():
        return None
    try:
        state = torch.load(BytesIO(read_checked(file)), weights_only=True, map_location="cpu")
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"]), state.get("loss")
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunStopped(f"{file} cannot be read ({reason}): remove it to begin stage 0 again") from error


def _picture(
    module: CloserLook | Reconstruction, features: Features, held_out: Pictures, device: torch.device
) -> torch.Tensor:
    """The first held-out picture and its pyramid, in false colors."""
    module.eval()
    pixels = held_out[0][None].to(device)
    with torch.no_grad():
        maps = [map_[0] for map_ in module.pyramid(features(pixels), pixels)]
    shown = false_colors(maps, (pixels.shape[2], pixels.shape[3]))
    return torch.cat([held_out.denormalize(pixels[0]), shown], dim=2).cpu()


def _tensorboard(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("stage 0 shows its pictures in TensorBoard: pip install 'llava-uhd[train]'") from error
    return SummaryWriter(str(out / "tensorboard"))
