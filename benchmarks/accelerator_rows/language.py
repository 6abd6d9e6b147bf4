"""Rows of a whole model with random weights: pixels to the first token, new tokens, and the serving engine."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llava_uhd.benchmark.inputs import prepare, random_image
from llava_uhd.benchmark.measure import alternate
from llava_uhd.benchmark.sizes import build
from llava_uhd.flops import language_flops, vision_flops
from llava_uhd.loading import load_processor
from llava_uhd.model.image_processing_llava_uhd import LlavaUhdImageProcessor
from llava_uhd.model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
from llava_uhd.model.processing_llava_uhd import LlavaUhdProcessor

from .counting import BYTES
from .setting import Cells, Setting, copy_rate, dearest, difference, mebibytes, median, num_launches

NEW_TOKENS = 32


@torch.no_grad()
def generate(setting: Setting) -> Iterator[Cells]:
    """Pixels of one image with 7 views to the first token's logits, then greedy decoding."""
    sizes, rate = setting.sizes, setting.rate()
    new_tokens = 16 if setting.small else NEW_TOKENS
    model = build(sizes, setting.device, setting.dtype, with_text=True)
    images = prepare(sizes, model, [setting.image], 6, setting.device, setting.dtype)
    length = images.input_ids.shape[1]
    flop = vision_flops(model.config, images.shapes) + language_flops(model.config, length, 1)

    def prefill() -> Any:
        return model(input_ids=images.input_ids, **images.inputs, logits_to_keep=1)

    def decode(new_tokens: int) -> Any:
        return model.generate(
            input_ids=images.input_ids,
            attention_mask=torch.ones_like(images.input_ids),
            **images.inputs,
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )

    taken = median(prefill, setting)
    cells: Cells = {
        "measured": f"pixels to the first token, {length} tokens, {sizes.text_layers} text layers",
        "ms": 1000 * taken.seconds,
        "TFLOP/s": flop / taken.seconds / 1e12,
        "of matmul rate": flop / taken.seconds / rate,
        "peak MiB": mebibytes(taken.peak_bytes),
        "launches": num_launches(prefill, setting),
    }
    if setting.with_profile:
        cells["kernels"] = dearest(prefill, setting)
    yield cells
    decode(new_tokens)
    ways = {"first": partial(decode, 1), "whole": partial(decode, new_tokens)}
    times = alternate(ways, setting.runs, setting.device)
    further = difference(times["whole"].seconds, times["first"].seconds, f"{new_tokens - 1} further tokens")
    per_token = further / (new_tokens - 1)
    weights = sum(p.numel() for p in model.model.language_model.parameters()) * BYTES
    cells = {
        "measured": f"one of {new_tokens} new tokens, after {length}",
        "ms": 1000 * per_token,
        "tokens/s": 1 / per_token,
        "of copy rate": weights / per_token / copy_rate(setting),
        "peak MiB": mebibytes(times["whole"].peak_bytes),
    }
    if setting.with_profile:
        cells["kernels"] = dearest(ways["whole"], setting)
    yield cells


def random_model(setting: Setting) -> tuple[LlavaUhdForConditionalGeneration, LlavaUhdProcessor]:
    """Build a model with random weights and a processor that fits it, with the tokenizer of `tiny`."""
    sizes, tiny = setting.sizes, load_processor("tiny")
    model = build(sizes, setting.device, setting.dtype, with_text=True)
    processor = LlavaUhdProcessor(
        LlavaUhdImageProcessor(view_size=sizes.view_size, max_slices=6),
        tiny.tokenizer,
        chat_template=tiny.chat_template,
        query_grid=sizes.query_grid,
        slice_separator_id=tiny.slice_separator_id,
        row_separator_id=tiny.row_separator_id,
    )
    for name in ("image_token_id", "slice_separator_id", "row_separator_id"):
        setattr(model.config, name, getattr(processor, name))
    assert len(processor.tokenizer) <= sizes.vocabulary, "the tokenizer of tiny does not fit the vocabulary"
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    return model, processor


def serve(setting: Setting, requests: int) -> Iterator[Cells]:
    """Requests that arrive together at the serving engine, each with an image of its own and 7 views."""
    from llava_uhd.answering import question_message
    from llava_uhd.serving.engine import Engine, EngineOptions
    from llava_uhd.serving.generation import Sampling

    model, processor = random_model(setting)
    new_tokens = 4 if setting.small else NEW_TOKENS
    options = EngineOptions(
        batch_size=requests,
        max_queue_size=2 * requests + 2,
        deadline=300.0,
        cache_bytes=0,
        prefix_bytes=0,
        preprocessing_workers=4 if not setting.small else 1,
    )
    sampling = Sampling(max_new_tokens=new_tokens)

    def ask(engine: Engine, seeds: range) -> tuple[float, list[Any]]:
        asked = [[question_message([random_image(*setting.image, seed=seed)], "What is the total?")] for seed in seeds]
        start = time.perf_counter()
        generations = [engine.submit(messages, sampling) for messages in asked]
        results = [generation.result() for generation in generations]
        return time.perf_counter() - start, results

    with Engine(model, processor, options) as engine:
        ask(engine, range(1))
        seconds, results = ask(engine, range(1, 1 + requests))
        tokens = sum(len(result.token_ids) for result in results)
        cells: Cells = {
            "measured": f"engine, {requests} at once, {new_tokens} new tokens each",
            "ms": 1000 * seconds,
            "requests/s": requests / seconds,
            "tokens/s": tokens / seconds,
            "ms to the first token": 1000 * sum(result.timings.first_token for result in results) / requests,
            "peak MiB": torch.cuda.max_memory_allocated() / 2**20 if setting.is_cuda else None,
        }
        if setting.with_profile:
            cells["kernels"] = dearest(partial(ask, engine, range(1 + requests, 1 + 2 * requests)), setting)
        yield cells


def evaluation(setting: Setting) -> Iterator[Cells]:
    """`eval run synthdoc` with the built-in model, by the command itself, without its start."""
    import tempfile

    from typer.testing import CliRunner

    from llava_uhd.cli import app

    count = 8 if setting.small else 128
    with tempfile.TemporaryDirectory() as folder:

        def run(name: str, questions: int) -> float:
            arguments = ["eval", "run", "synthdoc", "--model", "tiny", "--limit", str(questions), "--workers", "1"]
            arguments += ["--device", str(setting.device), "--out", str(Path(folder, name)), "--json"]
            start = time.perf_counter()
            CliRunner().invoke(app, arguments, catch_exceptions=False)
            return time.perf_counter() - start

        run("first", 1)  # imports and the first kernels
        seconds = difference(run("whole", count + 1), run("alone", 1), f"{count} further questions")
        cells: Cells = {
            "measured": f"eval run synthdoc, tiny, {count} questions",
            "ms": 1000 * seconds,
            "questions/s": count / seconds,
        }
        if setting.with_profile:
            cells["kernels"] = dearest(partial(run, "profile", count), setting)
        yield cells
