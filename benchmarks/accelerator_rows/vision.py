"""Rows of the vision path: pyramid and projector alone, the encoder alone, and pixels to image tokens."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from llava_uhd.benchmark import reference
from llava_uhd.benchmark.compare import hiwin_of
from llava_uhd.benchmark.inputs import plain_image_features, prepare
from llava_uhd.benchmark.measure import alternate, relative_error
from llava_uhd.benchmark.sizes import build
from llava_uhd.flops import projector_flops, reference_projector, tower_flops
from llava_uhd.model.hiwin import HiWinProjector

from .counting import OperationCounter, fewest_vision_bytes
from .setting import Cells, Run, Setting, capture, dearest, mebibytes, median, num_launches

NO_GRAPH = "CUDA graphs need a CUDA device"


@dataclass
class Path:
    """The parts of the vision path at some number of views, as functions without arguments.

    Attributes:
        encode: encoder of every group of views.
        project: pyramid and projector on the encoder's features.
        whole: pixels to image tokens.
        plain_project, plain_whole: the reference formulation of the same.
        expected: the reference formulation in fp32, of the projector on the same features and of the whole path.
        flop: operations of encoder, projector and the reference projector, by name.
        fewest_bytes: weights, inputs and outputs once, of the encoder and of the projector.
    """

    encode: Run
    project: Run
    whole: Run
    plain_project: Run
    plain_whole: Run
    expected: Callable[[], dict[str, torch.Tensor]]
    flop: dict[str, float]
    fewest_bytes: dict[str, float]


def image_of(views: int, setting: Setting) -> tuple[int, int]:
    """Return the (width, height) of an image with 1, 7 or 10 views."""
    side = setting.sizes.view_size
    return {1: (side, side), 7: setting.image, 10: (3 * side, 3 * side)}[views]


def build_path(views: int, setting: Setting) -> Path:
    """Build a model with random weights and the vision path of one image with some number of views."""
    sizes, device = setting.sizes, setting.device
    model = build(sizes, device, setting.dtype)
    images = prepare(sizes, model, [image_of(views, setting)], 9, device, setting.dtype)
    assert len(images.shapes) == views, f"{len(images.shapes)} views instead of {views}"
    inner, inputs = model.model, images.inputs
    grouped = inner.group_views(
        len(inputs["pixel_values"]), inputs["view_shapes"], inputs["num_views"], inputs["grids"]
    )
    pixels = inputs["pixel_values"]
    indices = [group.patch_indices.to(device) for group in grouped.groups]
    shapes = [group.shape for group in grouped.groups]

    def encode() -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [inner.encode(pixels[index], shape) for index, shape in zip(indices, shapes, strict=True)]

    with torch.no_grad():
        features, guides = map(list, zip(*encode(), strict=True))
    projector = hiwin_of(model)

    def plain_project(projector: HiWinProjector = projector, dtype: torch.dtype = setting.dtype) -> torch.Tensor:
        groups = zip(features, guides, strict=True)
        return torch.cat([reference.tokens(projector, f.to(dtype), g.to(dtype)).flatten(0, 1) for f, g in groups])

    def expected() -> dict[str, torch.Tensor]:
        exact = copy.deepcopy(model).float()
        exact_images = replace(images, inputs={**inputs, "pixel_values": pixels.float()})
        return {
            "projector": plain_project(hiwin_of(exact), torch.float32).cpu(),
            "vision": plain_image_features(exact, exact_images).cpu(),
        }

    config = model.config
    return Path(
        encode=lambda: torch.cat([pair[0].flatten() for pair in encode()]),
        project=lambda: torch.cat([group.flatten(0, 1) for group in projector(features, guides)]),
        whole=lambda: inner.image_tokens(pixels, grouped),
        plain_project=plain_project,
        plain_whole=lambda: plain_image_features(model, images),
        expected=expected,
        flop={
            "encoder": sum(tower_flops(config, shape) for shape in images.shapes),
            "projector": sum(projector_flops(config, shape).total for shape in images.shapes),
            "plain": sum(reference_projector(config, shape).total for shape in images.shapes),
        },
        fewest_bytes=fewest_vision_bytes(sizes, images.shapes),
    )


def _cells(
    name: str, taken_s: float, peak: int | None, flop: float, rate: float, error: float | None, encoder_s: float | None
) -> Cells:
    return {
        "measured": name,
        "ms": 1000 * taken_s,
        "of encoder": None if encoder_s is None else taken_s / encoder_s,
        "TFLOP/s": flop / taken_s / 1e12,
        "of matmul rate": flop / taken_s / rate,
        "error": error,
        "peak MiB": mebibytes(peak),
    }


def _traffic(run: Run, setting: Setting, fewest: float) -> Cells:
    with OperationCounter() as counter:
        run()
    return {"launches": num_launches(run, setting), "MB moved": counter.bytes / 1e6, "MB fewest": fewest / 1e6}


@torch.no_grad()
def eager(setting: Setting, views: int) -> Iterator[Cells]:
    """Reference, fused path and the encoder alone in eager mode, alternating in one process."""
    path, rate = build_path(views, setting), setting.rate()
    expected = path.expected()
    ways: dict[str, Run] = {
        "encoder": path.encode,
        "projector": path.project,
        "projector, plain": path.plain_project,
        "vision": path.whole,
        "vision, plain": path.plain_whole,
    }
    for run in ways.values():
        run()
        run()
    taken = alternate(ways, setting.runs, setting.device)
    errors = {
        name: relative_error(run().cpu(), expected[name.removesuffix(", plain")])
        for name, run in ways.items()
        if name != "encoder"
    }
    encoder, projector = path.flop["encoder"], path.flop["projector"]
    flop = {
        "encoder": encoder,
        "projector": projector,
        "projector, plain": path.flop["plain"],
        "vision": encoder + projector,
        "vision, plain": encoder + path.flop["plain"],
    }
    fewest = path.fewest_bytes["encoder"], path.fewest_bytes["projector"]
    for name, run in ways.items():
        of = fewest[0] if name == "encoder" else fewest[1] if name.startswith("projector") else sum(fewest)
        cells = _cells(
            f"{name}, {views} views",
            taken[name].seconds,
            taken[name].peak_bytes,
            flop[name],
            rate,
            errors.get(name),
            taken["encoder"].seconds if name != "encoder" else None,
        )
        cells |= _traffic(run, setting, of)
        if setting.with_profile:
            cells["kernels"] = dearest(run, setting)
        yield cells


def _faster(
    setting: Setting, views: int, mode: str, wrap: Callable[[Run], Run], names: tuple[str, ...]
) -> Iterator[Cells]:
    path, rate = build_path(views, setting), setting.rate()
    expected = path.expected()
    ways: dict[str, Run] = {"encoder": path.encode, "projector": path.project, "vision": path.whole}
    flop = {**path.flop, "vision": path.flop["encoder"] + path.flop["projector"]}
    encoder_s = None
    for name in names:
        ways[name]()  # folds the weights and fills the caches
        run = wrap(ways[name])
        taken = median(run, setting)
        error = relative_error(run().cpu(), expected[name]) if name in expected else None
        cells = _cells(
            f"{name}, {views} views, {mode}", taken.seconds, taken.peak_bytes, flop[name], rate, error, encoder_s
        )
        if setting.is_cuda:  # elsewhere they are counted as operations, which compiled code does not dispatch
            cells["launches"] = num_launches(run, setting)
        encoder_s = taken.seconds if name == "encoder" else encoder_s
        if setting.with_profile:
            cells["kernels"] = dearest(run, setting)
        yield cells


@torch.no_grad()
def graph(setting: Setting, views: int) -> Iterator[Cells]:
    """Encoder, projector and whole path, each captured in a CUDA graph; the launches are the kernels in the graph."""
    if not setting.is_cuda:
        yield {"measured": f"encoder, projector, vision, {views} views, CUDA graph", "status": f"skipped: {NO_GRAPH}"}
        return
    yield from _faster(
        setting, views, "CUDA graph", partial(capture, setting=setting), ("encoder", "projector", "vision")
    )


@torch.no_grad()
def compiled(setting: Setting, views: int, name: str) -> Iterator[Cells]:
    """One part compiled as one graph: by Inductor and replayed as a CUDA graph, traced alone in a dry run.

    Inductor's C++ code for a CPU takes minutes to compile.
    """

    def wrap(run: Run) -> Run:
        faster = torch.compile(run, fullgraph=True, dynamic=False, backend="eager" if setting.small else "inductor")
        faster()
        return capture(faster, setting) if setting.is_cuda else faster

    mode = "compiled" + (" (traced alone)" if setting.small else "") + (", CUDA graph" if setting.is_cuda else "")
    yield from _faster(setting, views, mode, wrap, (name,))
