import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from llava_uhd.cli import app
from llava_uhd.confidence import (
    Calibration,
    Confidence,
    choose_guess_below,
    fit_calibration,
    read_calibration,
    write_calibration,
)
from llava_uhd.evaluation.generation import BatchGenerator, GenerationOptions
from llava_uhd.evaluation.samples import Sample
from llava_uhd.generation.batch import answer
from llava_uhd.generation.generator import Generator
from llava_uhd.generation.prompt import build_prompt, prepare, question_message
from llava_uhd.generation.result import Result
from llava_uhd.loading import load, load_calibration
from llava_uhd.serving.engine import Engine
from llava_uhd.serving.generation import Sampling


def drawn_answers(slope: float, intercept: float, count: int = 4000) -> tuple[list[float], list[bool]]:
    """Draw answers that are right with the probability that a calibration says, both classes equally often."""
    generator = np.random.default_rng(0)
    odds = generator.uniform(-6, 6, size=8 * count)
    right = generator.random(len(odds)) < 1 / (1 + np.exp(-slope * odds - intercept))
    kept = np.concatenate([np.flatnonzero(right)[:count], np.flatnonzero(~right)[:count]])
    return [float(1 / (1 + np.exp(-value))) for value in odds[kept]], [bool(value) for value in right[kept]]


def test_fit_recovers_the_calibration_that_answers_were_drawn_from():
    probabilities, right = drawn_answers(1.5, 0.0)
    fitted = fit_calibration(probabilities, right)
    assert fitted.slope == pytest.approx(1.5, rel=0.1) and fitted.intercept == pytest.approx(0.0, abs=0.15)


def test_fit_does_not_depend_on_the_share_of_right_answers():
    probabilities, right = drawn_answers(1.0, 0.0)
    once = fit_calibration(probabilities, right)
    wrong = [value for value, is_right in zip(probabilities, right, strict=True) if not is_right]
    again = fit_calibration(probabilities + wrong * 3, right + [False] * (3 * len(wrong)))
    assert again.slope == pytest.approx(once.slope, rel=1e-6)
    assert again.intercept == pytest.approx(once.intercept, abs=1e-6)


@pytest.mark.parametrize(
    ("num_right", "num_wrong", "high", "low"), [(8, 592, 9.2, -2), (1, 200, 9.2, -9.2), (200, 1, 5, -3)]
)
def test_few_answers_of_one_class_far_from_the_others_are_fitted(num_right, num_wrong, high, low):
    odds = np.array([high] * num_right + [low] * num_wrong)
    probabilities = [float(value) for value in 1 / (1 + np.exp(-odds))]
    fitted = fit_calibration(probabilities, [True] * num_right + [False] * num_wrong)
    high_confidence, low_confidence = fitted.confidence(probabilities[0]), fitted.confidence(probabilities[-1])
    assert high_confidence > 0.5 > low_confidence
    # Where the loss is least, its derivative by the intercept, which the penalty of 1e-3 enters, is zero.
    assert high_confidence + low_confidence == pytest.approx(1 - 2e-3 * fitted.intercept, abs=1e-9)


def test_separable_answers_give_a_finite_slope():
    fitted = fit_calibration([0.99, 0.98, 0.4, 0.3], [True, True, False, False])
    assert math.isfinite(fitted.slope) and not fitted.is_guess(0.99) and fitted.is_guess(0.3)


@pytest.mark.parametrize(
    ("probabilities", "right", "message"),
    [
        ([0.9, 0.8], [True, True], "2 right ones of 2"),
        ([0.9, 0.8], [False, False], "0 right ones of 2"),
        ([0.2, 0.9], [True, False], "no higher token probability"),
    ],
)
def test_fit_refuses_answers_that_calibrate_nothing(probabilities, right, message):
    with pytest.raises(ValueError, match=message):
        fit_calibration(probabilities, right)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1e6), st.floats(-1e6, 1e6))
def test_confidence_rises_with_token_probability(first, second, slope, intercept):
    calibration = Calibration(slope, intercept)
    low, high = sorted((first, second))
    assert 0 <= calibration.confidence(low) <= calibration.confidence(high) <= 1


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.6, 0.8, 0.95]), st.booleans()), min_size=1, max_size=30),
    st.floats(0.05, 1),
)
def test_the_mark_is_set_below_the_lowest_confidence_that_gives_the_share(answers, share):
    def right_from(confidence: float) -> float:
        kept = [is_right for value, is_right in answers if calibration.confidence(value) >= confidence]
        return sum(kept) / len(kept)

    calibration = Calibration(0.7, -0.4)
    confidences = {calibration.confidence(value) for value, _ in answers}
    reached = [value for value in confidences if right_from(value) >= share]
    if reached:
        assert choose_guess_below(calibration, answers, share) == min(reached)
    else:
        with pytest.raises(ValueError, match=f"of {len(answers)} answers at most .* not {share:.1%}"):
            choose_guess_below(calibration, answers, share)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=f"above 0 and at most 1, got {share}"):
        choose_guess_below(Calibration(1.0, 0.0), [(0.9, True)], share)


def test_calibration_round_trips_through_a_model_folder(tmp_path):
    calibration = Calibration(1.25, -4.5, 0.6, {"synthdoc": {"answers": 3, "right": 2}})
    with pytest.raises(ValueError, match=r"no config\.json"):
        write_calibration(tmp_path, calibration)
    (tmp_path / "config.json").write_text("{}")
    assert read_calibration(tmp_path) is None
    write_calibration(tmp_path, calibration)
    assert read_calibration(tmp_path) == calibration


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"slope": 1}',
        '{"slope": -1, "intercept": 0}',
        '{"slope": NaN, "intercept": 0}',
        '{"slope": "1", "intercept": 0}',
        '{"slope": 1, "intercept": 0, "guess_below": 2}',
        '{"slop": 1, "intercept": 0}',
    ],
)
def test_damaged_calibration_is_named(tmp_path, content):
    (tmp_path / "confidence.json").write_text(content)
    with pytest.raises(ValueError, match=r"confidence\.json cannot be read"):
        read_calibration(tmp_path)


@pytest.fixture(scope="module")
def tiny():
    return load("tiny", "cpu")


@pytest.fixture(scope="module")
def receipt() -> Image.Image:
    return Image.open("examples/receipt.png").convert("RGB")


def answer_alone(tiny, question: str, image: Image.Image) -> Result:
    model, processor = tiny
    prompt = build_prompt(processor, [question_message([image], question)])
    *_, result = Generator(model, processor).generate(prompt, Sampling(16))
    return result


def test_token_probabilities_are_those_of_a_forward_pass(tiny, receipt):
    model, processor = tiny
    inputs = prepare(model, processor, [question_message([receipt], "What is the total?")], 16)
    result = answer_alone(tiny, "What is the total?", receipt)
    assert result.text == answer(model, processor, inputs, 16)
    length = inputs["input_ids"].shape[1]
    sequence = model.generate(**inputs, max_new_tokens=16)
    with torch.inference_mode():
        whole = {**inputs, "input_ids": sequence, "attention_mask": torch.ones_like(sequence)}
        logits = model(**whole).logits[0, length - 1 : -1].float()
    expected = logits.softmax(-1).gather(1, sequence[0, length:, None]).mean()
    assert result.confidence(None).token_probability == pytest.approx(float(expected), abs=1e-4)


def test_engine_and_generate_agree_on_confidence(tiny, receipt):
    model, processor = tiny
    calibration = load_calibration("tiny")
    assert calibration is not None
    message = question_message([receipt], "What is the total?")
    batches = BatchGenerator(model, processor, GenerationOptions(None, None, 1, 16, 1))
    sample = Sample(0, "What is the total?", image_source=receipt.copy)
    with ThreadPoolExecutor(1) as pool:
        batch = batches.batches.build([sample], [0], pool)
    expected = batches.generate(batch).probabilities[0]
    with Engine(model, processor, calibration=calibration) as engine:
        result = engine.submit([message], Sampling(16)).result()
    assert len(result.token_probabilities) == len(result.token_ids)
    found = result.confidence(calibration)
    assert found.token_probability == pytest.approx(expected.mean, abs=1e-4)
    assert math.prod(result.token_probabilities) == pytest.approx(expected.product, abs=1e-4)
    assert found.is_guess is False


def test_answer_about_a_texture_is_marked_as_a_guess(tiny):
    noise = np.random.default_rng(0).integers(0, 255, size=(300, 400, 3), dtype=np.uint8)
    result = answer_alone(tiny, "What is the price of the bread?", Image.fromarray(noise))
    confidence = result.confidence(load_calibration("tiny"))
    assert confidence.is_guess and "a guess" in confidence.note


def test_a_calibration_scales_the_mean_or_the_product():
    mean, product = (Confidence.of([0.9, 0.5], Calibration(1.0, 0.0, measure=name)) for name in ("mean", "product"))
    assert mean.token_probability == product.token_probability == pytest.approx(0.7)
    assert mean.confidence == pytest.approx(0.7) and not mean.is_guess
    assert product.confidence == pytest.approx(0.45) and product.is_guess
    with pytest.raises(ValueError, match="measure must be one of mean, product, got 'median'"):
        Calibration(1.0, 0.0, measure="median")


def test_products_of_long_answers_are_told_apart():
    calibration = fit_calibration([1e-3, 1e-4, 1e-9, 1e-11], [True, True, False, False], measure="product")
    assert calibration.measure == "product" and calibration.guess_below == 0.5
    confidences = [calibration.confidence(product) for product in (1e-13, 1e-12, 1e-11, 1e-9, 1e-4, 1e-3)]
    assert confidences[0] == confidences[1] and confidences[1:] == sorted(set(confidences[1:]))
    assert [calibration.is_guess(product) for product in (1e-9, 1e-4)] == [True, False]


def test_a_model_without_calibration_marks_nothing():
    confidence = Confidence.of([0.5, 0.7], None)
    assert confidence.as_json() == {"token_probability": 0.6, "confidence": None, "is_guess": None}
    assert confidence.note is None


def test_ask_reports_confidence_and_marks_a_guess(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, size=(300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    for image, is_guess in (("examples/receipt.png", False), (str(tmp_path / "noise.png"), True)):
        done = CliRunner().invoke(app, ["ask", image, "What is the total?", "--model", "tiny", "--json"])
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert found["is_guess"] is is_guess and 0 <= found["confidence"] <= 1
        assert ("a guess" in done.stderr) is is_guess
