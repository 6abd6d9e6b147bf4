"""Former public names: they keep working for a while and warn with the new name."""

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


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


def renamed_fields(**names: str) -> Callable[[type[T]], type[T]]:
    """Return a class decorator that keeps former field names working, as arguments and as attributes, with a warning.

    Args:
        names: former name to new one.
    """

    def warn(cls: type[T], former: str) -> None:
        message = f"{cls.__module__}.{cls.__qualname__}.{former} is now {names[former]}"
        warnings.warn(message, DeprecationWarning, stacklevel=3)

    def decorate(cls: type[T]) -> type[T]:
        initialize = cls.__init__

        @functools.wraps(initialize)
        def initialize_with_former_names(self: T, *args: Any, **values: Any) -> None:
            for former in names.keys() & values.keys():
                warn(cls, former)
                if names[former] in values:
                    raise TypeError(f"{former} and {names[former]} are the same argument")
                values[names[former]] = values.pop(former)
            initialize(self, *args, **values)

        def read(former: str) -> property:
            def get(self: T) -> Any:
                warn(cls, former)
                return getattr(self, names[former])

            return property(get)

        for former in names:
            setattr(cls, former, read(former))
        cls.__init__ = initialize_with_former_names  # type: ignore[method-assign, assignment]
        return cls

    return decorate
