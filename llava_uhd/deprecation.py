"""Former public names: they keep working for a while and warn with the new name."""

import importlib
import warnings
from collections.abc import Callable
from typing import Any


def former_names(module: str, names: dict[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module that has renamed some of its names.

    Args:
        module: `__name__` of the module.
        names: former name to new one, either in the same module or as a full path with dots.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        path = names[name] if "." in names[name] else f"{module}.{names[name]}"
        warnings.warn(f"{module}.{name} is now {path}", DeprecationWarning, stacklevel=2)
        place, _, new = path.rpartition(".")
        return getattr(importlib.import_module(place), new)

    return get
