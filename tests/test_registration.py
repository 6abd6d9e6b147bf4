"""`import llava_uhd` registers the classes with the Auto classes in any script and order, and imports little."""

import subprocess
import sys

import pytest

import llava_uhd

AUTO = "AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor"
LOAD = """
import llava_uhd, transformers
from llava_uhd import registration
for name in ("Config", "ImageProcessor", "Processor", "Model", "ModelForImageTextToText"):
    auto = getattr(transformers, "Auto" + name)
    if type(auto).__name__ == "DummyObject":  # transformers 5.17 without torchvision
        from transformers.models.auto.image_processing_auto import AutoImageProcessor as auto
    loaded = auto.from_pretrained(llava_uhd.built_in())
    print(type(loaded).__name__, type(loaded)._auto_class)
print(any(isinstance(finder, registration.RegistrationHook) for finder in sys.meta_path))
"""
LOADED = [
    "LlavaUhdConfig AutoConfig",
    "LlavaUhdImageProcessor AutoImageProcessor",
    "LlavaUhdProcessor AutoProcessor",
    "LlavaUhdModel AutoModel",
    "LlavaUhdForConditionalGeneration AutoModelForImageTextToText",
]


def run(script: str, *arguments: str) -> list[str]:
    """Run a script in a Python of its own: the lines of its stdout."""
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize(
    "imports",
    [
        f"import llava_uhd\nfrom transformers import {AUTO}",
        f"from transformers import {AUTO}\nimport llava_uhd",
        "import llava_uhd\nfrom transformers import LlamaForCausalLM",  # imports the Auto classes on its way
        "from llava_uhd import LlavaUhdForConditionalGeneration",  # so does the package's own model code
        "import llava_uhd.model.processing_llava_uhd",
    ],
    ids=["before", "after", "within-transformers", "within-model", "processor"],
)
def test_auto_classes_load_whatever_is_imported_first(imports):
    assert run(f"import sys\n{imports}\n{LOAD}") == [*LOADED, "False"]


def test_registration_does_not_depend_on_the_name_of_the_script():
    script = f"import sys\nsys.argv[0] = '/usr/bin/llava-uhd'\nimport llava_uhd\n{LOAD}"
    assert run(script) == [*LOADED, "False"]


def test_import_takes_in_neither_torch_nor_transformers():
    heavy = {"torch", "transformers", "numpy", "PIL", "huggingface_hub", "typer"}
    assert run(f"import sys, llava_uhd\nprint(sorted({heavy} & set(sys.modules)))") == ["[]"]


def test_public_names_are_listed_and_unknown_ones_refused():
    assert set(llava_uhd.__all__) <= set(dir(llava_uhd))
    for name in llava_uhd.__all__:
        assert getattr(llava_uhd, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'LlavaUhd'"):
        llava_uhd.LlavaUhd  # noqa: B018
