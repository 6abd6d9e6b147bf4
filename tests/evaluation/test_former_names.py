"""Modules under their former names: they warn and name the new ones."""

import importlib

import pytest

from llava_uhd.evaluation import pipeline, tasks


@pytest.mark.parametrize(
    ("module", "name", "new"),
    [
        ("benchmarks", "BENCHMARKS", tasks.TASKS),
        ("benchmarks", "find_benchmark", tasks.find_task),
        ("benchmarks", "Benchmark", tasks.Task),
        ("benchmarks", "SUITES", tasks.SUITES),
        ("run", "run_benchmark", pipeline.evaluate_task),
        ("run", "RunOptions", pipeline.RunOptions),
    ],
)
def test_former_names_work_and_warn(module, name, new):
    former = importlib.import_module(f"llava_uhd.evaluation.{module}")
    with pytest.warns(DeprecationWarning, match=rf"{module}\.{name} is now llava_uhd\.evaluation\."):
        assert getattr(former, name) is new
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        former.nothing  # noqa: B018
