r"""The verb `upsampler` of the command line: measure up-sampled maps against the closer look.

llava-uhd upsampler quality --images photos --tower openai/clip-vit-large-patch14-336 \\
        --upsampler jbu=runs/clip-l-upsampler --upsampler mine=my_upsamplers:build
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .features import Features
    from .quality import Quality, Upsample

UNTRAINED = "untrained"

upsampler_app = typer.Typer(
    help="Up-samplers: measure their maps.", no_args_is_help=True, pretty_exceptions_enable=False
)


@upsampler_app.callback()
def _group() -> None:
    """Up-samplers: measure their maps."""


@upsampler_app.command("quality", epilog="Example: llava-uhd upsampler quality --images examples --limit 1")
def quality(
    images: Annotated[Path, typer.Option(help="Folder of images, searched at any depth.", show_default=False)],
    tower: Annotated[
        str, typer.Option(help="CLIP or SigLIP folder or hub id, or a model of this package, whose tower is used.")
    ] = "tiny",
    upsampler: Annotated[
        list[str] | None,
        typer.Option(
            help="name=PATH of a stage-0 run, its .safetensors, clip-large-jbu.ckpt or a model; name=untrained for "
            "JBU as drawn; or name=module:factory, called with the tower's channels if it takes an argument, as for "
            "register_upsampler, which returns (features, pixels, size) -> map. May be repeated. "
            "Default: that of the model, if it has one."
        ),
    ] = None,
    level: Annotated[
        list[int] | None, typer.Option(help="Factor to up-sample by; may be repeated. Default: 2.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Measure the last N images by name.")] = 48,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the square crop in pixels. Default: the tower's.")
    ] = None,
    keep_aspect: Annotated[bool, typer.Option(help="Keep aspect ratios instead of cropping squares.")] = False,
    layer: Annotated[int, typer.Option(help="Hidden state of the tower.")] = -2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Compare up-sampled maps with the tower's features of the enlarged image, beside interpolation and a constant."""
    import torch

    from .features import Features, load_tower
    from .images import Images, find_images
    from .quality import measure

    levels = sorted(set(level or [2]))
    if not set(levels) <= {2, 4, 8}:
        raise typer.BadParameter(f"levels are 2, 4 and 8, got {', '.join(map(str, levels))}", param_hint="--level")
    features = Features(load_tower(tower), layer)
    files = find_images(str(images), 0)[0][-limit:]
    side = image_size or features.tower.config.image_size
    held_out = Images(files, side, features.patch_size, keep_aspect, "bicubic", "clip")
    upsamplers = _upsamplers(upsampler, tower, features, levels)
    found = measure(upsamplers, features, held_out, levels, torch.device("cpu"))
    result = {"pictures": len(files), "quality": found}  # former name, kept for readers of the JSON
    typer.echo(json.dumps(result) if as_json else quality_table(found))


def quality_table(found: "Quality") -> str:
    """Markdown: a row for each map."""
    lines = [
        "| map | raw cosine | centered cosine | nMSE | R2 of ridge regression |",
        "|---|---|---|---|---|",
    ]
    for level, measures in found.items():
        for name, measured in measures.items():
            numbers = (measured.get(key) for key in ("cosine", "centered_cosine", "nmse", "ridge_r2"))
            lines.append(f"| {level} {name} | " + " | ".join("" if n is None else f"{n:.3f}" for n in numbers) + " |")
    return "\n".join(lines)


def _upsamplers(named: list[str] | None, tower: str, features: "Features", levels: list[int]) -> dict[str, "Upsample"]:
    from .quality import pyramid_upsample

    if named:
        found = {}
        for entry in named:
            name, equals, source = entry.partition("=")
            if not (name and equals and source):
                raise typer.BadParameter(f"expected name=PATH or name=module:function, got {entry!r}")
            if name in found:
                raise typer.BadParameter(f"{name} names two up-samplers")
            found[name] = _open(source, features, levels)
        return found
    pyramid = _pyramid_of(tower)
    if pyramid is None:
        return {}
    missing = [level for level in levels if level not in pyramid.levels]
    if missing:
        raise ValueError(f"{tower} has levels {pyramid.levels}, not {missing}: name an --upsampler")
    return {"jbu": pyramid_upsample(pyramid)}


def _pyramid_of(tower: str) -> Any:
    """The up-sampler of a model of this package, None of any other tower."""
    from ...loading import load
    from ...model.pyramid import JBUPyramid
    from .features import is_own_model

    if not is_own_model(tower):
        return None
    pyramid = getattr(load(tower, "cpu", "float32")[0].model.multi_modal_projector, "upsampler", None)
    return pyramid if isinstance(pyramid, JBUPyramid) else None


def _open(source: str, features: "Features", levels: list[int]) -> "Upsample":
    """An up-sampler from weights of stage 0, or from a function of the user's."""
    import torch

    from .quality import pyramid_upsample

    module_name, colon, function = source.partition(":")
    if colon and not Path(source).exists():
        return _import(module_name, function, features.channels)
    from ...model.pyramid import JBUPyramid
    from ..assembly import read_upsampler

    if source == UNTRAINED:
        torch.manual_seed(0)
        untrained = JBUPyramid(features.channels, [1, *levels])
        untrained.reset_parameters()
        return pyramid_upsample(untrained)
    if (of_model := _pyramid_of(source)) is not None:
        return pyramid_upsample(of_model)
    weights = read_upsampler(source)
    highest = 8 if "up3.range_temp" in weights else 4 if "up2.range_temp" in weights else 2
    if max(levels) > highest:
        raise ValueError(f"{source} up-samples by {highest} at most, level {max(levels)} is asked for")
    channels = weights["fixup_proj.1.weight"].shape[0]
    if channels != features.channels:
        raise ValueError(f"{source} is for {channels} channels, the tower has {features.channels}")
    pyramid = JBUPyramid(channels, [level for level in (1, 2, 4, 8) if level <= highest])
    pyramid.load_state_dict(weights)
    return pyramid_upsample(pyramid)


def _import(module_name: str, function: str, channels: int) -> "Upsample":
    import importlib
    import inspect

    import torch

    try:
        build = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{module_name}:{function} cannot be imported: {error}") from error
    upsampler = build(channels) if inspect.signature(build).parameters else build()
    return upsampler.eval() if isinstance(upsampler, torch.nn.Module) else upsampler
