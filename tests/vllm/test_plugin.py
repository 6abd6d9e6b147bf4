"""Parts of the plug-in that need no vLLM: the entry point, and prompts as vLLM's renderer and processor put them."""

import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from llava_uhd import LlavaUhdProcessor
from llava_uhd.checkpoints.tokenizers import from_sentencepiece
from tests.conftest import random_image, small_config
from tests.golden import GOLDENS

ROOT = Path(__file__).parents[2]


def test_entry_point_registers_and_imports_vllm_only_then():
    """If vLLM is missing, importing the plug-in works and registering names what is missing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["vllm.general_plugins"].items()
    register = EntryPoint(name, value, "vllm.general_plugins").load()
    assert callable(register) and any(need.startswith("vllm") for need in project["optional-dependencies"]["vllm"])
    code = (
        "import sys; import llava_uhd.vllm as plugin; assert not {'vllm', 'torch'} & set(sys.modules)\n"
        "sys.modules['vllm'] = None\n"
        "try: plugin.register()\n"
        "except ModuleNotFoundError as error: assert 'vllm' in str(error)\n"
        "else: raise SystemExit('registered without vLLM')\n"
    )
    command = [sys.executable, "-c", code.replace("import sys;", "import sys; sys.argv[0] = 'llava-uhd';", 1)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module", params=["vicuna", "qwen"])
def processor(request, qwen_tokenizer):
    if request.param == "qwen":
        return LlavaUhdProcessor.from_config(small_config(), qwen_tokenizer, "qwen")
    tokenizer = from_sentencepiece(GOLDENS / "tokenizers" / "llama_tiny")
    config = small_config(layout="sequential")
    config.image_token_id = len(tokenizer)
    return LlavaUhdProcessor.from_config(config, tokenizer, "vicuna")


@pytest.mark.parametrize(
    "text",
    [
        "Hello",
        "USER: <image>\nWhat is this? ASSISTANT:",
        "<image> a <image>b",
        "<image><image>\n\nTwo",
        "text <|row_separator|> between",
    ],
)
def test_expanded_prompt_equals_the_processors_own(processor, text):
    """The renderer's ids, with each image token replaced by the ids of its image, are those of the processor."""
    sizes = [(300, 200), (30, 40)][: text.count("<image>")]
    images = [random_image(*size, seed) for seed, size in enumerate(sizes)]
    inputs = processor(images=images or None, text=text, return_tensors="pt")
    unexpanded = processor.encode_unexpanded(text)
    assert unexpanded.count(processor.image_token_id) == len(images)
    indices = iter(range(len(images)))
    expanded = [
        token
        for each in unexpanded
        for token in (processor.ids_of_image(inputs, next(indices)) if each == processor.image_token_id else [each])
    ]
    assert torch.equal(torch.tensor([expanded]), inputs["input_ids"])
    assert processor.encode_unexpanded(text, add_special_tokens=False) in (unexpanded, unexpanded[1:])
