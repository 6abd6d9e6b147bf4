"""Modules under their former names: they warn and name the new ones."""

import importlib

import pytest


@pytest.mark.parametrize(
    ("former", "name", "module", "new"),
    [
        ("evaluation.benchmarks", "BENCHMARKS", "evaluation.tasks", "TASKS"),
        ("evaluation.benchmarks", "find_benchmark", "evaluation.tasks", "find_task"),
        ("evaluation.benchmarks", "Benchmark", "evaluation.tasks", "Task"),
        ("evaluation.benchmarks", "SUITES", "evaluation.tasks", "SUITES"),
        ("evaluation.run", "run_benchmark", "evaluation.pipeline", "evaluate_task"),
        ("evaluation.run", "RunOptions", "evaluation.pipeline", "RunOptions"),
        ("answering", "prepare", "generation.prompt", "prepare"),
        ("answering", "question_message", "generation.prompt", "question_message"),
        ("answering", "answer", "generation.batch", "answer"),
        ("checkpoints.convert", "convert_to_ours", "checkpoints.convert", "convert_to_hf"),
        ("checkpoints.released", "convert_to_released", "checkpoints.export", "convert_to_original"),
        ("checkpoints.released", "load_config", "checkpoints.export", "load_config"),
        ("checkpoints.links", "Link", "checkpoints.key_mapping", "TensorMapping"),
        ("checkpoints.links", "same_shape", "checkpoints.key_mapping", "same_shape"),
        ("checkpoints.variants", "to_our_config", "checkpoints.variants", "to_hf_config"),
        ("serving.decoding", "Decoder", "generation.decoding", "Decoder"),
    ],
)
def test_former_names_work_and_warn(former, name, module, new):
    former_module = importlib.import_module(f"llava_uhd.{former}")
    with pytest.warns(DeprecationWarning, match=rf"llava_uhd\.{former}\.{name} is now llava_uhd\.{module}\.{new}$"):
        value = getattr(former_module, name)
    assert value is getattr(importlib.import_module(f"llava_uhd.{module}"), new)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        former_module.nothing  # noqa: B018


def test_visible_text_of_former_versions():
    from llava_uhd.serving.row import visible_text

    with pytest.warns(DeprecationWarning, match="is now llava_uhd.generation.request.split_visible"):
        assert visible_text(" The total. STO", ("STOP",), False) == ("The total.", False)
        assert visible_text(" The total. STO", ("STOP",), True) == ("The total. STO", False)
        assert visible_text("The total. STOP more", ("STOP",), False) == ("The total.", True)
        assert visible_text("gr\ufffd", (), False) == ("gr", False)


@pytest.mark.parametrize(
    ("module", "name", "former", "new", "value"),
    [
        ("checkpoints.convert", "Options", "keep_dead", "keep_unused", True),
        ("serving.engine", "EngineOptions", "max_waiting", "max_queue_size", 3),
        ("serving.engine", "EngineOptions", "preparers", "preprocessing_workers", 3),  # former name
    ],
)
def test_former_fields_work_and_warn(module, name, former, new, value):
    cls = getattr(importlib.import_module(f"llava_uhd.{module}"), name)
    with pytest.warns(DeprecationWarning, match=rf"{name}\.{former} is now {new}$"):
        options = cls(**{former: value})
    assert getattr(options, new) == value and options == cls(**{new: value}) and cls() != options
    with pytest.warns(DeprecationWarning, match=rf"{name}\.{former} is now {new}$"):
        assert getattr(options, former) == value
    with pytest.warns(DeprecationWarning), pytest.raises(TypeError, match="are the same argument"):
        cls(**{former: value, new: value})
