"""The ablation: labels against the decoder's, equal tokens, exact counting, and runs that go on where they stopped."""

import json

import numpy as np
import pytest
import torch

from experiments.tiny_v1.folder import save_folder
from experiments.tiny_v1.symbols import EMPTY, FIRST_CHARACTER, plan_of, view_symbols
from experiments.tiny_v1.vision import build_model
from llava_uhd.training.ablation import __main__ as command
from llava_uhd.training.ablation.pages import GRID, Pages, Views, encode_pages, load_pages, make_page, page_symbols
from llava_uhd.training.ablation.reading import Reader, Run, draw_pages, measure, read
from llava_uhd.training.ablation.report import table
from llava_uhd.training.ablation.variants import QUERY_GRID, VARIANTS


@pytest.fixture(scope="module")
def pages():
    """Four pages through a tower of random weights."""
    return encode_pages(build_model(0).model.vision_tower, "test", 4)


def test_symbols_are_those_of_the_built_in_models_training():
    for index in range(3):
        document = make_page("symbols", index)
        plan = plan_of(document)
        assert plan.grid == GRID and set(plan.view_shapes[:-1]) == {(8, 8)}
        ours = page_symbols(document, GRID)
        # Windows of two by two cells, back into rows of cells.
        cells = ours.view(6, 4, 4, 2, 2, 4).transpose(2, 3).reshape(6, 64, 4)
        assert np.array_equal(cells.numpy(), np.stack(view_symbols(document, plan)[:-1]))
        # Cells hold one line of text, so nearly all characters have a place; those of an overview hold several.
        characters = sum(1 for _ in document.page.characters())
        assert 0.98 * characters < (ours != EMPTY).sum() <= characters
        assert (page_symbols(document, (1, 1)) != EMPTY).sum() < characters


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_condense_a_slice_into_as_many_tokens(name):
    reader = Reader(VARIANTS[name], None)
    scores = reader(torch.randn(2, 160, 8, 8), torch.randn(2, 3, 112, 112))
    assert scores.shape == (2, QUERY_GRID**2, 16, FIRST_CHARACTER + 95)
    trained = {key for key, parameter in reader.projector.named_parameters() if parameter.requires_grad}
    assert not any(".up1." in key or ".up2." in key or key == "positions" for key in trained)
    assert any("fixup_proj" in key for key in trained) == (VARIANTS[name].stage0 is not None)


def test_measure_counts_characters_at_their_places(pages):
    reader, letter = Reader(VARIANTS["mlp"], None), FIRST_CHARACTER + ord("e") - 32
    with torch.no_grad():
        reader.readout.weight.zero_()
        reader.readout.bias.view(16, -1).zero_()[:, letter] = 5.0
    right, loss = measure(reader, pages.slices, batch=3)
    symbols = pages.slices.symbols
    assert right == (symbols == letter).sum() > 0
    normalizer = torch.tensor([5.0] + [0.0] * (FIRST_CHARACTER + 94)).logsumexp(0)
    assert loss == pytest.approx(normalizer.item() - 5.0 * right / symbols.numel(), rel=1e-5)


def test_a_run_learns_and_repeats(pages):
    runs = [read("mlp", VARIANTS["mlp"], seed, 40, 2, pages, pages, None) for seed in (0, 0, 1)]
    assert runs[0].loss == runs[1].loss != runs[2].loss and runs[0].tokens == 96
    untrained = measure(Reader(VARIANTS["mlp"], None), pages.slices, 2)[1]
    assert runs[0].loss < 0.7 * untrained
    overview = read("overview", VARIANTS["overview"], 0, 1, 2, pages, pages, None)
    assert overview.tokens == 16


def test_every_page_comes_once_before_any_comes_again():
    stream = draw_pages(7, 2, seed=3)
    first = torch.cat([next(stream) for _ in range(3)]).tolist()
    assert len(set(first)) == 6 and first != torch.cat([next(stream) for _ in range(3)]).tolist()


def test_table():
    def run(variant, seed, characters):
        return Run(variant, seed, 10, characters, 0.5, 96, 1234, 7.0)

    runs = [run("hiwin-1", 0, 0.25), run("mlp", 0, 0.5), run("mlp", 1, 0.6)]
    *_, first, second = table(runs).splitlines()
    assert "| 96 | 1,234 | 55.0 % | 7.1 | 2 | 0.500 | 7 |" in first and first.startswith("| pixel-unshuffle")
    assert "| 25.0 % | - | 1 |" in second


@pytest.fixture
def model(tmp_path):
    save_folder(build_model(0), tmp_path / "random")
    return str(tmp_path / "random")


def test_the_command_goes_on_where_it_stopped(model, tmp_path, capsys):
    out = tmp_path / "ablation"
    arguments = ["--out", str(out), "--model", model, "--pages", "4", "--held-out", "2", "--batch", "2"]
    command.main([*arguments, "--steps", "2", "--variants", "mlp", "resampler", "--seeds", "0"])
    rows = (out / "runs.jsonl").read_text().splitlines()
    assert [json.loads(row)["variant"] for row in rows] == ["mlp", "resampler"]
    # A kill in the middle of a line, and another seed.
    (out / "runs.jsonl").write_text(rows[0] + "\n" + rows[1][:20])
    command.main([*arguments, "--steps", "2", "--variants", "mlp", "resampler", "--seeds", "0", "1"])
    again = [json.loads(row) for row in (out / "runs.jsonl").read_text().splitlines()]
    assert {(row["variant"], row["seed"]) for row in again} == {(v, s) for v in ("mlp", "resampler") for s in (0, 1)}
    assert json.loads(rows[0]) == again[0] and json.loads(rows[1])["loss"] == again[1]["loss"]
    assert "| 2 |" in (out / "table.md").read_text() and (out / "runs.png").stat().st_size > 1000
    with pytest.raises(SystemExit) as exit_:
        command.main([*arguments, "--steps", "3"])
    assert exit_.value.code == 2 and "--steps was 2 and is 3" in capsys.readouterr().err


@pytest.mark.slow
def test_up_samplers_come_from_stage_0(model, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "STAGE0_PICTURES", 8)
    monkeypatch.setattr(command, "STAGE0_HELD_OUT", 2)
    out = tmp_path / "ablation"
    arguments = [
        "--out",
        str(out),
        "--model",
        model,
        "--pages",
        "2",
        "--held-out",
        "2",
        "--batch",
        "2",
        "--steps",
        "1",
    ]
    command.main([*arguments, "--upsampler-steps", "2", "--seeds", "0", "--variants", "hiwin-jbu-2", "overview"])
    assert {path.name for path in out.glob("upsampler-*")} == {"upsampler-2x", "upsampler-4x"}
    assert len((out / "runs.jsonl").read_text().splitlines()) == 2
    held = load_pages(out / "train.pt")
    assert isinstance(held, Pages) and isinstance(held.slices, Views) and held.slices.shape == (8, 8)
