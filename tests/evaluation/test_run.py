"""Runs from official files to reports, with a model of random weights: killed, resumed, shared among ranks."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import Qwen2Config

from llava_uhd.evaluation import workers
from llava_uhd.evaluation.batches import BatchBuilder
from llava_uhd.evaluation.generation import BatchGenerator, GenerationOptions
from llava_uhd.evaluation.images import load_image, scaled_size
from llava_uhd.evaluation.pipeline import RunOptions, evaluate_task
from llava_uhd.evaluation.samples import Sample
from llava_uhd.evaluation.tasks import TASKS
from llava_uhd.evaluation.workers import Workers, default_workers
from llava_uhd.loading import load
from llava_uhd.synthetic import make_document, render
from tests.evaluation import minidata

FAST = ("--max-new-tokens", "4", "--batch-size", "2")


@pytest.fixture(scope="module")
def loaded(model_folder):
    return load(str(model_folder), "cpu")


@pytest.mark.parametrize("name", minidata.SEVEN)
def test_from_official_files_to_report(name, evaluate, model_folder, tmp_path):
    data, out = minidata.build(tmp_path / "data", name), tmp_path / "out"
    printed = evaluate("run", name, "--model", model_folder, "--data", data, "--out", out, *FAST)
    task = TASKS[name]
    samples = task.load(data)
    result = json.loads((out / name / "result.json").read_text())
    assert printed["results"][0]["headline"] == result["headline"]
    assert [row["prompt"] for row in result["rows"]] == [sample.prompt for sample in samples]
    assert set(result["scores"]) == {"official", "llava-uhd"}
    assert all(0 <= row["score"] <= 1 for row in result["rows"])
    assert any(row["text"] for row in result["rows"])
    assert f"instead of the {task.count}" in result["headline"]
    protocol = result["protocol"]
    assert (protocol["num_beams"], protocol["max_side"]) == (task.num_beams, task.max_side)
    assert protocol["prompt"].count("{question}") == 1
    assert protocol["max_slices"] == 6
    assert len(protocol["model_fingerprint"]) == 16
    assert protocol["versions"].keys() >= {"llava-uhd", "torch", "transformers"}
    page = (out / name / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 1
    assert "Worst answers" in page
    assert result["headline"] in (out / name / "report.md").read_text()
    assert not list((out / name / "shards").iterdir())


def test_result_is_the_same_killed_and_resumed_with_any_number_of_ranks(loaded, tmp_path, monkeypatch):
    model, processor = loaded
    task = TASKS["mme"]
    data = minidata.build(tmp_path / "data", "mme")
    options = RunOptions(batch_size=3, max_new_tokens=4, num_beams=2)

    def run(out: Path):
        return evaluate_task(task, model, processor, data, out, options, "small")

    run(tmp_path / "whole")
    files = {name: (tmp_path / "whole" / name).read_bytes() for name in ("predictions.jsonl", "result.json")}

    class Killed(Exception):
        """Stands for the kill."""

    calls = []
    generate = model.generate

    def killed_after_two(*args, **kwargs):
        calls.append(None)
        if len(calls) > 2:
            raise Killed
        return generate(*args, **kwargs)

    monkeypatch.setattr(model, "generate", killed_after_two)
    with pytest.raises(Killed):
        run(tmp_path / "killed")
    monkeypatch.setattr(model, "generate", generate)
    shard = tmp_path / "killed/shards/rank0.jsonl"
    lines = shard.read_text().splitlines(keepends=True)
    assert len(lines) == 6
    # The kill came while a line was written: one answer of the second batch is half there, one not at all.
    shard.write_text("".join(lines[:4]) + lines[4][:25])

    # Two ranks take it up where one stopped.
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run(tmp_path / "killed") is None
    monkeypatch.setenv("RANK", "0")
    run(tmp_path / "killed")
    for name, content in files.items():
        assert (tmp_path / "killed" / name).read_bytes() == content, name

    # A finished run is not run again.
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(model, "generate", killed_after_two)
    run(tmp_path / "killed")
    assert (tmp_path / "killed/result.json").read_bytes() == files["result.json"]


def test_processes_share_the_work_and_survive_a_kill(model_folder, tmp_path):
    """The same with real processes: SIGKILL one that works with two of its own, which end with it, then let two of
    torchrun's environment finish."""
    data = minidata.build(tmp_path / "data", "gqa", "docvqa_val")

    def start(out: Path, rank: int = 0, count: int = 1, processes: int = 1) -> subprocess.Popen:
        arguments = ["run", "docvqa_val", "gqa", "--model", model_folder, "--data", data, "--out", out]
        arguments += ["--max-new-tokens", "60", "--batch-size", "1", "--workers", processes]
        return subprocess.Popen(
            [sys.executable, "-c", "from llava_uhd.evaluation.cli import app; app()", *map(str, arguments)],
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )

    whole = start(tmp_path / "whole")
    assert whole.wait(timeout=400) == 0

    killed = start(tmp_path / "shared", processes=2)
    shard = tmp_path / "shared/docvqa_val/shards/rank0.jsonl"
    while not (shard.exists() and shard.stat().st_size):
        assert killed.poll() is None
        time.sleep(0.005)
    children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
    assert len(children) >= 2
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not (tmp_path / "shared/gqa/result.json").exists()

    ranks = [start(tmp_path / "shared", rank, 2) for rank in (0, 1)]
    assert [rank.wait(timeout=400) for rank in ranks] == [0, 0]
    for name in ("docvqa_val", "gqa"):
        for file in ("predictions.jsonl", "result.json"):
            assert (tmp_path / "shared" / name / file).read_bytes() == (tmp_path / "whole" / name / file).read_bytes()


def test_answers_do_not_depend_on_the_batch_nor_on_the_number_of_processes(loaded, tmp_path):
    model, processor = loaded
    task = TASKS["scienceqa_img"]
    data = minidata.build(tmp_path / "data", "scienceqa_img")
    texts = []
    for batch_size, processes in ((1, 1), (5, 1), (2, 2)):
        options = RunOptions(batch_size=batch_size, max_new_tokens=6, workers=processes)
        result = evaluate_task(task, model, processor, data, tmp_path / str(batch_size), options, "small")
        texts.append([row["text"] for row in result["rows"]])
    assert texts[0] == texts[1] == texts[2]
    assert len(set(texts[0])) > 1, "the answers must depend on the question for this to say anything"


def test_answers_of_another_protocol_are_not_mixed_in(evaluate, model_folder, tmp_path):
    data = minidata.build(tmp_path / "data", "gqa")
    run = ("run", "gqa", "--model", model_folder, "--data", data, "--out", tmp_path / "out", *FAST)
    evaluate(*run)
    with pytest.raises(ValueError, match="another protocol .*num_beams 3 -> 1"):
        evaluate(*run, "--beams", "1")
    with pytest.raises(ValueError, match="another protocol .*max_slices 6 -> 9"):
        evaluate(*run, "--max-slices", "scripts")


def test_failed_images_are_named_and_can_be_allowed(evaluate, model_folder, tmp_path, capsys):
    data = minidata.build(tmp_path / "data", "gqa")
    image = data / "gqa/data/images/n1.jpg"
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    run = ("run", "gqa", "--model", model_folder, "--data", data, "--out", tmp_path / "out", *FAST)
    with pytest.raises(ValueError, match=r"1 images that failed to load \(201\).*--allow-missing"):
        evaluate(*run)
    assert "gqa, question 201: image" in (said := capsys.readouterr().err) and "n1.jpg" in said
    result = evaluate(*run, "--allow-missing")["results"][0]
    assert "scored 0: 1 images that failed to load (201)" in result["headline"]
    rows = json.loads((tmp_path / "out/gqa/result.json").read_text())["rows"]
    assert (rows[1]["text"], rows[1]["score"]) == (None, 0.0)
    # Repaired, the image is asked about; the others are not asked again.
    image.write_bytes(content)
    assert "failed" not in evaluate(*run)["results"][0]["headline"]
    predictions = [json.loads(line) for line in (tmp_path / "out/gqa/predictions.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in predictions] == ["200", "201", "202"]
    assert not any("error" in row for row in predictions)


def test_server_scored_benchmarks_write_their_submission(evaluate, model_folder, tmp_path):
    names = ("docvqa_test", "vqav2", "vizwiz", "mm_vet", "mmbench", "seed")
    data = minidata.build(tmp_path / "data", *names)
    results = evaluate("run", *names, "--model", model_folder, "--data", data, "--out", tmp_path / "out", *FAST)
    assert [result["headline"] is None for result in results["results"]] == [True] * 4 + [False] * 2
    documents = json.loads((tmp_path / "out/docvqa_test/submission.json").read_text())
    assert [row["questionId"] for row in documents] == [0, 1, 2]
    assert len(json.loads((tmp_path / "out/vqav2/submission.json").read_text())) == 4
    assert json.loads((tmp_path / "out/mm_vet/submission.json").read_text()).keys() == {"v1_0", "v1_1", "v1_2"}
    assert (tmp_path / "out/mmbench/submission.xlsx").stat().st_size > 0


def test_all_runs_the_seven(evaluate, model_folder, tmp_path):
    data = minidata.build(tmp_path / "data", *minidata.SEVEN)
    arguments = ("all", "--suite", "paper", "--model", model_folder, "--data", data, "--out", tmp_path / "out")
    results = evaluate(*arguments, "--max-new-tokens", "2", "--limit", "2")["results"]
    assert [result["benchmark"] for result in results] == list(minidata.SEVEN)
    assert all(result["questions"] == 2 for result in results)


def test_long_answers_are_shortened_to_the_context(loaded, tmp_path):
    model, processor = loaded
    samples = TASKS["gqa"].load(minidata.build(tmp_path, "gqa"))
    generator = BatchGenerator(model, processor, GenerationOptions(None, None, 1, 10, 1))
    with ThreadPoolExecutor(1) as pool:
        first = generator.batches.build(samples, [0], pool)
    length = first.text["input_ids"].shape[1]
    generator.decoder.context = length + 1
    assert len(processor.tokenizer(generator.generate(first).texts[0])["input_ids"]) <= 1
    generator.decoder.context = length
    with pytest.raises(ValueError, match=f"has {length} tokens .* model's context of {length}"):
        generator.generate(first)


def test_processes_pay_for_many_batches_of_a_small_model(loaded, monkeypatch):
    model, _ = loaded
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert default_workers(model, 1000) == 3
    assert default_workers(model, 2) == 1
    monkeypatch.setattr(workers, "_SMALL", 1000)
    assert default_workers(model, 1000) == 1


def test_an_error_in_a_process_is_raised(loaded, tmp_path):
    model, processor = loaded
    samples = TASKS["gqa"].load(minidata.build(tmp_path, "gqa"))
    generator = BatchGenerator(model, processor, GenerationOptions(None, None, 1, 10, 1))
    generator.decoder.context = 1
    with Workers(generator, samples, 2) as side_by_side:
        answers = side_by_side.generate_all([[0], [1], [2]])
        with pytest.raises(ValueError, match="the model's context of 1:"):
            next(answers)


def test_a_process_that_is_killed_is_named(loaded, tmp_path):
    model, processor = loaded
    samples = TASKS["gqa"].load(minidata.build(tmp_path, "gqa"))
    generator = BatchGenerator(model, processor, GenerationOptions(None, None, 1, 10, 1))
    with Workers(generator, samples, 1) as alone:
        answers = alone.generate_all([[0]] * 100)
        next(answers)
        for process in multiprocessing.active_children():
            process.kill()
        with pytest.raises(ChildProcessError, match="one of 1 processes .* fewer --workers"):
            list(answers)


def about_pages(folder, questions=3):
    """Questions about two pages in files, of unlike shapes and numbers of tokens, in turn."""
    pages = [make_document("pages", index, kind="form", num_slices=slices) for index, slices in enumerate((6, 2))]
    for index, page in enumerate(pages):
        render(page.page).save(folder / f"{index}.png")
    return [
        Sample(3 * number + index, page.questions[number].text, f"{index}.png", folder / f"{index}.png")
        for number in range(questions)
        for index, page in enumerate(pages)
    ]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_questions_about_one_image_read_it_once(tmp_path, num_beams):
    model, processor = load("tiny", "cpu")
    samples = about_pages(tmp_path)
    together = BatchGenerator(model, processor, GenerationOptions(None, None, num_beams, 12, 6))
    assert [set(batch) for batch in together.batches.plan(samples, 3)] == [{0, 2, 4}, {1, 3, 5}]
    read, logits = [], []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    model.lm_head.register_forward_hook(lambda module, args, output: logits.append(output[:, -1]))
    with ThreadPoolExecutor(2) as pool:
        alone, alone_logits = {}, []
        for position, sample in enumerate(samples):
            inputs = processor(
                images=Image.open(sample.image_source), text=together.batches.prompt(sample), return_tensors="pt"
            )
            logits.clear()
            generated = model.generate(**inputs, do_sample=False, num_beams=num_beams, max_new_tokens=12)[0]
            alone_logits.append(logits[0])
            alone[position] = processor.decode(generated[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        batch = together.batches.build(samples, range(6), pool)
        assert len(batch.images["num_views"]) == 2 and batch.image_of_question == [0, 1] * 3
        read.clear(), logits.clear()
        assert together.generate(batch).texts == alone
        torch.testing.assert_close(logits[1], torch.cat(alone_logits), rtol=1e-3, atol=1e-3)
    # Both images first, then what is left of the six prompts.
    shared, whole = batch.num_shared, batch.text["input_ids"].shape[1]
    assert read[:2] == [(2, shared), (6 * num_beams, whole - shared)] and shared > 400 and whole - shared < 40


def test_no_prefix_is_shared_with_a_sliding_window(tmp_path):
    """A layer with a window keeps a part of the prefix alone, and overwrites it."""
    model, processor = load("tiny", "cpu")
    text = model.config.text_config
    model.config.text_config = Qwen2Config(
        num_hidden_layers=text.num_hidden_layers,
        max_position_embeddings=text.max_position_embeddings,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=1,
    )
    generator = BatchGenerator(model, processor, GenerationOptions(None, None, 1, 4, 6))
    with ThreadPoolExecutor(2) as pool:
        batch = generator.batches.build(about_pages(tmp_path), range(6), pool)
    assert batch.num_shared == 0 and len(batch.text["input_ids"]) == 6


def test_a_batch_holds_all_questions_about_an_image(loaded, tmp_path):
    for index in range(2):
        Image.new("RGB", (300, 400)).save(tmp_path / f"{index}.png")
    samples = [
        Sample(index, "What? " * index, f"{index % 2}.png", tmp_path / f"{index % 2}.png") for index in range(6)
    ]
    assert BatchBuilder(loaded[1]).plan(samples, 3) == [[5, 3, 1], [4, 2, 0]]


def test_questions_without_an_image_share_nothing(tmp_path):
    model, processor = load("tiny", "cpu")
    generator = BatchGenerator(model, processor, GenerationOptions(None, None, 1, 4, 7))
    samples = [*about_pages(tmp_path), Sample(6, "Hello?")]
    with ThreadPoolExecutor(2) as pool:
        batch = generator.batches.build(samples, range(7), pool)
        assert batch.num_shared == 0 and len(batch.images["num_views"]) == 2
        assert len(generator.generate(batch).texts) == 7
        assert len(generator.generate(generator.batches.build(samples, [6], pool)).texts) == 1


def test_every_question_about_a_broken_image_is_named(loaded, tmp_path):
    samples = about_pages(tmp_path)
    (tmp_path / "1.png").write_bytes(b"no image")
    with ThreadPoolExecutor(2) as pool:
        batch = BatchBuilder(loaded[1]).build(samples, range(6), pool)
    assert batch.readable == [0, 2, 4] and batch.errors.keys() == {1, 3, 5}
    assert all("image 1.png cannot be read" in error for error in batch.errors.values())


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (((60, 60), (400, 300), (60, 60), (400, 300)), [[1, 3], [0, 2]]),
        (((300, 400), (400, 300), (300, 400), (400, 300)), [[0, 2], [1, 3]]),
    ],
)
def test_batches_hold_questions_of_like_size_and_shape(loaded, tmp_path, sizes, expected):
    _, processor = loaded
    samples = []
    for index, size in enumerate(sizes):
        Image.new("RGB", size).save(tmp_path / f"{index}.png")
        samples.append(Sample(index, "What?", f"{index}.png", tmp_path / f"{index}.png"))
    assert BatchBuilder(processor).plan(samples, 2) == expected


@pytest.mark.parametrize(
    ("size", "expected"), [((200, 100), (1024, 512)), ((3000, 1999), (1024, 682)), ((5, 9000), (1, 1024))]
)
def test_images_are_scaled_to_a_long_side(size, expected, tmp_path):
    assert scaled_size(*size, 1024) == expected
    Image.new("RGB", size, "green").save(tmp_path / "a.png")
    sample = Sample(1, "?", "a.png", tmp_path / "a.png")
    assert load_image(sample, 1024).size == expected
    assert load_image(sample, None).size == size
