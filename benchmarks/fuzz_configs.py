"""Fuzz configurations of the built-in model: each gives a config or one line, at once.

    python benchmarks/fuzz_configs.py --number 1000

Prints one JSON object: configs refused, taken, tracebacks (must be 0) and the longest time in seconds.
"""

import argparse
import copy
import json
import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llava_uhd import LlavaUhdConfig, built_in
from llava_uhd.model_folder import read_config

VALUES: list[Any] = [None, True, -1, 0, 1, 7, 10**9, 10**18, 0.5, -2.5, float("nan"), float("inf"), "", "x", "7"]
VALUES += [[], {}, [1, 2, 3], {"a": 1}, ["x"], "ö" * 500, [[[[]]]], {"model_type": "llama"}, "float16"]


def damaged(values: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return the values with one to three of them changed, removed, renamed or added."""
    values = copy.deepcopy(values)
    for _ in range(rng.randint(1, 3)):
        place = values
        nested = [key for key, value in values.items() if isinstance(value, dict)]
        if nested and rng.random() < 0.7:
            place = values[rng.choice(nested)]
        key = rng.choice(sorted(place)) if place else "key"
        change = rng.randrange(4)
        if change == 0:
            place[key] = rng.choice(VALUES)
        elif change == 1:
            place.pop(key, None)
        elif change == 2 and key in place:
            place[key[:-1] or "k"] = place.pop(key)
        else:
            place["".join(rng.choices("abcdefgh_", k=8))] = rng.choice(VALUES)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=1000, help="number of configurations (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage (default: 0)")
    args = parser.parse_args()
    whole = json.loads(Path(built_in("tiny"), "config.json").read_text())
    read_config(Path(built_in("tiny")))  # the first one imports transformers
    rng = random.Random(args.seed)
    accepted, num_rejected, longest, tracebacks = 0, 0, 0.0, []
    with TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(args.number):
            values = damaged(whole, rng)
            (folder / "config.json").write_text(json.dumps(values))
            start = time.perf_counter()
            try:
                config = read_config(folder)
                assert isinstance(config, LlavaUhdConfig)
                accepted += 1
            except ValueError as error:
                num_rejected += 1
                if "\n" in str(error):
                    tracebacks.append(f"several lines: {error}")
            except Exception as error:
                tracebacks.append(f"{type(error).__name__}: {error}")
            longest = max(longest, time.perf_counter() - start)
    report = {"number": args.number, "taken": accepted, "refused": num_rejected, "tracebacks": len(tracebacks)}
    print(json.dumps({**report, "longest_s": round(longest, 3), "first": tracebacks[:5]}, ensure_ascii=False))
    sys.exit(bool(tracebacks) or longest > 10)


if __name__ == "__main__":
    main()
