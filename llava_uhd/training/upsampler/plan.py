"""The plan of stage 0: what it trains and how long it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..assembly import vision_config_of
from ..recipe import UpsamplerRecipe
from .images import find_images


@dataclass(frozen=True)
class UpsamplerPlan:
    """Plan that `--dry-run` prints.

    Attributes:
        parameters: parameters of each module; all are trained, and the last two thrown away afterwards.
        images: number of training images; None where the folder is not there.
        steps: maximum number of steps: images of one size must fill a batch.
        memory_gib: bytes on each device, of weights, gradients, moments and maps.
    """

    parameters: dict[str, int]
    devices: int
    images: int | None
    steps: int | None
    memory_gib: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "parameters": self.parameters,
            "devices": self.devices,
            "pictures": self.images,  # former name, kept for readers of the JSON
            "steps": self.steps,
            "memory_gib": self.memory_gib,
        }

    def lines(self) -> list[str]:
        shown = [f"{name:26} {number:>16,} trainable" for name, number in self.parameters.items()]
        for name in ("devices", "images", "steps"):
            value = getattr(self, name)
            shown.append(f"{name:26} {'unknown' if value is None else format(value, ','):>16}")
        return [*shown, f"{'memory':26} {self.memory_gib:>12.1f} GiB"]


def make_plan(recipe: UpsamplerRecipe, devices: int) -> UpsamplerPlan:
    """Plan a run.

    Raises:
        ValueError: the batch does not divide among the devices, or there are too few images.
    """
    from .training import CloserLook, Reconstruction

    batch, epochs = recipe.optimization.global_batch, recipe.schedule.epochs
    if batch % devices:
        raise ValueError(f"a batch of {batch} does not divide among {devices} devices")
    vision = vision_config_of(recipe.model.vision_tower)
    with torch.device("meta"):
        objective = CloserLook if recipe.loss.objective == "closer_look" else Reconstruction
        module = objective(vision["hidden_size"], recipe)
    modules: dict[str, nn.Module] = {"upsampler": module.pyramid}
    if isinstance(module, Reconstruction):
        modules |= {"downsamplers": module.downsamplers, "scale nets": module.scale_nets}
    parameters = {
        name: sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)
        for name, part in modules.items()
    }
    images = steps = None
    if Path(recipe.data.images).expanduser().is_dir():
        images = len(find_images(recipe.data.images, recipe.data.held_out)[0])
        steps = min(epochs * (images // batch), recipe.schedule.max_steps or epochs * images)
    # Of each level the enlarged map, moved, blurred, cut into squares, with their gradients; and the tower.
    maps = 8 * 4 * batch // devices * vision["hidden_size"] * recipe.data.image_size**2
    tower = 4 * 12 * vision["hidden_size"] ** 2 * vision["num_hidden_layers"]
    memory = 16 * sum(parameters.values()) + len(module.pyramid.steps()) * maps + tower
    return UpsamplerPlan(parameters, devices, images, steps, round(memory / 2**30, 1))
