"""`python -m tests.counts` on small checkouts, and what holds for this one."""

from pathlib import Path

import pytest

from benchmarks.compare_revisions import table, unpack
from tests.counts import (
    PASSAGE,
    ROOT,
    configuration_roots,
    import_cycles,
    lines_by_package,
    repeated_passages,
    training_loops,
)


def checkout(folder: Path, **files: str) -> Path:
    """Write modules of a package `llava_uhd`, by their names."""
    package = folder / "llava_uhd"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    return folder


def test_this_package_has_no_import_cycle():
    assert import_cycles(ROOT) == []


def test_cycles_are_found_at_import_time_alone(tmp_path):
    lazy = "def f():\n    from . import a\nif TYPE_CHECKING:\n    from . import a\n"
    root = checkout(tmp_path, a="from . import b\n", b="from .c import x\n", c="import llava_uhd.a\n", d=lazy)
    assert import_cycles(root) == ["llava_uhd.a llava_uhd.b llava_uhd.c"]


def test_a_passage_counts_once_however_long_it_is(tmp_path):
    passage = "".join(f"value_{index} = {index}\n" for index in range(PASSAGE + 2))
    shorter = "".join(f"other_{index} = {index}\n" for index in range(PASSAGE - 1))
    root = checkout(tmp_path, a=passage + shorter, b="first = 1\n" + passage, c="second = 2\n" + shorter)
    assert repeated_passages(root) == ["llava_uhd/a.py:1 and llava_uhd/b.py:2"]
    assert lines_by_package(root) == {"llava_uhd": 4 * PASSAGE + 4}


def test_nested_configuration_is_one_tree(tmp_path):
    text = "class InnerConfig:\n    x: int\nclass OuterConfig:\n    inner: InnerConfig\nclass Thing:\n    pass\n"
    assert configuration_roots(checkout(tmp_path, a=text)) == ["llava_uhd/a.py OuterConfig"]


def test_a_training_loop_is_where_the_backward_pass_is_called(tmp_path):
    text = "def train(loss):\n    def step():\n        loss.backward()\n    step()\ndef backward(x):\n    return x\n"
    assert training_loops(checkout(tmp_path, a=text)) == ["llava_uhd/a.py step"]


def test_revisions_are_compared_by_least_time_and_median_peak():
    runs = {
        "before": [{"seconds": 2.0, "peak": 2**20}, {"seconds": 4.0, "peak": 2**20}],
        "after": [{"seconds": 5.0, "peak": 2**21}, {"seconds": 1.0, "peak": 2**21}],
    }
    assert table({"vision": runs}).splitlines()[-1] == "| vision | 2 | 1 | 0.500 | 1 | 2 | 2.00 |"


def test_an_unknown_revision_is_named(tmp_path):
    with pytest.raises(ValueError, match="no revision nowhere"):
        unpack("nowhere", tmp_path)
