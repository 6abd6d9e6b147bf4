"""Access to the scorers' goldens."""

import json
from pathlib import Path
from typing import Any

GOLDENS = Path(__file__).parents[1] / "goldens" / "evaluation"


def load_golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDENS / f"{name}.json").read_text())


def load_cases(name: str) -> list[dict[str, Any]]:
    """The single cases of a golden file, without its aggregates."""
    return [case for case in load_golden(name)["cases"] if "aggregate" not in " ".join(case)]
