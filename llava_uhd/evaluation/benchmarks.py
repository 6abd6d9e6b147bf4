"""Former name of `tasks`; importing from here warns and names the new place."""

import warnings
from typing import Any

from . import tasks

_RENAMED = {"BENCHMARKS": "TASKS", "Benchmark": "Task", "find_benchmark": "find_task"}


def __getattr__(name: str) -> Any:
    new = _RENAMED.get(name, name)
    if name.startswith("__") or not hasattr(tasks, new):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{__name__}.{name} is now llava_uhd.evaluation.tasks.{new}", DeprecationWarning, stacklevel=2)
    return getattr(tasks, new)
