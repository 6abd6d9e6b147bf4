"""Error messages of recipes: one line of pydantic's errors, with dotted key, value and the nearest accepted key."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import ValidationError

LONGEST_VALUE = 80
SIMILAR = 0.8
KINDS = {
    "int_type": "int",
    "float_type": "float",
    "bool_type": "bool",
    "string_type": "str",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
}


def describe(error: ValidationError, kind: type, kinds: Sequence[type]) -> str:
    """Return all errors of a recipe in one line.

    Args:
        error: error of pydantic.
        kind: dataclass of the recipe.
        kinds: dataclasses of all recipes, in which an unknown key is looked up.
    """
    return " ".join("; ".join(_message(entry, kind, kinds) for entry in error.errors()).split())


def nearest(word: Any, accepted: Sequence[Any]) -> str:
    """Return the accepted word that is most similar."""
    return get_close_matches(str(word), [str(other) for other in accepted], n=1, cutoff=0.0)[0]


def _message(error: Any, kind: type, kinds: Sequence[type]) -> str:
    place = ".".join(str(step) for step in error["loc"] if step != "[key]")
    value = _short(error["input"])
    context = error.get("ctx", {})
    match error["type"]:
        case "missing":
            return f"{place} is missing"
        case "unexpected_keyword_argument" | "invalid_key":
            return f"unknown key {place}; nearest: {_nearest_key(place, kind, kinds)}"
        case "literal_error":
            accepted = re.findall(r"[\w.-]+(?=')|\d+", context["expected"])
            near = f" (nearest: {nearest(error['input'], accepted)})" if isinstance(error["input"], str) else ""
            return f"{place} must be one of {', '.join(accepted)}, got {value}{near}"
        case "greater_than" | "greater_than_equal":
            low = context.get("gt", context.get("ge"))
            bound = f"above {low:g}" if "gt" in context else "above 0" if 0 < low < 1e-6 else f"at least {low:g}"
            return f"{place} must be {bound}, got {value}"
        case "less_than_equal":
            return f"{place} must be at most {context['le']:g}, got {value}"
        case "finite_number":
            return f"{place} must be a finite number, got {value}"
        case "value_error":
            text = str(context["error"])
            return f"{place} {text}" if text.startswith("must") else text
        case known_type if known_type in KINDS:
            return f"{place} must be {KINDS[known_type]}, got {value}"
    return f"{place}: {error['msg']}, got {value}"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number with more digits than Python prints
        text = f"a number of {value.bit_length()} bits"
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def _nearest_key(place: str, kind: type, kinds: Sequence[type]) -> str:
    """Return the key that is meant: the most similar one here, or one of almost this name elsewhere in a recipe."""
    *way, last = place.split(".")
    names = [key.rpartition(".")[2] for key in _keys(kind) if key.split(".")[:-1] == _without_indices(way)]
    names = names or [entry.name for entry in fields(kind)]
    if not get_close_matches(last, names, n=1, cutoff=SIMILAR):
        for other in (kind, *kinds):
            elsewhere = {key.rpartition(".")[2]: key for key in reversed(_keys(other))}
            if similar := get_close_matches(last, elsewhere, n=1, cutoff=SIMILAR):
                return elsewhere[similar[0]]
    return ".".join([*way, nearest(last, names)])


def _without_indices(way: Sequence[str]) -> list[str]:
    return [step for step in way if not step.isdigit()]


@cache
def _keys(kind: Any, prefix: str = "") -> tuple[str, ...]:
    """Return the dotted keys of a recipe, sections among them; keys of a list's entries without an index."""
    hints = get_type_hints(kind)
    found: list[str] = []
    for entry in fields(kind):
        found.append(prefix + entry.name)
        for section in _sections(hints[entry.name]):
            found += _keys(section, f"{prefix}{entry.name}.")
    return tuple(found)


def _sections(hint: Any) -> Iterator[type]:
    """Yield the dataclasses in a type."""
    if is_dataclass(hint):
        yield hint  # type: ignore[misc]
    elif get_origin(hint) is not dict:
        for part in get_args(hint):
            yield from _sections(part)
