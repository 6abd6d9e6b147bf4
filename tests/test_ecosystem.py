"""The table of the ecosystem tests; the tools themselves are run by `make test-ecosystem`."""

import ast
import re
from importlib import import_module
from importlib.util import find_spec, resolve_name
from pathlib import Path

import pytest

from tests.ecosystem.__main__ import TOOLS
from tests.ecosystem.ray_serve import shown_deployment

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "tests" / "ecosystem").rglob("*.py"))


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_tool_has_requirements_and_a_script(tool):
    assert tool.requirements.is_file() and find_spec(tool.module) is not None
    for file in re.findall(r"^-c (\S+)", tool.requirements.read_text(), flags=re.MULTILINE):
        assert (tool.requirements.parent / file).is_file()


def test_guide_shows_the_deployment_that_is_run():
    code = shown_deployment()
    compile(code, "docs/vllm.md", "exec")
    assert "num_replicas=2" in code and "create_app(" in code


def own_imports(script: Path) -> list[tuple[str, str]]:
    """Return (module, name) of what a script imports by name from this repository."""
    package = ".".join(script.relative_to(ROOT).parts[:-1])
    found = []
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            if module.split(".")[0] in ("llava_uhd", "tests"):
                found += [(module, alias.name) for alias in node.names]
    return found


def defined_names(module: str) -> set[str]:
    """Return the names of a module, from its text where it needs a tool that is not installed here."""
    try:
        return set(dir(import_module(module)))
    except ModuleNotFoundError as error:
        spec = find_spec(module)
        if spec is None or spec.origin is None or str(error.name).startswith(("llava_uhd", "tests")):
            raise
    names = set()
    for node in ast.parse(Path(spec.origin).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return names


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.relative_to(SCRIPTS[0].parent)))
def test_names_that_a_script_imports_exist(script):
    """The scripts run in other environments, so a renamed function would be found there alone."""
    for module, name in own_imports(script):
        spec = find_spec(module)
        assert spec is not None, module
        is_submodule = bool(spec.submodule_search_locations) and find_spec(f"{module}.{name}") is not None
        assert is_submodule or name in defined_names(module), f"{module} has no {name}"
