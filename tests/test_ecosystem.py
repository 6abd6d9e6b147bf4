"""The table of the ecosystem tests; the tools themselves are run by `make test-ecosystem`."""

import re
from importlib.util import find_spec

import pytest

from tests.ecosystem.__main__ import TOOLS
from tests.ecosystem.ray_serve import shown_deployment


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_tool_has_requirements_and_a_script(tool):
    assert tool.requirements.is_file() and find_spec(tool.module) is not None
    for file in re.findall(r"^-c (\S+)", tool.requirements.read_text(), flags=re.MULTILINE):
        assert (tool.requirements.parent / file).is_file()


def test_guide_shows_the_deployment_that_is_run():
    code = shown_deployment()
    compile(code, "docs/vllm.md", "exec")
    assert "num_replicas=2" in code and "create_app(" in code
