"""`llava-uhd bench` at sizes that take no time: what is measured is real, if not worth much."""

import json

import pytest
import torch

from llava_uhd.benchmark.measure import alternate

SMALL = (
    "--hidden 64 --heads 2 --vision-hidden 24 --vision-layers 2 --vision-intermediate 48 --vision-heads 2 "
    "--view-size 56 --query-grid 3 --text-layers 1 --vocabulary 80 --runs 1 --matmul-side 64"
).split()
VERBS = {
    "projector": ["--views", "2"],
    "vision": ["--image", "168x112"],
    "prefill": ["--image", "168x112"],
    "generate": ["--image", "168x112", "--new-tokens", "3"],
    "train-step": ["--views", "2"],
}


@pytest.fixture
def run(run):
    """Run `llava-uhd bench` in this process, and return exit code, stdout and stderr."""
    return lambda *arguments: run("bench", *arguments)


@pytest.mark.parametrize("verb", VERBS)
def test_rows(run, verb):
    code, out, err = run(verb, *VERBS[verb], *SMALL, "--json")
    assert code == 0, err
    result = json.loads(out)
    (row,) = result["rows"]
    assert row["plain_s"] > 0 and row["ours_s"] > 0
    assert row["ratio"] == pytest.approx(row["plain_s"] / row["ours_s"])
    assert 0 < row["relative_error"] < 1e-5
    assert 0 < row["gflop"] < row["plain_gflop"] and 0 < row["share_of_matmul_rate"]
    assert row["plain_peak_bytes"] is not None and row["ours_peak_bytes"] is not None
    assert (row["kept_bytes"] > 0) == (verb != "train-step")
    assert (row["encoder_s"] is not None) == (verb == "vision")
    assert result["machine"]["threads"] == torch.get_num_threads() and result["accelerator"] == "not measured"


def test_table(run):
    code, out, _ = run("projector", *SMALL, "--levels", "1,2", "--upsampler", "bilinear")
    assert code == 0 and "ratio" in out and "accelerator: not measured" in out.replace("\n", " ")


def test_growth(run, tmp_path):
    arguments = ["--views", "1,3", "--sides", "56,112", "--batches", "1,2"]
    code, out, _ = run("growth", *arguments, *SMALL, "--json", "--save", str(tmp_path / "growth.png"))
    assert code == 0
    rows = json.loads(out)["rows"]
    assert [(row["axis"], row["views"]) for row in rows] == [
        ("views", 1),
        ("views", 3),
        ("image", 1),
        ("image", 5),
        ("batch", 5),
        ("batch", 10),
    ]
    assert all(row["ours_s"] > 0 for row in rows)
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["projector", "--dtype", "int8"], 2, "int8"),
        (["projector", "--hidden", "130"], 2, "130"),
        (["projector", "--levels", "1,x"], 2, "1,x"),
        (["projector", "--levels", "2,4"], 1, "contain 1"),
        (["projector", "--device", "nowhere"], 1, "nowhere"),
        (["vision", "--image", "12by9"], 2, "12by9"),
    ],
)
def test_bad_use(run, arguments, code, message):
    verb, *rest = arguments
    actual, out, err = run(verb, *SMALL, *rest)
    assert actual == code and message in err and not out and "Traceback" not in err


def test_peak_memory_is_what_a_run_held():
    mebibytes = 64
    ways = {
        "large": lambda: torch.ones(2 * mebibytes * 2**18)[:1].clone(),
        "small": lambda: torch.ones(mebibytes * 2**18)[:1].clone(),
    }
    taken = alternate(ways, 3, torch.device("cpu"))
    assert taken["large"].peak_bytes == pytest.approx(2 * mebibytes * 2**20, rel=0.05)
    assert taken["small"].peak_bytes == pytest.approx(mebibytes * 2**20, rel=0.05)
    assert 0 < taken["small"].seconds < 60
