"""The engine: answers that do not depend on who else asks, and what happens when things go wrong."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from llava_uhd.generation.batch import answer
from llava_uhd.generation.prompt import prepare, question_message
from llava_uhd.model.image_processing_llava_uhd import decode_image
from llava_uhd.serving.engine import Engine, EngineOptions
from llava_uhd.serving.generation import (
    Cancelled,
    DeadlineExceeded,
    EngineBusy,
    EngineClosed,
    Result,
    Sampling,
)
from tests.conftest import build_model, random_image, small_config
from tests.serving.conftest import png
from tests.serving.running import until

CONVERSATIONS = [
    [question_message([png(150, 120)], "What is this?")],
    [question_message([], "No image at all?")],
    [question_message([png(30, 40), png(61, 200, 3)], "Which is larger?")],
    [question_message([png(300, 200, 5)], "What is the total of all of these?")],
    [
        question_message([png(150, 120)], "What is this?"),
        {"role": "assistant", "content": "A receipt."},
        question_message([], "And the total?"),
    ],
    [{"role": "system", "content": "Be brief."}, question_message([png(56, 56, 9)], "?")],
]


class Held:
    """Keeps the engine's thread busy until it is let go."""

    def __init__(self, engine: Engine):
        self.go, self.begun = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=engine.run, args=(self.hold,))

    def hold(self) -> None:
        self.begun.set()
        assert self.go.wait(30)

    def __enter__(self) -> "Held":
        self.thread.start()
        assert self.begun.wait(10)
        return self

    def __exit__(self, *error) -> None:
        self.go.set()
        self.thread.join()


def test_answers_together_are_those_given_alone(engine, loaded):
    sampling = Sampling(max_new_tokens=8)
    alone = [engine.submit(messages, sampling).result() for messages in CONVERSATIONS]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda messages: engine.submit(messages, sampling).result(), CONVERSATIONS * 2))
    for first, second in zip([*alone, *alone], together, strict=True):
        assert second.token_ids == first.token_ids and second.text == first.text
    model, processor = loaded
    for messages, result in zip(CONVERSATIONS, alone, strict=True):
        decoded = [
            {**message, "content": [
                {"type": "image", "image": decode_image(part["image"])} if part["type"] == "image" else part
                for part in message["content"]
            ] if isinstance(message["content"], list) else [{"type": "text", "text": message["content"]}]}
            for message in messages
        ]  # fmt: skip
        inputs = prepare(model, processor, decoded, 8)
        assert result.text == answer(model, processor, inputs, 8)
        assert result.num_prompt_tokens == inputs["input_ids"].shape[1]
        assert result.num_image_tokens == int((inputs["input_ids"] == processor.image_token_id).sum())
        assert result.timings.total >= result.timings.first_token > 0


def test_logits_of_a_row_are_the_same_to_the_last_bit_whoever_is_beside_it(engine):
    prompts = [engine.prompts.build(messages, None).input_ids for messages in CONVERSATIONS[1:2] * 4]
    decoder = engine.generator.decoder

    @torch.inference_mode()
    def step(ids: list[torch.Tensor]) -> torch.Tensor:
        caches = [decoder.read(prompt)[1] for prompt in ids]
        return decoder.step([7] * len(ids), [cache.get_seq_length() for cache in caches], caches)

    shorter = [prompt[:, index:] for index, prompt in enumerate(prompts)]
    alone = [engine.run(lambda prompt=prompt: step([prompt])[0]) for prompt in shorter]
    together = engine.run(lambda: step(shorter))
    assert all(torch.equal(row, single) for row, single in zip(together, alone, strict=True))


@pytest.mark.parametrize("text", ["qwen2", "qwen3"])
def test_other_language_models(text, loaded):
    config = small_config(text, "sequential")
    model = build_model(config)
    sampling = Sampling(max_new_tokens=6)
    processor = type(loaded[1]).from_config(config, loaded[1].tokenizer, "qwen")
    with Engine(model, processor, EngineOptions(batch_size=4)) as engine:
        assert engine.generator.decoder.batch_size == 4
        generations = [engine.submit(messages, sampling) for messages in CONVERSATIONS[:3]]
        texts = [generation.result().text for generation in generations]
    for messages, text in zip(CONVERSATIONS[:3], texts, strict=True):
        images = [decode_image(part["image"]) for part in messages[0]["content"] if part["type"] == "image"]
        inputs = prepare(model, processor, [question_message(images, messages[0]["content"][-1]["text"])], 6)
        assert text == answer(model, processor, inputs, 6)


def test_a_language_model_with_an_attention_of_its_own_is_served_row_after_row(loaded):
    model, processor = loaded
    model.set_attn_implementation("eager")
    try:
        with Engine(model, processor, EngineOptions(batch_size=4)) as engine:
            assert engine.generator.decoder.batch_size == 1
            generations = [engine.submit(messages, Sampling(max_new_tokens=4)) for messages in CONVERSATIONS[:2]]
            assert all(generation.result().num_prompt_tokens for generation in generations)
    finally:
        model.set_attn_implementation("sdpa")


def test_streamed_pieces_make_up_the_answer(engine):
    events = list(engine.submit(CONVERSATIONS[0]).events())
    *pieces, result = events
    assert isinstance(result, Result) and len(pieces) > 1 and "".join(pieces) == result.text
    assert result.finish_reason == "length" and len(result.token_ids) == 12


def test_an_image_is_encoded_once(loaded):
    with Engine(*loaded, EngineOptions(batch_size=2)) as engine:
        sampling = Sampling(max_new_tokens=3)
        first = engine.submit(CONVERSATIONS[0], sampling).result()
        again = engine.submit(CONVERSATIONS[4], sampling).result()
        fewer_slices = engine.submit(CONVERSATIONS[0], sampling, max_slices=1).result()
        assert (first.num_cached_images, again.num_cached_images, fewer_slices.num_cached_images) == (0, 1, 0)
        assert again.num_image_tokens == first.num_image_tokens > fewer_slices.num_image_tokens
        stats = engine.stats()
        assert (stats.cached_images, stats.cache_hits, stats.cache_misses) == (2, 1, 2)
        assert stats.cache_bytes == (first.num_image_tokens + fewer_slices.num_image_tokens) * 32 * 4


def test_a_known_beginning_is_not_read_again_and_changes_no_bit(loaded):
    """Logits after prompts whose images are cached, in the same conversation and in another."""
    follow_up = CONVERSATIONS[4]
    both = [CONVERSATIONS[0], follow_up, CONVERSATIONS[2], CONVERSATIONS[0]]
    logits = []
    for bound in (0, 2**20):
        with Engine(*loaded, EngineOptions(batch_size=2, prefix_bytes=bound)) as engine:
            read, recorded = engine.generator.decoder.read, []

            def noted(ids, *args, read=read, recorded=recorded, **kwargs):
                result = read(ids, *args, **kwargs)
                recorded.append((ids.shape[1], result[0]))
                return result

            engine.generator.decoder.read = noted
            results = [engine.submit(messages, Sampling(max_new_tokens=4)).result() for messages in both]
            stats = engine.stats()
            assert [result.num_cached_images for result in results] == [0, 1, 0, 1]
            assert (stats.prefix_hits, stats.prefix_misses) == ((2, 2) if bound else (0, 4))
            assert (stats.cached_prefixes > 0) == (stats.prefix_bytes > 0) == bool(bound)
            assert (stats.cache_hits, stats.cache_misses) == (2, 3)
            assert len(recorded) == (6 if bound else 8)
            logits.append([values for size, values in recorded if size < results[0].num_image_tokens])
            assert len(logits[-1]) == len(both)
    assert all(torch.equal(kept, anew) for kept, anew in zip(*logits, strict=True))


def test_a_prompt_that_ends_in_an_image_is_read_in_one_part(engine):
    prompt = engine.prompts.build(CONVERSATIONS[0], None)
    ids = prompt.input_ids[:, : prompt.num_prefix_tokens]
    assert 0 < prompt.num_prefix_tokens < prompt.input_ids.shape[1]

    @torch.inference_mode()
    def read() -> tuple[torch.Tensor, torch.Tensor]:
        generator = engine.generator
        state = generator.new_state(replace(prompt, input_ids=ids, num_prefix_tokens=0), Sampling(), 1)
        return generator.prefill(state), generator.decoder.read(ids, generator.encode(prompt.images)[0])[0][0]

    before = engine.stats()
    logits, expected = engine.run(read)
    after = engine.stats()
    assert torch.equal(logits, expected)
    assert (after.prefix_hits, after.prefix_misses) == (before.prefix_hits, before.prefix_misses)


def test_what_a_prefix_keeps_is_bounded_and_never_written_to(loaded):
    with Engine(*loaded, EngineOptions(batch_size=2)) as engine:
        first = engine.submit(CONVERSATIONS[3], Sampling(max_new_tokens=6)).result()
        size = engine.stats().prefix_bytes
        (prefix,) = engine.generator.prefixes._values.values()
        before = [layer.keys.clone() for layer in prefix.layers]
        assert engine.submit(CONVERSATIONS[3], Sampling(max_new_tokens=6)).result().token_ids == first.token_ids
        assert all(torch.equal(layer.keys, keys) for layer, keys in zip(prefix.layers, before, strict=True))
    with Engine(*loaded, EngineOptions(batch_size=2, prefix_bytes=size + 100)) as engine:
        for seed in (5, 6, 5):
            message = question_message([png(300, 200, seed)], "What is the total of all of these?")
            engine.submit([message], Sampling(max_new_tokens=1)).result()
            assert engine.stats().cached_prefixes == 1 and engine.stats().prefix_bytes == size
        assert engine.stats().prefix_hits == 0


def test_the_cache_is_bounded(loaded):
    bound = 63 * 32 * 4 + 100  # one image of 7 views
    with Engine(*loaded, EngineOptions(batch_size=2, cache_bytes=bound, prefix_bytes=0)) as engine:
        for seed in (0, 1, 0):
            message = question_message([png(300, 200, seed)], "?")
            assert engine.submit([message], Sampling(max_new_tokens=1)).result().num_cached_images == 0
        assert engine.stats().cached_images == 1 and engine.stats().cache_bytes <= bound


def test_more_than_may_wait_are_refused(loaded):
    with Engine(*loaded, EngineOptions(batch_size=2, max_queue_size=2)) as engine:
        with Held(engine):
            generations = [engine.submit(CONVERSATIONS[1], Sampling(max_new_tokens=2)) for _ in range(2)]
            assert engine.stats().waiting == 2
            with pytest.raises(EngineBusy, match="2 requests") as rejected:
                engine.submit(CONVERSATIONS[1])
            assert rejected.value.retry_after >= 1
        assert all(generation.result().text for generation in generations)
        assert engine.stats().rejected == 1 and engine.stats().finished == 2


def test_deadlines_hold_while_waiting_and_while_writing(engine):
    with Held(engine) as held:
        generation = engine.submit(CONVERSATIONS[1], deadline=0.05)
        time.sleep(0.1)
        held.go.set()
        with pytest.raises(DeadlineExceeded):
            generation.result()
    writing = engine.submit(CONVERSATIONS[1], Sampling(max_new_tokens=1500), deadline=0.6)
    with pytest.raises(DeadlineExceeded):
        writing.result()
    until(lambda: engine.stats().running == 0)
    assert engine.stats().timed_out == 2


def test_a_cancelled_request_makes_room(engine):
    generation = engine.submit(CONVERSATIONS[1], Sampling(max_new_tokens=1500))
    pieces = generation.stream()
    next(pieces)
    generation.cancel()
    with pytest.raises(Cancelled):
        list(pieces)
    until(lambda: engine.stats().running == 0)
    assert engine.stats().cancelled == 1


@pytest.mark.parametrize(
    "message, said",
    [
        (question_message([b""], "?"), "image 1 is empty"),
        (question_message([png(40, 40), b"no image"], "?"), "image 2 is not an image"),
        (question_message([png(300, 200)[:2000]], "?"), "image 1 is damaged"),
        (question_message([], "word " * 3000), "context of 2048"),
    ],
)
def test_a_bad_request_fails_alone(engine, message, said):
    bad, good = engine.submit([message]), engine.submit(CONVERSATIONS[1])
    with pytest.raises(ValueError, match=said):
        bad.result()
    assert good.result().text


def test_files_are_read_from_paths_alone(engine, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(png(150, 120))
    expected = engine.submit(CONVERSATIONS[0]).result().text
    assert engine.submit([question_message([path], "What is this?")]).result().text == expected
    with pytest.raises(ValueError, match=r"there is no file .*none\.png"):
        engine.submit([question_message([tmp_path / "none.png"], "?")]).result()
    with pytest.raises(TypeError):  # a string may come from anywhere: it is neither opened nor fetched
        engine.submit([question_message([str(path)], "?")]).result()


def test_a_failure_of_the_model_fails_what_it_hits_and_no_more(engine):
    head = engine.model.lm_head
    engine.run(lambda: setattr(engine.model, "lm_head", torch.nn.Linear(3, 5)))
    with pytest.raises(RuntimeError):
        engine.submit(CONVERSATIONS[1]).result()
    engine.run(lambda: setattr(engine.model, "lm_head", head))
    assert engine.submit(CONVERSATIONS[1]).result().text


def test_logits_that_are_no_numbers_fail_the_requests_that_draw_from_them(engine):
    head = engine.model.lm_head
    broken = torch.nn.Linear(head.in_features, head.out_features)
    torch.nn.init.constant_(broken.bias, float("nan"))
    engine.run(lambda: setattr(engine.model, "lm_head", broken))
    try:
        generations = [engine.submit(CONVERSATIONS[1], Sampling(temperature=1.0)) for _ in range(3)]
        for generation in generations:
            with pytest.raises(RuntimeError):
                generation.result()
    finally:
        engine.run(lambda: setattr(engine.model, "lm_head", head))
    assert engine.submit(CONVERSATIONS[1]).result().text
    until(lambda: engine.stats().running == 0)


def test_a_listener_that_fails_is_not_told_on_and_harms_nobody(engine):
    def emit(event) -> None:
        raise RuntimeError("gone")

    before = engine.stats().cancelled
    engine.submit(CONVERSATIONS[1], Sampling(max_new_tokens=1500), emit=emit)
    assert engine.submit(CONVERSATIONS[0]).result().text
    until(lambda: engine.stats().running == 0 and engine.stats().cancelled == before + 1)


def test_a_draw_repeats_with_its_seed_whoever_is_beside_it(engine):
    drawn = Sampling(max_new_tokens=8, temperature=1.0, seed=4)
    alone = engine.submit(CONVERSATIONS[0], drawn).result()
    greedy = engine.submit(CONVERSATIONS[0], Sampling(max_new_tokens=8)).result()
    others = [engine.submit(messages, Sampling(temperature=2.0)) for messages in CONVERSATIONS[1:4]]
    again = engine.submit(CONVERSATIONS[0], drawn).result()
    assert all(other.result() for other in others)
    assert again.token_ids == alone.token_ids != greedy.token_ids
    other_seed = Sampling(max_new_tokens=8, temperature=1.0, seed=5)
    assert engine.submit(CONVERSATIONS[0], other_seed).result().token_ids != alone.token_ids
    nearly_greedy = Sampling(max_new_tokens=8, temperature=1.0, top_p=1e-6)
    assert engine.submit(CONVERSATIONS[0], nearly_greedy).result().token_ids == greedy.token_ids


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(engine):
    whole = engine.submit(CONVERSATIONS[0]).result()
    stop = whole.text[4:6]
    *pieces, result = engine.submit(CONVERSATIONS[0], Sampling(stop=(stop,))).events()
    assert result.finish_reason == "stop" and result.text == whole.text[: whole.text.index(stop)].strip()
    assert "".join(pieces) == result.text and len(result.token_ids) < len(whole.token_ids)


def test_the_end_token_ends_the_answer(loaded):
    model, processor = loaded
    with Engine(model, processor, EngineOptions(batch_size=2)) as engine:
        whole = engine.submit(CONVERSATIONS[0], Sampling(max_new_tokens=6)).result()
        engine.generator.decoder.end_ids = frozenset([whole.token_ids[3]])
        result = engine.submit(CONVERSATIONS[0], Sampling(max_new_tokens=6)).result()
        first = whole.token_ids.index(whole.token_ids[3])
        assert result.finish_reason == "stop" and result.token_ids == whole.token_ids[: first + 1]


def test_closing_finishes_what_was_taken(loaded):
    engine = Engine(*loaded, EngineOptions(batch_size=2))
    generations = [engine.submit(messages, Sampling(max_new_tokens=6)) for messages in CONVERSATIONS]
    engine.close()
    assert all(generation.result().text for generation in generations)
    with pytest.raises(EngineClosed):
        engine.submit(CONVERSATIONS[1])
    with pytest.raises(EngineClosed):
        engine.run(lambda: None)
    engine.close()


@pytest.mark.parametrize(
    "values, said",
    [
        ({"max_new_tokens": 0}, "at least 1"),
        ({"temperature": 2.5}, "2.5"),
        ({"temperature": float("nan")}, "nan"),
        ({"top_p": 0}, "top_p"),
        ({"seed": 2**64}, "64 bits"),
        ({"stop": ("",)}, "stop"),
        ({"stop": tuple("abcde")}, "at most 4"),
    ],
)
def test_impossible_sampling(values, said):
    with pytest.raises(ValueError, match=said):
        Sampling(**values)
    with pytest.raises(ValueError, match="batch_size"):
        EngineOptions(batch_size=0)


def test_two_pictures_never_share_an_entry_of_the_cache(loaded):
    """Images of equal samples that decode differently: palette, transparency, orientation."""
    indices = np.asarray(random_image(120, 90).convert("L")) // 128

    def painted(*colors: int, **info) -> Image.Image:
        image = Image.fromarray(indices).convert("P")
        image.putpalette(colors)
        image.info.update(info)
        return image

    def turned(orientation: int) -> Image.Image:
        image = random_image(120, 120)
        image.getexif()[0x0112] = orientation
        return image

    black, white = (0, 0, 0), (255, 255, 255)
    images = [
        painted(*black, *white),
        painted(*white, *white),
        painted(*black, *white, transparency=0),
        turned(1),
        turned(3),
        random_image(120, 120).convert("L"),
    ]
    with Engine(*loaded, EngineOptions(batch_size=2)) as engine:
        prompts = [engine.prompts.build([question_message([each], "?")]) for each in images]
        assert len({prompt.images[0].key for prompt in prompts}) == len(images) - 1  # the second and third are white
        again = engine.prompts.build([question_message([painted(*black, *white)], "?")])
        assert again.images[0].key == prompts[0].images[0].key
        recorded = [engine.prompts.build([question_message([decode_image(each)], "?")]) for each in images]
        assert [prompt.images[0].key for prompt in recorded] == [prompt.images[0].key for prompt in prompts]


def test_a_sliding_window_is_served_one_at_a_time_and_answers_as_generate(loaded):
    config = small_config("qwen2", "sequential")
    text = config.text_config
    text.layer_types = ["full_attention", "sliding_attention"][: text.num_hidden_layers]
    text.use_sliding_window, text.sliding_window = True, 8
    model = build_model(config)
    processor = type(loaded[1]).from_config(config, loaded[1].tokenizer, "qwen")
    with Engine(model, processor, EngineOptions(batch_size=4)) as engine:
        assert engine.generator.decoder.batch_size == 1
        generations = [engine.submit(messages, Sampling(max_new_tokens=6)) for messages in CONVERSATIONS[:2] * 2]
        results = [generation.result() for generation in generations]
        assert engine.stats().cached_prefixes == 0
    for messages, result in zip(CONVERSATIONS[:2] * 2, results, strict=True):
        images = [decode_image(part["image"]) for part in messages[0]["content"] if part["type"] == "image"]
        inputs = prepare(model, processor, [question_message(images, messages[0]["content"][-1]["text"])], 6)
        assert result.text == answer(model, processor, inputs, 6)


def test_text_alone_is_not_held_up_by_images(loaded, monkeypatch):
    go = threading.Event()
    original = Engine._prepare

    def slow(self, generation, messages, max_slices):
        if any(part["type"] == "image" for part in messages[0]["content"]):
            assert go.wait(30)
        original(self, generation, messages, max_slices)

    monkeypatch.setattr(Engine, "_prepare", slow)
    with Engine(*loaded, EngineOptions(batch_size=2, preprocessing_workers=2)) as engine:
        held = [engine.submit(CONVERSATIONS[0], Sampling(max_new_tokens=2)) for _ in range(4)]
        assert engine.submit(CONVERSATIONS[1], Sampling(max_new_tokens=2)).result().text
        go.set()
        assert all(generation.result().text for generation in held)


def test_few_requests_are_prepared_ahead(loaded):
    with Engine(*loaded, EngineOptions(batch_size=2, preprocessing_workers=1, max_queue_size=30)) as engine:
        with Held(engine):
            generations = [engine.submit(CONVERSATIONS[1], Sampling(max_new_tokens=2)) for _ in range(20)]
            until(lambda: len(engine._ready) >= 2)
            time.sleep(0.2)
            assert len(engine._ready) <= 4 and engine.stats().waiting == 20
        assert len({generation.result().text for generation in generations}) == 1


@pytest.mark.parametrize("temperature", [1e-40, 5e-324, 1e-6])
def test_a_temperature_near_zero_is_greedy(engine, temperature):
    greedy = engine.submit(CONVERSATIONS[0], Sampling(max_new_tokens=6)).result()
    drawn = engine.submit(CONVERSATIONS[0], Sampling(max_new_tokens=6, temperature=temperature)).result()
    assert drawn.token_ids == greedy.token_ids
