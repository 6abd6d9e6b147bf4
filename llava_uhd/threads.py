"""Threads of PyTorch on the CPU: as many as there is time for, and none that spins while it waits.

OpenMP's threads spin between two operations by default. That is fastest on a quiet machine and ruinous on a busy one,
or in a container with less CPU time than cores: a thread that spins uses up the time of the one it waits for. Passive
waiting must be asked for in the environment before PyTorch is imported.
"""

import math
import os
import sys
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cpu_limit(cgroup: Path = CGROUP) -> float | None:
    """Return the CPUs' worth of time that a container may use; None without a limit.

    Args:
        cgroup: mount point of control groups; versions 2 and 1 are read.
    """
    v2, quota, period = cgroup / "cpu.max", cgroup / "cpu/cpu.cfs_quota_us", cgroup / "cpu/cpu.cfs_period_us"
    if v2.is_file():
        numbers = v2.read_text().split()
    elif quota.is_file() and period.is_file():
        numbers = [quota.read_text().strip(), period.read_text().strip()]
    else:
        return None
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers) or int(numbers[1]) == 0:
        return None  # "max", or -1: no limit
    return int(numbers[0]) / int(numbers[1])


def available_cpus(cgroup: Path = CGROUP) -> int:
    """Return the CPUs this process may use: its affinity, or less where its control group has less time.

    Args:
        cgroup: mount point of control groups.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cpu_limit(cgroup)
    return count if limit is None else max(min(count, math.floor(limit)), 1)


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment says otherwise; before torch is imported."""
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault("KMP_BLOCKTIME", "0")


def use_threads(number: int | None) -> int:
    """Set the number of PyTorch's threads, and return it.

    Args:
        number: None for `OMP_NUM_THREADS`, or else the CPUs that are available.
    """
    import torch

    if number is None and "OMP_NUM_THREADS" not in os.environ:
        number = min(torch.get_num_threads(), available_cpus())
    if number is not None:
        torch.set_num_threads(number)
    return torch.get_num_threads()
