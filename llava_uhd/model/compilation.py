"""Decorators of `torch.compiler` with types, which PyTorch's own do not have."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def not_compiled(function: Function) -> Function:
    """Leave a function out of compiled graphs, and everything that it calls."""
    return cast(Function, torch.compiler.disable(function))  # type: ignore[no-untyped-call]  # torch's has no types


def constant_result(function: Function) -> Function:
    """Call a function while a graph is compiled, and take its result as a constant of the graph."""
    return cast(Function, torch.compiler.assume_constant_result(function))  # type: ignore[no-untyped-call]  # likewise
