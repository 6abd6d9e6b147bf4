"""The documentation as a site, and its notebook, as `make docs` and a reader would run them."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NOTEBOOK = DOCS / "notebooks" / "looking.ipynb"


def test_the_site_builds_without_a_warning(tmp_path):
    """Run the command of the Makefile; --quiet would let warnings pass."""
    (command,) = re.findall(r"bin/(mkdocs build.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert "--strict" in command and "quiet" not in command and "make docs" in (ROOT / ".ci" / "run").read_text()
    arguments = [sys.executable, "-m", *command.split(), "--site-dir", str(tmp_path)]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "WARNING -" not in result.stderr, result.stderr
    for page, name in [
        ("model", "llava_uhd.model.slicing.plan_slices"),
        ("inspection", "llava_uhd.inspection.attribution.attribute"),
        ("serving", "llava_uhd.serving.engine.Engine"),
        ("training", "llava_uhd.training.recipe.load_recipe"),
        ("evaluation", "llava_uhd.evaluation.scorers.anls.anls"),
        ("checkpoints", "llava_uhd.checkpoints.convert.convert_to_hf"),
    ]:
        assert f'id="{name}"' in (tmp_path / "api" / page / "index.html").read_text()
    assert (tmp_path / "notebooks" / "looking.ipynb").is_file()
    assert "--max-slices" in (tmp_path / "api" / "cli" / "index.html").read_text()
    recipes = {path.stem for path in (ROOT / "llava_uhd" / "training" / "recipes").glob("*.yaml")}
    assert set(re.findall(r'<h2 id="([^"]+)"', (tmp_path / "api" / "recipes" / "index.html").read_text())) == recipes


def test_make_pictures_draws_every_picture_by_the_command_shown_beside_it():
    page = (DOCS / "how-it-works.md").read_text()
    recipe = [line.strip() for line in (ROOT / "Makefile").read_text().splitlines()]
    steps = re.findall(r"^!\[[^]]+\]\((.*)\)\n\n```sh\n(llava-uhd explain .*)\n```$", page, flags=re.MULTILINE)
    assert len(steps) == page.count("![") == 5
    for file, command in steps:
        assert command in recipe and command.endswith(f"--save docs/{file}") and (DOCS / file).is_file()


def test_the_notebook_runs_from_top_to_bottom():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is kept without its outputs"
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert len(figures) == 7 and "(true: " in printed and "1 view instead of" in printed
