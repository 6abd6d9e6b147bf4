"""The project's own files: bounds of dependencies, environments of the tests."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def requirements() -> dict[str, str]:
    """Every direct requirement of pyproject.toml, name to bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    return dict(re.match(r"([\w-]+)(?:\[.*?\])?(.*)", requirement).groups() for requirement in listed)


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "tests" / "environments" / f"{name}.txt").read_text().splitlines()
    return dict(re.match(r"([\w-]+)(.*)", line).groups() for line in lines if line and not line.startswith("#"))


def test_the_oldest_environment_has_the_lowest_promised_versions():
    bounds = requirements()
    for name, version in pins("oldest").items():
        if name in ("torch", "huggingface-hub"):  # explained in the file; not a direct requirement
            continue
        lowest = re.search(r">=([\d.]+)", bounds[name]).group(1)
        assert (version.removeprefix("==") + ".").startswith(lowest + "."), f"{name}{version}, promised {bounds[name]}"


def test_transformers_has_an_upper_bound_that_the_newest_environment_shares():
    upper = re.search(r"<[\d.]+", requirements()["transformers"]).group()
    assert pins("newest")["transformers"] == upper
    pinned = re.search(r"^transformers==(.*)$", (ROOT / "constraints.txt").read_text(), re.M).group(1)
    assert tuple(map(int, pinned.split("."))) < tuple(map(int, upper[1:].split(".")))
