"""Former name of `pipeline`; importing from here warns and names the new place."""

import warnings
from typing import Any

from . import pipeline

_RENAMED = {"run_benchmark": "evaluate_task"}


def __getattr__(name: str) -> Any:
    new = _RENAMED.get(name, name)
    if name.startswith("__") or not hasattr(pipeline, new):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{__name__}.{name} is now llava_uhd.evaluation.pipeline.{new}", DeprecationWarning, stacklevel=2)
    return getattr(pipeline, new)
