import json
import shutil

import pytest
from PIL import Image
from typer.testing import CliRunner

from llava_uhd.cli import app
from llava_uhd.confidence import Calibration, read_calibration
from llava_uhd.evaluation.calibration import ScoredAnswers, auroc, calibrate, measure
from llava_uhd.evaluation.storage import row_checksum
from llava_uhd.loading import built_in


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs: documents that the model reads, and gray images that it cannot answer about."""
    folder = tmp_path_factory.mktemp("runs")
    rows = []
    for index in range(6):
        Image.new("RGB", (200 + 40 * index, 260), (40 * index,) * 3).save(folder / f"{index}.png")
        rows.append({"id": index, "image": f"{index}.png", "question": "What is the total?", "answer": "none"})
    (folder / "gray.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for task in (["synthdoc", "--limit", "12"], [str(folder / "gray.jsonl"), "--metric", "accuracy"]):
        done = CliRunner().invoke(
            app, ["eval", "run", *task, "--model", "tiny", "--workers", "1", "--out", str(folder / "out")]
        )
        assert done.exit_code == 0, done.output
    return folder / "out"


def test_calibrate_writes_a_calibration_into_the_model_folder(runs, tmp_path):
    shutil.copytree(built_in("tiny"), tmp_path / "model")
    (tmp_path / "model" / "confidence.json").unlink()
    arguments = ["eval", "calibrate", str(runs / "synthdoc"), str(runs / "gray"), "--model", str(tmp_path / "model")]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    calibration = read_calibration(tmp_path / "model")
    assert calibration.slope == found["calibration"]["slope"]
    assert calibration.fitted_on["gray"] == {"answers": 6, "right": 0}
    synthdoc, gray = found["reports"]
    assert gray["wrong_unmarked"] <= 100 / 6 and gray["right_marked"] is None and synthdoc["right_marked"] <= 30


def test_the_mark_is_chosen_by_the_share_of_right_answers_without_it(runs, tmp_path):
    arguments = ["eval", "calibrate", str(runs / "synthdoc"), str(runs / "gray")]
    done = CliRunner().invoke(app, [*arguments, "--unmarked-right", "1"])
    assert done.exit_code == 0, done.output
    assert (
        done.stdout.count("wrong and not marked 0.0 % of all") == 2 and "guesses below a confidence of" in done.stdout
    )
    asked = json.loads(CliRunner().invoke(app, [*arguments, "--unmarked-right", "0.1", "--json"]).stdout)
    assert asked["calibration"]["guess_below"] < 0.5
    done = CliRunner().invoke(app, [*arguments, "--unmarked-right", "1.5"])
    assert done.exit_code != 0 and "at most 1, got 1.5" in str(done.exception)


def test_a_run_counts_once(runs):
    run = str(runs / "synthdoc")
    done = CliRunner().invoke(app, ["eval", "calibrate", run, run])
    assert done.exit_code != 0 and "'synthdoc' names more than one run" in str(done.exception)
    done = CliRunner().invoke(app, ["eval", "calibrate", run, "--check", run])
    assert done.exit_code == 2 and "not held out" in " ".join(done.output.replace("│", " ").split())


def test_a_result_says_how_often_a_wrong_answer_is_not_marked(runs):
    result = json.loads((runs / "gray" / "result.json").read_text())
    report = result["confidence"]
    assert report["answers"] == 6 and report["accuracy"] == 0 and report["right_marked"] is None
    assert report["wrong_unmarked"] <= 100 / 6
    assert "wrong and not marked as a guess" in (runs / "gray" / "report.md").read_text()


def test_runs_without_token_probabilities_are_refused(runs, tmp_path):
    shutil.copytree(runs / "gray", tmp_path / "gray")
    path = tmp_path / "gray" / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        del row["metadata"]["token_probability"]
        row["metadata"]["checksum"] = row_checksum(row)
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    done = CliRunner().invoke(app, ["eval", "calibrate", str(tmp_path / "gray"), str(runs / "synthdoc")])
    assert done.exit_code != 0 and "6 of 6 answers" in str(done.exception)


def test_beams_leave_no_token_probability(tmp_path):
    arguments = ["eval", "run", "synthdoc", "--limit", "2", "--beams", "2", "--workers", "1", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "synthdoc" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all("token_probability" not in row["metadata"] for row in rows)


def test_the_measure_that_ranks_answers_better_is_scaled(runs, tmp_path):
    right = [True, True, True, False, False, False]
    means, products = [0.9, 0.8, 0.7, 0.85, 0.6, 0.5], [1e-3, 1e-4, 1e-5, 1e-9, 1e-10, 1e-20]
    assert auroc(means, right) == pytest.approx(700 / 9) and auroc(products, right) == 100
    assert auroc([0.5, 0.5], [True, False]) == 50 and auroc([0.5], [True]) is None
    with_products = ScoredAnswers("a", means, right, products)
    calibration = calibrate([with_products])
    assert calibration.measure == "product" and measure(with_products, calibration).auroc == 100
    assert all(calibration.is_guess(value) != is_right for value, is_right in zip(products, right, strict=True))
    assert calibrate([ScoredAnswers("a", means, right, means[::-1])]).measure == "mean"
    without = ScoredAnswers("b", means, right)
    assert calibrate([with_products, without]).measure == "mean"
    with pytest.raises(ValueError, match="the answers of b have no answer_probability"):
        measure(without, calibration)


def test_a_prediction_has_the_mean_and_the_product_of_its_tokens_probabilities(runs):
    rows = [json.loads(line) for line in (runs / "synthdoc" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    for row in rows:
        mean, product = (row["metadata"][name] for name in ("token_probability", "answer_probability"))
        assert 0 < product <= mean + 1e-6 <= 1 + 2e-6


def test_measures_of_a_calibration():
    calibration = Calibration(1.0, 0.0)  # confidence is the token probability itself
    answers = ScoredAnswers("task", [0.9, 0.8, 0.4, 0.7, 0.2], [True, True, True, False, False])
    report = measure(answers, calibration)
    assert report.accuracy == 60 and report.wrong_unmarked == pytest.approx(20)
    assert report.right_marked == pytest.approx(100 / 3) and report.auroc == pytest.approx(500 / 6)
    assert report.calibration_error == pytest.approx(100 * (0.1 + 0.2 + 0.6 + 0.7 + 0.2) / 5)
