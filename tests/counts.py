"""Count the structure of this checkout, and of another revision beside it, as a Markdown table.

    python -m tests.counts                     # this checkout
    python -m tests.counts cd161ef             # that revision before, this checkout after
    python -m tests.counts cd161ef --show cycles loops

Counted are the files and functions that a view runs through from pixels to image tokens, Python lines by package,
classes of configuration, training loops, options of the command line, `mypy --strict` errors of the model, import
cycles, and repeated passages; all of these are exact, and the import time beside them is a measurement. A revision is
unpacked by `git archive` into a temporary folder, and this environment's Python counts it.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks.compare_revisions import unpack

ROOT = Path(__file__).parents[1]
PACKAGE = "llava_uhd"
# Lines that a passage must have to count as repeated.
PASSAGE = 6
SETTINGS = re.compile(r"(Config|Recipe|Settings?|Options|Sizes)$")
SHOWN = ("path", "configuration", "loops", "options", "mypy", "cycles", "passages")

# Runs one view of a small model and records every function of the package that is called, outside of the constructors.
PATH = """
import json, sys
import torch
from pathlib import Path
from llava_uhd import LlavaUhdConfig, LlavaUhdForConditionalGeneration
root = str(Path(sys.argv[1], "llava_uhd"))
vision = dict(model_type="clip_vision_model", hidden_size=32, intermediate_size=64, num_hidden_layers=2,
              num_attention_heads=2, image_size=56, patch_size=14)
text = dict(model_type="llama", hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, vocab_size=128)
projector = dict(query_grid=2, num_attention_heads=2)
config = LlavaUhdConfig(vision_config=vision, text_config=text, projector=projector, image_token_id=127,
                        slice_separator_id=3, row_separator_id=4)
model = LlavaUhdForConditionalGeneration(config).eval()
if sys.argv[2] == "formula":
    norm = model.model.multi_modal_projector.ln_kv
    norm.__class__ = type("WrappedLayerNorm", (torch.nn.LayerNorm,), {})
calls = set()
def record(frame, event, argument):
    file = frame.f_code.co_filename
    if event == "call" and file.startswith(root) and "<" not in frame.f_code.co_name:
        calls.add((file[len(root) + 1:], frame.f_code.co_qualname))
with torch.no_grad():
    sys.setprofile(record)
    model.get_image_features(torch.zeros(16, 588), torch.tensor([[4, 4]]), torch.tensor([1]), torch.tensor([[0, 0]]))
    sys.setprofile(None)
print(json.dumps(sorted(calls)))
"""

# Lists every option and argument of every verb.
OPTIONS = """
import json, sys
from typer.main import get_command
from llava_uhd.cli import app
def walk(command, words):
    for parameter in command.params:
        if parameter.name != "help":
            yield " ".join([*words, parameter.name])
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, [*words, name])
print(json.dumps(list(walk(get_command(app), []))))
"""

IMPORT = """
import time
start = time.process_time()
import llava_uhd
print(time.process_time() - start)
"""


def python_files(root: Path, *folders: str) -> list[Path]:
    """Return the Python files below folders of a checkout, in order."""
    return sorted(file for folder in folders for file in (root / folder).rglob("*.py"))


def run(root: Path, code: str, *arguments: str) -> str:
    """Run code in a process of its own that imports the package from a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(root), "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"counting {root} failed: {result.stderr.strip().splitlines()[-1]}")
    return result.stdout


def path_of_a_view(root: Path, way: str) -> list[str]:
    """Return file and name of every function between pixels and image tokens, by `formula` or by default."""
    return [f"{file} {name}" for file, name in json.loads(run(root, PATH, str(root), way))]


def lines_by_package(root: Path) -> Counter[str]:
    """Count lines of Python by package; modules beside the packages count for the package itself."""
    lines: Counter[str] = Counter()
    for file in python_files(root, PACKAGE, "experiments", "benchmarks"):
        parts = file.relative_to(root).parts
        package = "/".join(parts[:2]) if parts[0] == PACKAGE and len(parts) > 2 else parts[0]
        lines[package] += len(file.read_text(encoding="utf-8").splitlines())
    return lines


def configuration_roots(root: Path) -> list[str]:
    """Return the classes of configuration that no other one holds or derives from: each begins a tree of its own."""
    found: dict[str, str] = {}
    inner: set[str] = set()
    for file in python_files(root, PACKAGE, "experiments"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef) or not SETTINGS.search(node.name):
                continue
            if any(isinstance(base, ast.Name) and base.id in ("TypedDict", "NamedTuple") for base in node.bases):
                continue  # arguments of a function
            found[node.name] = f"{file.relative_to(root)} {node.name}"
            for statement in [*node.bases, *node.body]:
                if isinstance(statement, ast.expr | ast.AnnAssign | ast.Assign):
                    names = {name.id for name in ast.walk(statement) if isinstance(name, ast.Name)}
                    inner |= names - {node.name}
    return sorted(place for name, place in found.items() if name not in inner)


def training_loops(root: Path) -> list[str]:
    """Return the functions of package and experiments that run a backward pass themselves."""
    found = []
    for file in python_files(root, PACKAGE, "experiments"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "backward"
                for call in ast.walk(node)
            ):
                found.append((file, node))
    # Of functions within one another the inner one.
    return sorted(
        f"{file.relative_to(root)} {node.name}"
        for file, node in found
        if not any(other is not node and other in ast.walk(node) for _, other in found)
    )


def strict_errors(root: Path) -> list[str]:
    """Return the errors of `mypy --strict` in the model's files, by the checkout's own configuration."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "-p", f"{PACKAGE}.model"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    output = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True).stdout
    return [line for line in output.splitlines() if line.startswith(f"{PACKAGE}/model/") and ": error:" in line]


def imported_modules(root: Path, file: Path, modules: set[str]) -> Iterator[str]:
    """Yield the package's modules that a module imports when it is imported itself."""
    parts = file.relative_to(root).with_suffix("").parts
    package = parts[:-1]

    def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
        for node in body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield node
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                yield from statements(node.orelse)
            elif isinstance(node, ast.If | ast.Try | ast.With):
                yield from statements([*node.body, *getattr(node, "orelse", [])])

    for node in statements(ast.parse(file.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert isinstance(node, ast.ImportFrom)
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{start}.{alias.name}" for alias in node.names]
            names = [name if name in modules else start for name in names]
        yield from (name for name in names if name in modules)


def import_cycles(root: Path) -> list[str]:
    """Return the groups of modules that import one another at import time."""
    files = {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file
        for file in python_files(root, PACKAGE)
    }
    imports = {name: set(imported_modules(root, file, set(files))) - {name} for name, file in files.items()}

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for name in imports[waiting.pop()] - found:
                found.add(name)
                waiting.append(name)
        return found

    reach = {name: reached(name) for name in imports}
    cycles = {
        frozenset(other for other in reach[name] if name in reach[other]) for name in reach if name in reach[name]
    }
    return sorted(" ".join(sorted(cycle)) for cycle in cycles)


def repeated_passages(root: Path) -> list[str]:
    """Return the passages of at least `PASSAGE` lines that stand in two positions.

    Blank lines, comments, imports and lines without a letter are left out, and indentation does not count.
    """
    lines: list[tuple[str, int, str]] = []
    for file in python_files(root, PACKAGE, "experiments", "benchmarks"):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            text = line.strip()
            if re.search(r"[A-Za-z]", text) and not re.match(r"#|import |from .* import |@", text):
                lines.append((str(file.relative_to(root)), number, text))
        lines.append(("", 0, f"end of {file}"))
    positions: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index in range(len(lines) - PASSAGE + 1):
        positions[tuple(text for _, _, text in lines[index : index + PASSAGE])].append(index)
    found, covered = [], set[tuple[int, int]]()
    for indices in sorted((indices for indices in positions.values() if len(indices) > 1), key=lambda each: each[0]):
        first, second = indices[0], indices[1]
        if second - first < PASSAGE:
            continue
        if (first - 1, second - 1) not in covered:
            found.append(f"{lines[first][0]}:{lines[first][1]} and {lines[second][0]}:{lines[second][1]}")
        covered.add((first, second))
    return found


def import_seconds(root: Path) -> float:
    """Measure the CPU seconds of importing the package, the least of five processes."""
    return min(float(run(root, IMPORT)) for _ in range(5))


def count(root: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Count a checkout: the table's cells by their row, and what they count by the names of `SHOWN`."""
    print(f"counting {root}", file=sys.stderr)
    formula, default = path_of_a_view(root, "formula"), path_of_a_view(root, "default")
    roots, loops, options = configuration_roots(root), training_loops(root), json.loads(run(root, OPTIONS))
    errors, cycles, passages = strict_errors(root), import_cycles(root), repeated_passages(root)

    def files(path: list[str]) -> str:
        return f"{len({place.split()[0] for place in path})} files, {len(path)} functions"

    cells = {
        "pixels to tokens, weights that cannot be folded": files(formula),
        "pixels to tokens, the default": files(default),
        "trees of configuration classes": str(len(roots)),
        "functions with a training step of their own": str(len(loops)),
        "options and arguments of all verbs": str(len(options)),
        "`mypy --strict` errors of `model/`": str(len(errors)),
        "import cycles": str(len(cycles)),
        f"passages of {PASSAGE} lines and more that stand twice": str(len(passages)),
        "`import llava_uhd`, CPU seconds (a time)": f"{import_seconds(root):.2f}",
    }
    cells |= {f"lines of `{package}`": f"{number:,}" for package, number in sorted(lines_by_package(root).items())}
    return cells, dict(zip(SHOWN, (formula, roots, loops, options, errors, cycles, passages), strict=True))


def main() -> None:
    """Print the table, and what it counts on demand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", help="revision to count before this checkout")
    parser.add_argument("--show", nargs="+", choices=SHOWN, default=[], help="list what is counted, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkouts = {"this checkout": ROOT}
        if options.revision:
            checkouts = {f"`{options.revision}`": unpack(options.revision, Path(folder).resolve()), **checkouts}
        counted = {name: count(root) for name, root in checkouts.items()}
    rows = dict.fromkeys(row for cells, _ in counted.values() for row in cells)
    print(f"| | {' | '.join(counted)} |\n|---|{'---|' * len(counted)}")
    for row in rows:
        print(f"| {row} | {' | '.join(cells.get(row, '-') for cells, _ in counted.values())} |")
    for kind in options.show:
        for name, (_, lists) in counted.items():
            print(f"\n{kind}, {name}:\n")
            print("\n".join(f"- {entry}" for entry in lists[kind]) or "none")


if __name__ == "__main__":
    main()
