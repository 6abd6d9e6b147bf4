"""Every golden of the scorers, in the mode or modes it is about; and what we decided where the reference crashes."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_uhd.evaluation.scorers import (
    GqaAnswer,
    MmbenchAnswer,
    MmeAnswer,
    OcrbenchAnswer,
    ScienceQaAnswer,
    SeedAnswer,
    ai2d_match,
    anls,
    evalai_normalize,
    gqa_match,
    gqa_normalize,
    gqa_scores,
    infer_choice,
    mmbench_circular,
    mme_scores,
    ocrbench_match,
    ocrbench_scores,
    parse_mme,
    parse_pope,
    parse_scienceqa,
    pope_scores,
    refcoco_match,
    refcoco_scores,
    relaxed_accuracy,
    scienceqa_index,
    scienceqa_scores,
    seed_scores,
    textvqa_question,
    vqa_exact_accuracy,
    vqa_soft_accuracy,
)
from tests.evaluation.goldens import GOLDENS, load_cases, load_golden

PUBLISHED = "llava-uhd"


def close(value: float):
    return pytest.approx(value, rel=0, abs=1e-9)


def test_anls_official():
    for case in load_cases("anls_official"):
        assert anls(case["prediction"], case["answers"]) == close(case["expected"]), case
        if case["llava_uhd_reference"] != "ZeroDivisionError":
            score = anls(case["prediction"], case["answers"], compat=PUBLISHED)
            assert score == close(case["llava_uhd_reference"]), case


def test_anls_published():
    for case in load_cases("anls_reference"):
        # The reference divides by zero where both texts are empty; we say 1.
        expected = case.get("expected", 1.0)
        assert anls(case["prediction"], case["answers"], compat=PUBLISHED) == close(expected), case


def test_relaxed_accuracy():
    for case in load_cases("chartqa_relaxed_official"):
        assert relaxed_accuracy(case["prediction"], case["answer"]) == case["expected"], case


def test_relaxed_accuracy_takes_the_best_reference():
    assert relaxed_accuracy("14.2", ["lamb", "14"]) == 1.0
    with pytest.raises(ValueError, match="at least 1 reference"):
        relaxed_accuracy("14", [])


def test_evalai_normalize():
    for case in load_cases("evalai_processor"):
        assert evalai_normalize(case["input"]) == case["expected"], case


def test_vqa_soft_accuracy():
    for case in load_cases("textvqa_soft_accuracy"):
        if "reference_error" in case:
            with pytest.raises(ValueError, match="over 10 answers"):
                vqa_soft_accuracy(case["prediction"], case["answers"], compat=PUBLISHED)
            continue
        assert vqa_soft_accuracy(case["prediction"], case["answers"]) == close(case["expected"]), case
        assert vqa_soft_accuracy(case["prediction"], case["answers"], compat=PUBLISHED) == close(case["expected"])


def test_vqa_soft_accuracy_leaves_one_out_over_any_number():
    with pytest.warns(UserWarning, match="over 10 answers, got 3"):
        # Leaving out either match leaves 1 of 3; leaving out the other leaves 2 of 3.
        assert vqa_soft_accuracy("x", ["x", "x", "y"]) == close((1 / 3 + 1 / 3 + 2 / 3) / 3)


@given(st.integers(0, 10))
def test_vqa_soft_accuracy_agrees_with_its_definition(matches: int):
    answers = ["x"] * matches + ["y"] * (10 - matches)
    left_out = [min(1, (answers[:i] + answers[i + 1 :]).count("x") / 3) for i in range(10)]
    assert vqa_soft_accuracy("x", answers) == close(sum(left_out) / 10)


def test_vqa_exact_accuracy():
    for case in load_cases("stvqa_exact_accuracy"):
        assert vqa_exact_accuracy(case["prediction"], case["answers"]) == case["expected"], case


def test_textvqa_question():
    for case in load_cases("textvqa_prompt_to_question"):
        if "reference_error" in case:
            with pytest.raises(ValueError):
                textvqa_question(case["prompt"])
        else:
            assert textvqa_question(case["prompt"]) == case["expected"], case


def test_ai2d_published():
    for case in load_cases("ai2d_exact_match"):
        assert ai2d_match(case["prediction"], case["answers"], compat=PUBLISHED) == case["expected"], case


def test_ai2d_official_accepts_a_leading_letter():
    for case in load_cases("ai2d_exact_match"):
        expected = case["expected"]
        if case["prediction"].removesuffix(" Carbon") == f"{case['answers']}.":
            expected = 1.0
        assert ai2d_match(case["prediction"], case["answers"]) == expected, case


def test_parse_mme():
    for case in load_cases("mme_parse"):
        assert parse_mme(case["input"]) == case["expected"], case


def test_parse_pope():
    for case in load_cases("pope_parse"):
        assert parse_pope(case["input"]) == case["expected"], case


def test_pope_scores():
    for case in load_cases("pope_aggregate"):
        scores = pope_scores(case["answers"], case["labels"], compat=PUBLISHED)
        if "reference_error" in case:
            assert scores.undefined
            assert scores.f1 == 0.0
            continue
        expected = case["expected"]
        assert (scores.tp, scores.fp, scores.tn, scores.fn) == tuple(
            expected[name] for name in ("TP", "FP", "TN", "FN")
        )
        for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
            assert getattr(scores, name) == close(expected[name]), (case, name)
        assert not scores.undefined
        rates = (scores.f1, scores.accuracy, scores.precision, scores.recall, scores.yes_ratio)
        assert ", ".join(f"{rate:.3f}" for rate in rates) == expected["last_line"]
        if len(case["answers"]) == len(case["labels"]):
            assert pope_scores(case["answers"], case["labels"]) == scores
        else:
            with pytest.raises(ValueError, match="one label per answer"):
                pope_scores(case["answers"], case["labels"])


def mme_answers(case: dict) -> list[MmeAnswer]:
    labels = {}
    for path, text in case["gt_files"].items():
        category, name = path.split("/")[0], path.split("/")[-1].removesuffix(".txt")
        for line in text.split("\n"):
            question, label = line.split("\t")
            labels[category, name, question.removesuffix("Please answer yes or no.").strip()] = label
    answers = []
    for row in case["answers"]:
        category, name = row["question_id"].split("/")[0], row["question_id"].split("/")[-1].split(".")[0]
        question = row["prompt"].split("\n")[0]
        answers.append(MmeAnswer(category, name, labels[category, name, question], row["text"]))
    return answers


@pytest.mark.parametrize("compat", [None, PUBLISHED])
def test_mme_scores(compat):
    for case in load_golden("mme_aggregate")["cases"]:
        scores = mme_scores(mme_answers(case), compat)
        assert scores.perception == close(case["expected"]["perception"])
        assert scores.cognition == close(case["expected"]["cognition"])
        for name, expected in case["expected"]["categories"].items():
            assert scores.categories[name].score == close(expected), name
        assert not scores.missing


def test_mme_scores_pairs_by_image_or_by_line():
    answers = [
        MmeAnswer("count", image, label, text)
        for image, label, text in (("a", "Yes", "yes"), ("b", "Yes", "yes"), ("a", "No", "no"), ("b", "No", "yes"))
    ]
    assert mme_scores(answers).categories["count"].score == close(75 + 50)
    assert mme_scores(answers, PUBLISHED).categories["count"].score == close(75 + 50)
    assert mme_scores(answers[::-1], PUBLISHED).categories["count"].accuracy_plus == close(50)
    shuffled = [answers[0], answers[3], answers[1], answers[2]]
    assert mme_scores(shuffled).categories["count"].accuracy_plus == close(50)
    assert mme_scores([answers[0], answers[2], answers[1], answers[3]], PUBLISHED).categories["count"].score == 125
    assert "OCR" in mme_scores(answers).missing
    with pytest.raises(ValueError, match="none of MME's 14 categories"):
        mme_scores([MmeAnswer("colour", "a", "Yes", "yes")])


def test_gqa():
    golden = load_golden("gqa")
    cases = load_cases("gqa")
    for case in cases:
        assert gqa_normalize(case["input"]) == case["expected_prediction"], case
        assert gqa_match(case["input"], case["gold"]) == case["correct"], case
    scores = gqa_scores(GqaAnswer(case["input"], case["gold"], case["structural"]) for case in cases)
    assert {name: round(getattr(scores, name), 2) for name in ("accuracy", "binary", "open")} == golden["cases"][-1][
        "aggregate"
    ]
    assert gqa_scores([]).open is None


def test_scienceqa():
    golden = load_golden("scienceqa")
    predictions = {row["question_id"]: row["text"] for row in golden["predictions"]}
    answers = []
    for case in golden["cases"]:
        letter = parse_scienceqa(case["input"])
        assert letter == case["expected_parsed"], case
        assert scienceqa_index(letter, case["n_choices"]) == case["expected_index"], case
        assert (case["expected_index"] == case["answer_index"]) == case["correct"]
        text = predictions.get(case["question_id"])
        answers.append(ScienceQaAnswer(text, case["n_choices"], case["answer_index"], case["is_multimodal"]))
    scores = scienceqa_scores(answers, PUBLISHED)
    assert scores.accuracy == close(golden["aggregate"]["acc"])
    assert round(scores.image_accuracy, 2) == golden["aggregate"]["img_acc_2dp"]
    assert scienceqa_scores(answers).image_accuracy == scores.image_accuracy


def test_scienceqa_missing_prediction_counts_officially():
    answers = [ScienceQaAnswer("A", 2, 0, True), ScienceQaAnswer(None, 2, 0, True)]
    assert scienceqa_scores(answers).image_accuracy == 50.0
    assert scienceqa_scores(answers, PUBLISHED).image_accuracy == 100.0
    assert scienceqa_scores(answers, PUBLISHED).accuracy == 50.0
    assert scienceqa_scores([ScienceQaAnswer("A", 2, 0, False)]).image_accuracy is None


def test_refcoco():
    for case in load_golden("refcoco_rec")["cases"]:
        if "reference_error" in case:
            assert refcoco_match(case["text"], case["label"]) == 0.0
            assert refcoco_scores([(case["text"], case["label"])]).unparsable == 1
            continue
        pairs = case.get("aggregate_pairs") or [[case["text"], case["label"]]]
        scores = refcoco_scores(map(tuple, pairs), PUBLISHED)
        assert scores.accuracy == pytest.approx(case["expected"]["accuracy"], abs=1e-5), case
        assert scores.mean_iou == pytest.approx(case["expected"]["iou"], abs=1e-5), case


def test_refcoco_official_counts_unparsable_as_wrong():
    pairs = [("[0,0,1,1]", "[0,0,1,1]"), ("a cat", "[0,0,1,1]"), ("[nan,0,1,1]", "[0,0,1,1]")]
    official, published = refcoco_scores(pairs), refcoco_scores(pairs, PUBLISHED)
    assert official.accuracy == close(1 / 3)
    assert published.accuracy == close(1 / 2)
    assert official.unparsable == published.unparsable == 1
    with pytest.raises(ValueError, match="four numbers"):
        refcoco_match("[0,0,1,1]", "cat")


def test_infer_choice():
    golden = load_golden("mcq_can_infer_vlmevalkit")
    for case in golden["cases"]:
        assert infer_choice(case["input"], golden["choices"]) == (case["expected"] or None), case


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The correct answer is B. Here is why option A is wrong, and C is further away still.", "B"),
        ("the Answer  IS\n**c**, since the sign in the picture has that word on it, not A nor B", "C"),
        ("answer is a matter of taste, for the picture shows a red and a green thing alike", "A"),
        ("The answer is D. No: the answer is B, for what the picture shows is no D but a B.", None),
        ("Answer: B because A and C are absent from what the picture shows on its left side", None),
        ("The answer is unclear; Failed to obtain answer via API answer is B and A as well", None),
    ],
)
def test_a_stated_answer_counts_where_no_lone_letter_decides(text, expected):
    assert infer_choice(text, {"A": "red", "B": "green", "C": "blue"}) == expected


def stated_choice(text: str, choices: dict[str, str]) -> str | None:
    """An independent statement of all rules, character by character and without a regular expression."""
    if "Failed to obtain answer via API" not in text:
        refusals = ("I can't process this file.", "Cannot determine the answer")
        if any(refusal in text for refusal in refusals):
            return "Z"
        words = "".join(" " if character in ".()[],:;!*#{}" else character for character in text).split()
        present = {word for word in words if word in choices}
        if len(present) == 1:
            (letter,) = present
            if words.index(letter) > len(words) - 5:
                return letter
        if not present and "Z" in words:
            return "Z"
        lower = text.lower()
        for start in range(len(text)):
            if not lower.startswith("answer", start):
                continue
            rest = lower[start + len("answer") :]
            verb = rest.lstrip()
            if verb == rest or not verb.startswith("is"):
                continue
            after = verb[2:].lstrip()
            letter = after.lstrip("*")[:1].upper()
            if after == verb[2:] or letter not in ("A", "B", "C", "D"):
                continue
            if letter in choices:
                return letter
            break
    if len(text) > 2 * sum(len(choice) for choice in choices.values()):
        return None
    named = [letter for letter, choice in choices.items() if choice.lower() in text.lower()]
    return named[0] if len(named) == 1 else None


def test_infer_choice_agrees_with_its_statement_on_random_texts():
    generator = random.Random(0)
    pieces = ["answer", "Answer", "is", "IS", "correct", "the", "A", "B", "C", "D", "E", "Z", "a", "b", "d", "**", "*"]
    pieces += ["**B**", "(C)", "A.", "red", "green car", "Blue", "because", "so", "isB", "answeris", "unclear"]
    pieces += ["I can't process this file.", "Cannot determine the answer", "Failed to obtain answer via API"]
    weights = [8, 4, 10, 2] + [3] * (len(pieces) - 7) + [0.1] * 3
    all_choices = {"A": "red", "B": "green car", "C": "blue", "D": "yellow house with a garden"}
    found = set()
    for _ in range(200_000):
        chosen = generator.choices(pieces, weights, k=generator.randrange(1, 11))
        text = "".join(piece + generator.choice((" ", "  ", "\n", " ", "")) for piece in chosen)
        choices = {letter: all_choices[letter] for letter in "ABCD"[: generator.choice((2, 3, 4))]}
        expected = stated_choice(text, choices)
        assert infer_choice(text, choices) == expected, (text, choices)
        found.add(expected)
    assert found == {"A", "B", "C", "D", "Z", None}


def test_mmbench_circular_needs_every_rotation():
    choices = {"A": "red", "B": "green"}
    rows = [
        MmbenchAnswer(7, "A", choices, "A"),
        MmbenchAnswer(1_000_007, "A", choices, "B"),
        MmbenchAnswer(8, "B.", choices, "B"),
    ]
    assert mmbench_circular(rows) == 50.0
    assert mmbench_circular([]) is None


def through_sheet(text: str) -> str:
    """A prediction alone in a spreadsheet, as the golden's single cases were written: a number is read as one."""
    try:
        return str(float(text))
    except ValueError:
        return text


def test_ocrbench():
    cases = load_cases("ocrbench_vlmevalkit")
    for case in cases:
        text = through_sheet(case["prediction"]) if "." in case["prediction"] else case["prediction"]
        assert ocrbench_match(text, case["answers"], case["category"]) == case["expected"], case
    rows = [OcrbenchAnswer(case["prediction"], case["answers"], case["category"]) for case in cases[-32:]]
    assert ocrbench_scores(rows) == load_golden("ocrbench_vlmevalkit")["cases"][-1]["expected_summary"]
    with pytest.raises(ValueError, match="none of OCRBench's 10 categories"):
        ocrbench_scores([OcrbenchAnswer("a", ["a"], "Reading")])


def test_seed():
    case = next(case for case in load_golden("converters")["cases"] if case["tool"] == "seed")
    texts = {str(row["question_id"]): row["text"] for row in case["results"]}
    names = {number: name for name, number in case["question_type"].items()}
    scores = seed_scores(
        SeedAnswer(texts.get(row["question_id"]), row["answer"], names[row["question_type_id"]], row["data_type"])
        for row in case["questions"]
    )
    measured = scores.by_type | {"Total accuracy": scores.total}
    measured |= {f"{kind} accuracy": value for kind, value in scores.by_data.items()}
    assert {name: round(value, 2) for name, value in measured.items()} == case["expected"]


def test_seed_type_without_hits_is_zero():
    assert seed_scores([SeedAnswer("A", "B", "Scene", "image")]).by_type == {"Scene": 0.0}


def test_native_aggregates():
    golden = load_golden("native_aggregates")
    expected = golden["cases"][0]
    data = golden["docvqa_style"]
    texts = {(row["question_id"], row["prompt"].lower()): row["text"] for row in data["predictions"]}
    pairs = [(texts[row["question_id"], row["question"].lower()], row["answer"]) for row in data["annotations"]]

    def percent(scores) -> float:
        values = list(scores)
        return 100 * sum(values) / len(values)

    assert len(pairs) == expected["eval_docvqa_anls"]["samples"]
    assert percent(anls(*pair, compat=PUBLISHED) for pair in pairs) == close(expected["eval_docvqa_anls"]["acc"])
    assert percent(vqa_exact_accuracy(*pair) for pair in pairs) == close(expected["eval_chartqa_exact"]["acc"])
    assert percent(ai2d_match(*pair, compat=PUBLISHED) for pair in pairs) == close(expected["eval_ai2d_exact"]["acc"])

    data = golden["textvqa"]
    answers = {(row["image_id"], row["question"].lower()): row["answers"] for row in data["annotations"]}
    accuracies = [
        vqa_soft_accuracy(row["text"], answers[row["question_id"], textvqa_question(row["prompt"])])
        for row in data["predictions"]
    ]
    assert round(percent(accuracies), 2) == expected["eval_textvqa"]["acc_2dp"]


def test_unknown_compat_is_refused():
    for call in (lambda: anls("a", "a", compat="llava"), lambda: pope_scores(["no"], ["no"], compat="v2")):
        with pytest.raises(ValueError, match="either None"):
            call()


def test_every_golden_file_is_used():
    """Nothing of the golden folder is left untested."""
    source = Path(__file__).read_text()
    names = [path.stem for path in GOLDENS.glob("*.json")]
    assert len(names) == 19
    assert not [name for name in names if f'"{name}"' not in source]
