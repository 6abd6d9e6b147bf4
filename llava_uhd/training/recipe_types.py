"""Types of recipe values with their ranges. pydantic checks them strictly: a truth value is no number, 1.5 no int."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, Strict, StrictStr

from .recipe_errors import nearest

SETTINGS = ConfigDict(extra="forbid", allow_inf_nan=False)
LARGEST_INT = 2**31 - 1
LARGEST_SEED = 2**32 - 1  # of numpy


def _number(value: Any) -> Any:
    """Return the number of a text such as 1e-3, which YAML does not read as a number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _path(value: Any) -> Any:
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise ValueError(f"must be a path, got {value!r}")
    return value


Number = Annotated[float, Strict(), BeforeValidator(_number)]
NotNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(ge=1e-9, le=1e6)]
Rate = Annotated[Number, Field(gt=0)]
Whole = Annotated[int, Strict()]
Count = Annotated[Whole, Field(ge=1, le=LARGEST_INT)]
CountOrZero = Annotated[Whole, Field(ge=0, le=LARGEST_INT)]
Seed = Annotated[Whole, Field(ge=0, le=LARGEST_SEED)]
Workers = Annotated[Whole, Field(ge=0, le=1024)]
PathText = Annotated[StrictStr, BeforeValidator(_path)]


def check_names(rates: Mapping[str, float], accepted: Sequence[str], owner: str) -> None:
    """Check the names of learning rates.

    Args:
        rates: learning rates by name.
        accepted: names that exist.
        owner: beginning of the message, which the accepted names end.

    Raises:
        ValueError: a name is unknown.
    """
    for name in rates:
        if name not in accepted:
            raise ValueError(
                f"optimization.learning_rates.{name}: {owner} {', '.join(accepted)} "
                f"(nearest: {nearest(name, accepted)})"
            )
