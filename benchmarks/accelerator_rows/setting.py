"""Device, dtype and sizes of a measurement, and the tools that every row measures with."""

import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from llava_uhd.benchmark.measure import Taken, matmul_rate, measure, seconds, synchronize
from llava_uhd.benchmark.sizes import Sizes

from .counting import OperationCounter

Run = Callable[[], Any]
# Cells of a row, by column name.
Cells = dict[str, Any]

SMALL = Sizes(
    levels=(1, 2),
    query_grid=4,
    hidden=128,
    heads=2,
    vision_hidden=64,
    vision_layers=4,
    vision_intermediate=128,
    vision_heads=2,
    view_size=112,
    text_layers=2,
    vocabulary=512,
)


@dataclass(frozen=True)
class Setting:
    """Device and size of a measurement.

    Attributes:
        device: `cuda:0` or `cpu`, for example.
        small: toy sizes, for a dry run.
        with_profile: add the dearest kernels to each row.
        num_runs: number of timed runs; None for 2 at toy size, else 10.
        sizes_replaced: fields of the sizes that differ.
    """

    device: torch.device
    small: bool = False
    with_profile: bool = False
    num_runs: int | None = None
    sizes_replaced: dict[str, Any] = field(default_factory=dict)

    @property
    def is_cuda(self) -> bool:
        """Return True on CUDA, which has CUDA graphs and a profiler of kernels."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights and activations: bfloat16 on an accelerator, float32 on a CPU."""
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    @property
    def sizes(self) -> Sizes:
        """Sizes of the model: those of the paper with a 7B language model, or toy sizes."""
        return replace(SMALL if self.small else Sizes(), **self.sizes_replaced)

    @property
    def image(self) -> tuple[int, int]:
        """(width, height) of the image with 7 views: 3 x 2 slices and the overview."""
        return 3 * self.sizes.view_size, 2 * self.sizes.view_size

    @property
    def runs(self) -> int:
        """Number of timed runs of each way; the median counts."""
        return self.num_runs or (2 if self.small else 10)

    def rate(self) -> float:
        """Measure FLOP per second of a square matrix product in the setting's dtype."""
        return matmul_rate(self.device, self.dtype, 512 if self.small else 8192)


def copy_rate(setting: Setting) -> float:
    """Measure bytes per second of a copy within the device's memory, read and written bytes counted."""
    source = torch.zeros(2**22 if setting.small else 2**30, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source), setting.device) for _ in range(5))


def median(run: Run, setting: Setting, warmup: int = 2) -> Taken:
    """Measure the median time and peak memory of a run.

    Args:
        run: function to measure.
        setting: its device and number of runs.
        warmup: number of calls that are not measured.
    """
    for _ in range(warmup):
        run()
    taken = [measure(run, setting.device) for _ in range(setting.runs)]
    peaks = [one.peak_bytes for one in taken if one.peak_bytes is not None]
    return Taken(statistics.median(one.seconds for one in taken), max(peaks) if peaks else None)


def difference(longer: float, shorter: float, work: str) -> float:
    """Return the seconds of the work that one run does more than another.

    Raises:
        RuntimeError: the run that does more took no longer.
    """
    if longer <= shorter:
        raise RuntimeError(f"{work} took no time: {longer:.3f} s with them, {shorter:.3f} s without; measure again")
    return longer - shorter


def mebibytes(count: int | None) -> float | None:
    """Convert bytes; None stays None."""
    return None if count is None else count / 2**20


def kernels(run: Run, setting: Setting) -> Counter[str]:
    """Trace a run: microseconds of each kernel by name, of each operator on a CPU.

    Copies and fills on the device are kernels too.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.is_cuda else [])]
    synchronize(setting.device)
    with profile(activities=activities) as trace:
        run()
        synchronize(setting.device)
    times: Counter[str] = Counter()
    if setting.is_cuda:
        for event in trace.events() or []:
            if event.device_type == DeviceType.CUDA:
                times[event.name] += event.time_range.elapsed_us()
    else:
        for average in trace.key_averages():
            times[average.key] += average.self_cpu_time_total
    return times


def num_launches(run: Run, setting: Setting) -> int:
    """Count the launches of a run: kernels on CUDA, dispatched operations that compute elsewhere."""
    if not setting.is_cuda:
        with OperationCounter() as counter:
            run()
        return counter.launches
    synchronize(setting.device)
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        run()
        synchronize(setting.device)
    return sum(event.device_type == DeviceType.CUDA for event in trace.events() or [])


def dearest(run: Run, setting: Setting, count: int = 10) -> list[str]:
    """Return the kernels that take most of a run, one line each: share of the kernels' time, milliseconds, name."""
    times = kernels(run, setting)
    total = sum(times.values()) or 1.0
    return [f"{100 * us / total:.0f} % {us / 1000:.3f} ms {name[:100]}" for name, us in times.most_common(count)]


def capture(run: Run, setting: Setting) -> Run:
    """Capture a run in a CUDA graph; the result replays it.

    Raises:
        RuntimeError: something in the run waits for the device, or allocates in a way that cannot be captured.
    """
    stream = torch.cuda.Stream(setting.device)
    stream.wait_stream(torch.cuda.current_stream(setting.device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream(setting.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> Any:
        graph.replay()
        return out

    return replay
