"""Measurement of two ways of one computation: time, peak memory, error, and the machine's own rate."""

import ctypes
import datetime
import gc
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Run = Callable[[], torch.Tensor]


def synchronize(device: torch.device) -> None:
    """Wait for everything that was queued on the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def seconds(run: Run, device: torch.device) -> float:
    """Measure the seconds of one run."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Taken:
    """Time of a run, and its peak memory above the memory held before; None where that cannot be measured."""

    seconds: float
    peak_bytes: int | None


def measure(run: Run, device: torch.device) -> Taken:
    """Measure time and peak memory of one run.

    On a CPU the memory is the resident one: freed pages are first given back (`malloc_trim`), then the kernel's
    high-water mark is reset (`/proc/self/clear_refs`) and read afterwards. None where that is not Linux's.
    """
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        taken = seconds(run, device)
        return Taken(taken, torch.cuda.max_memory_allocated(device) - held)
    if platform.system() != "Linux":
        return Taken(seconds(run, device), None)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    held = _status("VmRSS")
    taken = seconds(run, device)
    return Taken(taken, _status("VmHWM") - held)


def alternate(ways: dict[str, Run], runs: int, device: torch.device) -> dict[str, Taken]:
    """Return medians of each way, all run in turn `runs` times. They must have run once before."""
    taken: dict[str, list[Taken]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, run in ways.items():
            taken[name].append(measure(run, device))
    return {name: _median(of_way) for name, of_way in taken.items()}


def _median(taken: list[Taken]) -> Taken:
    peaks = [one.peak_bytes for one in taken if one.peak_bytes is not None]
    return Taken(statistics.median(one.seconds for one in taken), round(statistics.median(peaks)) if peaks else None)


def _status(field: str) -> int:
    """Read a field of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the L2 norm of the difference over that of the expected values, in float64."""
    difference = actual.detach().double() - expected.detach().double()
    return (difference.norm() / expected.detach().double().norm()).item()


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Measure FLOP per second of a product of two square matrices: the best of five."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    a @ b
    return 2 * side**3 / min(seconds(lambda: a @ b, device) for _ in range(5))


def machine(device: torch.device) -> dict[str, Any]:
    """Return device, threads, PyTorch version and date of a measurement."""
    name = platform.processor() or platform.machine()
    if device.type != "cpu":
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
