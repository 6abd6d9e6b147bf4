"""Count docstrings, arguments, spellings and words that depart from the language of the field.

    python -m tests.language                  # counts by package
    python -m tests.language --show words     # file and line of every hit of one check
    python -m tests.language --root DIRECTORY # another checkout

Checks: `questions` (a docstring or argument that begins with a question word), `fragments` (a docstring's first line
that begins with a preposition), `arguments` (an argument, attribute or return value whose description begins with a
preposition), `british` (words of codespell's British-to-American dictionary, also within identifiers), `names` and
`words` (names and phrases that a reader of the field would have to translate, `NAMES` and `PHRASES` below).
"""

from __future__ import annotations

import argparse
import ast
import collections
import functools
import importlib.util
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
CHECKS = ("questions", "fragments", "arguments", "british", "names", "words")
QUESTIONS = frozenset("what how which whether where when who whom whose why".split())
PREPOSITIONS = frozenset(
    "about above across after against along among around as at before behind below beneath beside between beyond by "
    "concerning despite down during except for from in inside into like near of off on onto out outside over per "
    "since than through throughout till to toward towards under underneath until unto up upon via with within "
    "without".split()
)
SECTION = re.compile(r"^(Args|Arguments|Attributes|Returns|Yields|Raises|Example|Examples|Note|Notes):$")
ENTRY = re.compile(r"^\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*(?: \([^)]*\))?: +(.*)$")

# Names that a definition may not have (a leading underscore aside), with the field's names for the same thing.
NAMES = {
    "double": "upsample_2x",
    "doubled": "upsampled_2x",
    "doubling": "upsample_2x",
    "double_band": "upsample_2x",
    "likeness": "similarity",
    "fold": "fold_weights",
    "kept_fold": "cached_folded_weights",
    "carry": "push_through",
    "condense": "pool",
    "product_dtype": "matmul_dtype",
    "seen": "pooled, reported",
    "places": "positions",
    "ones": "pooled_along_width, entries",
    "across": "pooled_along_width",
    "of_level": "level_x",
    "of_map": "map_x",
    "of_group": "group_x",
    "Mark": "TokenType",
    "mark": "token_type",
    "marks": "token_types",
    "oracle": "reference",
    "ours": "hf_format",
    "Link": "TensorMapping",
    "links": "key_mapping",
    "Dead": "Unused",
    "cut": "split",
    "parts": "parameter_groups",
    "part_of": "parameter_group_of",
    "PartRow": "ParameterCounts",
    "check_table": "check_trainable",
    "renew": "reinitialize",
    "rate": "learning_rate",
    "watch": "monitor",
    "keep": "checkpoints_kept",
    "Meter": "ThroughputMeter",
    "Answerer": "Generator",
    "answer_all": "generate",
    "outcome": "finalize",
    "Row": "RequestState",
    "take": "step",
    "max_waiting": "max_queue_size",
    "preparers": "preprocessing_workers",
    "late": "timed_out",
    "refused": "rejected",
    "picture": "image, figure",
    "pictures": "images, figures",
    "drawing": "figure",
    "drawings": "figures",
    "given": "the argument's name",
    "wanted": "expected",
    "known": "cached",
    "told": "reported",
    "spoken": "reported",
}
# Of these names only a definition in one of these folders counts: elsewhere they are the usual words.
FOLDERS = {
    "parts": ("llava_uhd/training",),
    "rate": ("llava_uhd/training",),
    "keep": ("llava_uhd/training", "llava_uhd/checkpoints"),
    "take": ("llava_uhd/serving", "llava_uhd/generation"),
    "cut": ("llava_uhd/checkpoints",),
    "links": ("llava_uhd/checkpoints",),
    "outcome": ("llava_uhd/evaluation",),
}
# Phrases in comments, docstrings, messages and pages.
PHRASES = {
    r"likeness(?:es)?": "similarity",
    r"doublings?": "2x step",
    r"condens(?:e|es|ed|ing)": "pool, project",
    r"oracles?": "reference",
    r"the way (?:back|of the data)": "export, data flow",
    r"learned tokens?": "target tokens",
    r"(?:put|puts|putting) together": "build",
    r"renew(?:s|ed|ing)?": "reinitialize",
    r"the (?:house|rooms)": "architecture, packages",
    r"(?:go|goes|going|went|gone) on (?:from|where|with|after|at)": "resume, continue",
    r"(?:goes|went) on": "resumes, continues",
    r"for ever": "forever",
    r"pictures?": "image (figure for matplotlib)",
    r"drawings?": "figure, image",
    r"(?:is|are|was|were|be) told": "is reported",
    r"nobody": "no other request",
    r"preparers?": "preprocessing workers",
    r"answerers?": "generator",
    r"(?:published|released) (?:way|code|scripts?|formulation)": "reference implementation",
    r"(?:published|released) (?:weights|checkpoints?|models?)": "original checkpoint",
    r"ours": "HF format",
    r"brings? home": "returns",
    r"(?:is|are|was|were) wanted": "is expected, requested",
}
# Text that is not read: names that other files and users rely on. `cancelled` is asyncio's word and a counter's label,
# `utilisation` a key of logs.
ALLOWED = re.compile(r"cancelled|utilisation|TRANSFORMERS_.*|https?://\S+", re.IGNORECASE)
# Names and words that stay: beginning of the path, the names and words, the reason.
STAY = (
    ("llava_uhd/synthetic/vocabulary.py", {"grey"}, "data; another word would change the documents"),
    ("llava_uhd/synthetic/varied/labels.py", {"colour"}, "data; another word would change the documents"),
    ("llava_uhd/synthetic/varied/fonts.py", {"condensed"}, "names of fonts"),
    ("llava_uhd/synthetic/varied/", {"picture", "pictures"}, "a kind of question, in training data and recipes"),
    ("tests/synthetic/", {"picture"}, "a kind of question, in training data and recipes"),
    ("tests/evaluation/minidata.py", {"colour", "picture"}, "questions of the data"),
    ("tests/evaluation/test_scorers.py", {"colour", "picture"}, "answers of the data"),
    ("tests/evaluation/test_benchmarks.py", {"colour"}, "a question of the data"),
    ("tests/model/test_configuration.py", {"colour"}, "a wrong key"),
    ("tests/training/test_recipe.py", {"optimisation"}, "a wrong key"),
    ("tests/training/test_recipe.py", {"renew", "pictures"}, "keys of recipes"),
    ("tests/training/test_parts.py", {"pictures"}, "a module and a class under their former names"),
    ("tests/training/test_tuning.py", {"renew"}, "a key of recipes"),
    ("tests/training/former_recipes/", {"renew", "pictures"}, "keys of recipes of earlier versions"),
    ("tests/training/data/test_tables.py", {"picture", "pictures"}, "columns of the data"),
    ("llava_uhd/training/recipes/", {"renew"}, "a key of recipes, which run folders hold"),
    ("llava_uhd/training/recipe.py", {"renew", "keep"}, "keys of recipes, which run folders hold"),
    ("docs/training.md", {"renew"}, "a key of recipes"),
    ("experiments/tiny_v1/published.py", {"renew"}, "a key of recipes"),
    ("llava_uhd/training/assembly.py", {"renew"}, "a key of recipes, which run folders hold"),
    ("llava_uhd/training/plan.py", {"parts"}, "a key of the plan in JSON"),
    ("llava_uhd/training/tuning.py", {"parts"}, "a key of the result in JSON"),
    ("benchmarks/webdocs/", {"enrolment", "centred"}, "functions and texts of pages that questions are about"),
    ("benchmarks/webdocs/", {"picture"}, "a seed; another word would change the pages"),
    ("llava_uhd/evaluation/tasks.py", {"labelled"}, "a sentence of the protocol, which result files hold"),
    ("pyproject.toml", {"utilisation"}, "a key of logs"),
    ("CHANGELOG.md", {"renew", "picture"}, "an option of recipes; the former name of an option"),
    ("llava_uhd/checkpoints/export.py", {"ours"}, "a key of the conversion report in JSON"),
    ("llava_uhd/checkpoints/matching.py", {"ours"}, "a key of the conversion report in JSON"),
)
_PHRASES = re.compile(rf"\b({'|'.join(PHRASES)})\b", re.IGNORECASE)


class Hit(NamedTuple):
    """One place that a check counts: check, file relative to the root, line from 1, and the text in question."""

    check: str
    path: str
    line: int
    text: str


@functools.cache
def british_spellings() -> dict[str, str]:
    """Return codespell's British spellings with their American ones, all in lower case."""
    spec = importlib.util.find_spec("codespell_lib")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("counting British spellings needs codespell: pip install codespell")
    dictionary = Path(spec.origin).parent / "data" / "dictionary_en-GB_to_en-US.txt"
    lines = dictionary.read_text(encoding="utf-8").splitlines()
    return dict(line.split("->", 1) for line in lines if "->" in line)


def subwords(text: str) -> Iterator[str]:
    """Return the words of a text in lower case, identifiers split at underscores and capitals."""
    return map(str.lower, re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text))


def first_word(text: str) -> str:
    """Return the first word of a text in lower case, without punctuation."""
    match = re.match(r"[A-Za-z]+(?![\w-])", text.lstrip("`*\"'("))
    return match.group().lower() if match else ""


def entries(docstring: str) -> Iterator[tuple[int, str]]:
    """Yield line offset and description of every entry of `Args:` and `Attributes:` and of `Returns:`."""
    section, indent = None, 0
    for offset, line in enumerate(docstring.splitlines()):
        depth = len(line) - len(line.lstrip())
        heading = SECTION.match(line.strip())
        if heading:
            section, indent = heading.group(1), -1
        elif line.strip() and section:
            if indent == -1:
                indent = depth
                if section in ("Returns", "Yields"):
                    yield offset, line.strip()
            if depth < indent:
                section = None
            elif depth == indent and section in ("Args", "Arguments", "Attributes"):
                entry = ENTRY.match(line.strip())
                if entry:
                    yield offset, entry.group(1)


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of every docstring of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def check_docstrings(path: str, source: str) -> Iterator[Hit]:
    """Yield the docstrings and entries of a Python file that begin with a question word or a preposition."""
    for line, text in docstrings(ast.parse(source)):
        first = text.splitlines()[0]
        if first_word(first) in QUESTIONS:
            yield Hit("questions", path, line, first)
        elif first_word(first) in PREPOSITIONS:
            yield Hit("fragments", path, line, first)
        for offset, description in entries(text):
            if first_word(description) in QUESTIONS - {"whether"}:
                yield Hit("questions", path, line + offset, description)
            elif first_word(description) in PREPOSITIONS:
                yield Hit("arguments", path, line + offset, description)


def definitions(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and name of every class, function, argument, field and variable that a module defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def check_names(path: str, source: str) -> Iterator[Hit]:
    """Yield the definitions of a Python file whose name is one of `NAMES`."""
    lines = source.splitlines()
    for line, name in definitions(ast.parse(source)):
        word = name.strip("_")
        if "former name" in lines[line - 1]:
            continue
        hit = Hit("names", path, line, name)
        if word in NAMES and path.startswith(FOLDERS.get(word, "")) and not stays(hit):
            yield hit


def stays(hit: Hit) -> bool:
    """Return whether a hit is one of `STAY`."""
    return any(hit.path.startswith(place) and hit.text.lower() in words for place, words, _ in STAY)


def check_line(path: str, number: int, line: str) -> Iterator[Hit]:
    """Yield British spellings and phrases of `PHRASES` in one line of code or text."""
    if "former name" in line:
        return
    line = ALLOWED.sub(" ", line)
    british = british_spellings()
    found = [Hit("british", path, number, word) for word in subwords(line) if word in british]
    found += [Hit("words", path, number, match.group()) for match in _PHRASES.finditer(line)]
    yield from (hit for hit in found if not stays(hit))


def check_file(root: Path, path: str) -> Iterator[Hit]:
    """Yield every hit of one file."""
    source = (root / path).read_text(encoding="utf-8")
    if path.endswith(".py"):
        yield from check_docstrings(path, source)
        yield from check_names(path, source)
    if british_spellings().keys().isdisjoint(subwords(source)) and not _PHRASES.search(source):
        return
    for number, line in enumerate(source.splitlines(), start=1):
        yield from check_line(path, number, line)


def files(root: Path) -> list[str]:
    """Return the Python files and pages of a checkout that `git` tracks, relative to its root."""
    command = [
        "git",
        "ls-files",
        "--",
        "*.py",
        "*.md",
        "*.html",
        "*.js",
        "*.css",
        "*.yml",
        "*.yaml",
        "*.toml",
        "Makefile",
    ]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    own = {"tests/language.py", "tests/test_language.py"}
    return [path for path in listed if path not in own and "/goldens/" not in path and (root / path).is_file()]


def package(path: str) -> str:
    """Return the package of a file: two folders deep in `llava_uhd`, `tests` and `experiments`, one elsewhere."""
    folders = path.split("/")[:-1]
    return (
        "/".join(folders[:2] if folders and folders[0] in ("llava_uhd", "tests", "experiments") else folders[:1])
        or "."
    )


def hits(root: Path = ROOT) -> list[Hit]:
    """Return every hit in a checkout."""
    return [hit for path in files(root) for hit in check_file(root, path)]


def main() -> None:
    """Print the counts by package, or the hits of one check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="Checkout to read. Default: this one.")
    parser.add_argument("--show", choices=CHECKS, help="Print the hits of this check instead of the counts.")
    parser.add_argument("paths", nargs="*", help="Only files whose path begins with one of these.")
    arguments = parser.parse_args()
    found = [hit for hit in hits(arguments.root) if not arguments.paths or hit.path.startswith(tuple(arguments.paths))]
    if arguments.show:
        for hit in found:
            if hit.check == arguments.show:
                print(f"{hit.path}:{hit.line}: {hit.text}")
        return
    counts = collections.Counter((package(hit.path), hit.check) for hit in found)
    print(f"{'package':28}" + "".join(f"{check:>11}" for check in CHECKS))
    for name in sorted({name for name, _ in counts}):
        print(f"{name:28}" + "".join(f"{counts[name, check]:11}" for check in CHECKS))
    print(f"{'all':28}" + "".join(f"{sum(hit.check == check for hit in found):11}" for check in CHECKS))
    print("\nnot counted:")
    for place, words, reason in STAY:
        print(f"  {place}: {', '.join(sorted(words))}: {reason}")
    print("  lines with the comment `former name`: deprecated names that keep working")


if __name__ == "__main__":
    main()
