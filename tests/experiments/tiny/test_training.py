"""Training of the next built-in model: labels, sequences, batches, pieces of a run."""

import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("faker", reason="varied documents need the extra synthetic")

from experiments.common.attention import write_out_attention
from experiments.common.trainer import Stop, append_log
from experiments.tiny import symbols as symbol_names
from experiments.tiny.calculation import describe_plan
from experiments.tiny.copying import measure_copying
from experiments.tiny.crops import cell_symbols, cut_crops, label_map
from experiments.tiny.earlier import EarlierDocument
from experiments.tiny.legibility import count_named, measure_legibility
from experiments.tiny.loader import cut_batches, stream_batches
from experiments.tiny.locations import LOCATION_ID, location_id, location_tokens
from experiments.tiny.losses import SCORES, codes_of, reading_score
from experiments.tiny.measure import SEED, main
from experiments.tiny.network import Network, assemble
from experiments.tiny.samples import IGNORED, Sample, continued_turns, draw_document, make_sample, make_samples
from experiments.tiny.setting import Phase, Plan, Setting, load_plan
from experiments.tiny.symbols import (
    EMPTY,
    SYMBOL_OF,
    crop_symbols,
    encode_symbols,
    plan_of,
    sequence_symbols,
    symbol_vectors,
    view_symbols,
    window_locations,
    window_symbols,
)
from experiments.tiny.trainer import LANGUAGE, VISION, Options, begin_with, export, phase_groups, train
from experiments.tiny_v1.tokenizer import EOS_ID, IMAGE_ID, build_tokenizer, byte_id, encode
from llava_uhd.synthetic.varied import SCRIBBLE, Glyphs, make_varied
from llava_uhd.synthetic.varied.fonts import CHARACTERS

SMALL = Setting(
    view_size=56, query_grid=4, max_slices=4, slots=4, width=64, text_layers=2, text_heads=4, key_value_heads=2,
    intermediate=64, vision_width=64, vision_layers=2, vision_heads=2,
)  # fmt: skip
TOWER = Phase("tower", "tower", 2, 40, views=1, scribble=0.5, crops=2)
READER = Phase("reader", "reader", 3, 300, views=1, questions=2)


class Page:
    """Stand-in of a document with characters at given places."""

    def __init__(self, text, points, size):
        self.size = size
        self.glyphs = Glyphs(
            text,
            np.zeros(len(text), int),
            np.array(points, float),
            np.full(len(text), 10.0),
            np.array([(x - 2, x + 2) for x, _ in points], float),
            np.zeros(len(text), bool),
        )


def named(symbols):
    """Symbols as text, with spaces for empty slots."""
    return "".join(" " if symbol == EMPTY else CHARACTERS[symbol - symbol_names.FIRST] for symbol in symbols.flat)


@pytest.mark.parametrize(
    "text, x, slots",
    [
        ("ab", [2, 17], "a  b"),
        ("ba", [17, 2], "a  b"),
        ("ab", [11, 13], "  ab"),  # in one slot: the right one moves on
        ("abc", [16, 17, 18], " abc"),  # and the left ones back where the slots end
        ("abcdef", [1, 2, 3, 4, 5, 6], "abcd"),
        ("abcd", [1, 6, 7, 19], "abcd"),
    ],
)
def test_a_character_stands_in_the_slot_where_its_middle_is(text, x, slots):
    page = Page(text, [(each, 5) for each in x], (100, 100))
    symbols = window_symbols(page, (5, 5), 8)
    assert named(symbols[0, 0]) == slots + "    "
    assert (symbols != EMPTY).sum() == len(slots.replace(" ", ""))
    below = Page(text, [(each + 40, 15) for each in x], (100, 100))
    assert named(window_symbols(below, (5, 5), 8)[0, 2]) == "    " + slots


@settings(max_examples=60, deadline=None)
@given(
    points=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=40),
    slots=st.sampled_from([2, 4, 6, 8]),
)
def test_as_many_characters_have_a_slot_as_half_windows_hold(points, slots):
    page = Page("x" * len(points), points, (100, 100))
    symbols = window_symbols(page, (5, 5), slots)
    halves = Counter((y // 10, x // 20) for x, y in points)
    assert (symbols != EMPTY).sum() == sum(min(count, slots // 2) for count in halves.values())


def test_characters_of_a_padded_page_stand_where_its_views_show_them():
    page = Page("a", [(50, 10)], (100, 20))
    symbols = window_symbols(page, (5, 5), 2, padded_size=(100, 100))
    assert np.argwhere(symbols != EMPTY).tolist() == [[2, 2, 1]]  # 50 pixels from the top


def test_the_code_of_an_overview_says_where_there_is_text():
    setting = Setting()
    document = make_varied("symbols", 1, kind="letter", shown=4 * setting.view_size**2, fonts=())
    plan = plan_of(document, setting, 4)
    *_, overview = view_symbols(document, plan, setting)
    assert plan.grid and set(overview[:, 0]) == {EMPTY, symbol_names.SMALL} and set(overview[:, 1:].flat) == {EMPTY}


def test_every_slice_of_a_page_is_a_square_of_whole_windows():
    setting = Setting()
    for index in range(6):
        plan = plan_of(make_varied("shapes", index, shown=6 * setting.view_size**2, fonts=()), setting, 6)
        assert set(plan.view_shapes[: max(plan.num_slices, 1)]) == {(16, 16)}


def test_a_character_that_begins_a_word_is_a_symbol_of_its_own():
    document = make_varied("words", 0, kind="letter", fonts=())
    glyphs = document.glyphs
    words = [word for run in document.sheet.texts for word in run.text.split()]
    assert "".join(np.array(list(glyphs.text))[glyphs.begins]) == "".join(word[0] for word in words)
    symbols = window_symbols(document, (90, 70), 8)
    assert 0.9 * len(words) < (symbols >= symbol_names.NUM_PLAIN).sum() <= len(words)
    # Both are the same vector but for one channel.
    plain, begins = symbol_vectors(Setting())[[SYMBOL_OF["a"], SYMBOL_OF["a"] + symbol_names.BEGINS]]
    assert (plain != begins).sum() == 1


def test_nearly_all_characters_have_a_place_and_views_and_sequence_agree():
    setting = load_plan().setting
    printed = placed = 0
    for index in range(4):
        document = make_varied("symbols", index, shown=4 * setting.view_size**2, fonts=())
        plan = plan_of(document, setting, 4)
        views, sequence = view_symbols(document, plan, setting), sequence_symbols(document, plan, setting)
        assert sorted(map(tuple, views.reshape(-1, setting.slots))) == sorted(map(tuple, sequence))
        slices = views if plan.grid is None else views[:-1]
        printed += len(document.glyphs.text)
        placed += int((slices > 1).sum())
    assert 0.97 * printed < placed <= printed


def test_cells_name_the_character_that_covers_them():
    page = Page("ab", [(10, 20), (14, 20)], (60, 60))
    labels = label_map(page, 1.0)
    assert labels[20, 9] == labels[16, 11] == SYMBOL_OF["a"] and labels[20, 13] == SYMBOL_OF["b"]
    assert labels[20, 7] == labels[20, 16] == labels[12, 10] == labels[28, 10] == EMPTY
    cells = cell_symbols(labels[:56, :56], (4, 4), 14, (2, 5))
    assert cells.shape == (16, 10)
    # The second patch of the second row begins at (14, 14); its first cell's middle is at (15, 17).
    assert cells[5, 0] == SYMBOL_OF["b"] and set(cells[5, 1:]) == {EMPTY}
    assert (label_map(page, 0.4) == symbol_names.SMALL).any()  # print of 4 pixels


def test_the_windows_of_a_view_at_any_place_are_those_of_the_whole_page():
    setting = Setting()
    document = make_varied("crops", 0, kind=SCRIBBLE, shown=4 * setting.view_size**2, fonts=())
    found = crop_symbols(document, 1.0, 0, 0, setting)
    moved = crop_symbols(document, 1.0, 2 * setting.patch_size, 3 * setting.patch_size, setting)
    grid = setting.query_grid
    found, moved = (each.reshape(grid, grid, -1) for each in (found, moved))
    assert np.array_equal(moved[:-3, :-2], found[3:, 2:]) and (found > 1).sum() > 50
    small = crop_symbols(document, 0.1, 0, 0, setting)
    assert set(small[:, 0]) == {EMPTY, symbol_names.SMALL} and set(small[:, 1:].flat) == {EMPTY}


def test_a_page_of_solid_letters_darkens_the_cells_with_labels():
    document = make_varied("solid", 0, kind=SCRIBBLE, shown=Setting().view_size ** 2, fonts=())
    ((patches, symbols, _), *others) = cut_crops(document, Setting(), 1, 3, random.Random(0))
    assert patches.shape == (256, 588) and symbols.shape == (256, 10) and len(others) == 2
    spread = patches.float().std(dim=1)
    text = (symbols > symbol_names.SMALL).float().mean(dim=1)
    assert spread[text > 0.7].mean() > 2 * spread[text == 0].mean()


def test_documents_of_the_first_generator_are_read_like_the_others():
    setting, phase = Setting(), Phase("reader", "reader", 1, 4000, views=4, earlier=1.0, blanks=1.0)
    document = draw_document(setting, phase, 0, 1)
    assert isinstance(document, EarlierDocument) and len(document.glyphs.text) > 20
    # The page is darker or lighter where a character is than between the lines.
    gray = np.asarray(document.render().convert("L"), float)
    glyphs = document.glyphs
    boxes = [
        gray[int(y - 0.4 * size) : int(y + 0.4 * size), int(left) : int(right) + 1]
        for (_, y), size, (left, right) in zip(glyphs.points, glyphs.sizes, glyphs.edges, strict=True)
    ]
    assert np.median([box.max() - box.min() for box in boxes]) > 60
    named = found = 0
    for index in range(5):
        sample = make_sample(setting, phase, 1, index)
        images = [at for at, token in enumerate(sample.input_ids) if token == IMAGE_ID]
        held = dict(zip(images, sample.symbols.tolist(), strict=True))
        for position, pointer in enumerate(sample.pointers):
            character = sample.input_ids[position + 1] - byte_id("\0") if pointer >= 0 else 128
            if character < 128:
                symbol = SYMBOL_OF[chr(character)]
                named += 1
                found += symbol in held[pointer] or symbol + symbol_names.BEGINS in held[pointer]
    assert named > 100 and found > 0.95 * named


def test_codes_tell_symbols_apart():
    vectors = symbol_vectors(Setting())
    symbols = torch.randint(0, len(vectors), (40, 6), generator=torch.Generator().manual_seed(0))
    codes = encode_symbols(symbols, vectors).unflatten(-1, (6, -1))
    assert torch.equal(torch.cdist(codes, vectors[None]).argmin(dim=-1), symbols)


def test_codes_say_where_in_its_view_a_window_lies():
    setting = Setting(slots=8, width=256, text_heads=4, key_value_heads=2)
    locations, vectors = window_locations(setting), symbol_vectors(setting)
    distances = torch.cdist(locations.flatten(1), locations.flatten(1)) + 9 * torch.eye(len(locations))
    assert locations.shape == (256, 8, 2) and distances.min() > 1.0
    codes = encode_symbols(torch.full((256, 8), EMPTY), vectors, locations)
    assert torch.equal(codes.unflatten(-1, (8, -1))[..., :2], locations) and (codes != 0).sum() <= 256 * 16
    sample = make_sample(setting, Phase("reader", "reader", 1, 4000, views=2), 1, 0)
    assert len(sample.windows) == len(sample.symbols) and sample.windows.bincount().unique().numel() == 1


def test_pointers_lead_to_the_token_that_holds_the_next_character():
    setting, phase = Setting(), Phase("reader", "reader", 1, 4000, views=2)
    right = wrong = 0
    for index in range(5):
        sample = make_sample(setting, phase, 1, index)
        tokens = iter(sample.symbols)
        held = {at: next(tokens) for at, token in enumerate(sample.input_ids) if token == IMAGE_ID}
        assert next(tokens, None) is None
        for position, pointer in enumerate(sample.pointers):
            character = sample.input_ids[position + 1] - 6 if pointer >= 0 else 128
            if character < 128:
                symbol, held_there = SYMBOL_OF[chr(character)], held[pointer].tolist()
                found = symbol in held_there or symbol + symbol_names.BEGINS in held_there
                right, wrong = right + found, wrong + (not found)
    assert right > 100 and wrong < 0.03 * right


@torch.no_grad()
def test_a_character_between_two_slots_is_partly_in_both():
    network = Network(SMALL)
    (sample,) = make_samples(SMALL, replace(READER, blanks=1.0), 0, 1)
    text = sample.symbols[sample.symbols > symbol_names.SMALL]
    assert sample.drafts.shape == (symbol_names.DRAFTS, *sample.symbols.shape) and len(text) > 5
    codes, drafts = codes_of(network, [sample]), sample.drafts
    same = (drafts == drafts[0]).all(dim=0).all(dim=-1)
    assert 0.3 < same.float().mean() < 1
    exact = codes_of(network, [sample], drafts[0])
    torch.testing.assert_close(codes[same], exact[same])
    mean = torch.stack([codes_of(network, [sample], draft) for draft in drafts]).mean(dim=0)
    torch.testing.assert_close(codes, mean)


def test_answers_name_the_half_window_before_its_characters():
    setting, phase = Setting(), Phase("reader", "reader", 1, 4000, views=2)
    named = 0
    for index in range(3):
        sample = make_sample(setting, phase, 1, index)
        images = [at for at, token in enumerate(sample.input_ids) if token == IMAGE_ID]
        window_of = dict(zip(images, sample.windows.tolist(), strict=True))
        location = None
        for position, pointer in enumerate(sample.pointers):
            token = sample.input_ids[position + 1] if position + 1 < sample.length else EOS_ID
            if token >= LOCATION_ID:
                row, column = divmod(token - LOCATION_ID, setting.query_grid)
                location = row // 2 * setting.query_grid + column
                named += 1
            if pointer >= 0:
                assert window_of[pointer] == location
    assert named > 30


def test_location_tokens_are_of_the_vocabulary_and_not_of_the_text():
    tokenizer = build_tokenizer(location_tokens(4))
    position = 6 * 9 + 5  # row 6, column 5 of a raster of two slices side by side, whose rows end with a separator
    token = location_id(position, 1, 9, 4)
    assert tokenizer.convert_ids_to_tokens(token) == "<|2.5,1|>"
    assert tokenizer.decode([*encode("4"), token, *encode("2")], skip_special_tokens=True) == "42"


def test_continued_text_is_printed_after_what_is_given():
    setting, phase = Setting(), Phase("reader", "reader", 1, 4000, views=2, continued=1.0)
    answered = pointed = 0
    for index in range(8):
        document = draw_document(setting, phase, 1, index)
        if document.sheet is None:
            continue
        for turn in continued_turns(document, random.Random(0), 12):
            (source,) = turn.sources
            printed = source.text
            assert turn.answer == printed[turn.start : turn.start + len(turn.answer)] != ""
            before = [printed[: turn.start]] if turn.start else [run.text for run in document.sheet.texts]
            assert any(text.endswith(turn.text) for text in before)
        sample = make_sample(setting, phase, 1, index)
        answered += sum(label >= 6 and label != byte_id(" ") for label in sample.labels)  # bytes and locations
        pointed += sum(pointer >= 0 for pointer in sample.pointers)
    assert pointed == answered > 200


def test_blank_tokens_can_be_left_out():
    setting, index = Setting(), 0
    whole = make_sample(setting, Phase("reader", "reader", 1, 4000, views=2), 1, index)
    dense = make_sample(setting, Phase("reader", "reader", 1, 4000, views=2, blanks=0.0), 1, index)
    assert torch.equal(whole.symbols, dense.symbols) and dense.length < 0.8 * whole.length
    stays = dense.positions
    assert [whole.input_ids[at] for at in stays] == dense.input_ids
    assert [whole.labels[at] for at in stays] == dense.labels
    pointed = [(at, stays[to]) for at, to in zip(stays, dense.pointers, strict=True) if to >= 0]
    assert set(pointed) <= {(at, to) for at, to in enumerate(whole.pointers) if to >= 0}
    assert len(pointed) > 50 and len(pointed) > 0.9 * sum(to >= 0 for to in whole.pointers)
    assert dense.input_ids.count(IMAGE_ID) == int(dense.kept.sum())


@torch.no_grad()
def test_positions_keep_their_gaps():
    network = Network(SMALL)
    for layer in network.language_model.layers:
        layer.self_attn.o_proj.weight.normal_(std=0.1)
    ids = torch.tensor([[1, 4, 3, 3, 9, 5, 80, 90]])
    codes = torch.randn(2, SMALL.width)
    gap = torch.tensor([[0, 1, 2, 7, 8, 9, 10, 11]])
    hidden, attention, before = network.hidden_states(ids, codes, torch.tensor([[-1] * 6 + [3, -1]]), gap)
    # RoPE is relative: all positions moved together change nothing, one gap does.
    moved, *_ = network.hidden_states(ids, codes, torch.full((1, 8), -1), gap + 5)
    closed, *_ = network.hidden_states(ids, codes, torch.full((1, 8), -1), torch.arange(8)[None])
    assert torch.allclose(hidden, moved, atol=1e-5) and not torch.allclose(hidden, closed, atol=1e-3)
    # The taught heads' attention, computed again, is the layers' own.
    network.language_model.set_attn_implementation("eager")
    embeds = network.language_model.embed_tokens(ids)
    embeds = embeds.masked_scatter((ids == IMAGE_ID)[..., None], network.code_map(codes))
    own = network.language_model(
        inputs_embeds=embeds, position_ids=gap, attention_mask=torch.ones_like(ids), output_attentions=True
    ).attentions
    expected = [own[layer][0, head, 6, 3] for layer, head in network.heads]
    assert torch.allclose(attention[:, 0], torch.stack(expected), atol=1e-5)
    # All but the first position and the one after the gap have the one before them.
    assert torch.allclose(before[0], own[0][0, 0].diagonal(offset=-1)[[0, 1, 3, 4, 5, 6]], atol=1e-5)


def test_the_loss_is_on_the_answers_alone():
    sample = make_sample(SMALL, READER, 0, 3)
    asked = [label for label in sample.labels if label != IGNORED]
    assert asked.count(EOS_ID) >= 1 and len(sample.labels) == len(sample.input_ids) == len(sample.pointers)
    document = make_varied("reader:0", 3, shown=SMALL.view_size**2)
    answers = [encode(question.answer) for question in document.questions]
    first = [label for label in asked[: asked.index(EOS_ID)] if label < LOCATION_ID]
    assert first in answers or len(first) > 20


def test_batches_keep_within_their_tokens_and_lose_no_sample():
    rng = random.Random(0)
    samples = [Sample([0] * rng.randint(10, 90), [], [], torch.zeros(0)) for _ in range(50)]
    batches = cut_batches(samples, 200)
    assert sum(map(len, batches)) == 50
    assert all(len(batch) * max(sample.length for sample in batch) <= 200 for batch in batches)


def test_a_stream_resumes_with_the_next_batch():
    whole = stream_batches(SMALL, READER, 0, 0, None)
    numbered = [next(whole) for _ in range(5)]
    again = stream_batches(SMALL, READER, 0, numbered[2][0], None)
    number, batch = next(again)
    assert number == numbered[3][0]
    assert [sample.input_ids for sample in batch] == [sample.input_ids for sample in numbered[3][1]]


def test_every_kind_of_phase_gives_gradients_to_what_it_trains():
    network = Network(SMALL)
    for phase in (
        TOWER,
        Phase("slots", "tower", 1, 40, views=1, scribble=0.5, crops=2, named="slots"),
        Phase("projector", "vision", 1, 40, views=1),
        READER,
        Phase("frozen", "frozen", 1, 400, views=2, questions=2),
        Phase("joint", "joint", 1, 400, views=2, symbols=0.5, questions=2),
    ):
        network.zero_grad(set_to_none=True)
        phase_groups(network, phase)
        samples = [sample for index in range(3) for sample in make_samples(SMALL, phase, 0, index)]
        score = SCORES[phase.kind](network, phase, samples, "cpu")
        score.loss.backward()
        assert torch.isfinite(score.loss)
        trained = {
            "tower": network.tower.encoder.layers[0].mlp.fc1.weight.grad is not None,
            "language model": network.language_model.layers[0].mlp.up_proj.weight.grad is not None,
            "projector": network.projector.proj.grad is not None,
        }
        assert trained["tower"] == (phase.kind in ("tower", "vision", "joint"))
        assert trained["language model"] == (phase.kind in ("reader", "frozen", "joint"))
        assert trained["projector"] == (phase.kind in ("vision", "joint"))


def test_reading_counts_characters_and_windows():
    symbols = torch.tensor([[5, 0], [6, 7], [0, 0]])
    scores = torch.nn.functional.one_hot(torch.tensor([[5, 0], [6, 1], [0, 3]]), 9).float()
    measures = reading_score(scores, symbols)[1]
    assert measures == {"characters": (2, 3), "windows": (1, 2)}


@torch.no_grad()
def test_a_projector_begins_as_the_head_of_the_slots():
    network = Network(replace(SMALL, vision_width=32))
    patches = torch.randn(2, 16, 3 * 14 * 14)
    expected = network.window_tokens(network.patch_features(patches))
    network.begin_projector()
    found = network.model.model.project_views(patches, (4, 4))
    similarity = torch.cosine_similarity(found, expected, dim=-1)
    assert similarity.min() > 0.7 and similarity.mean() > 0.9
    # Attention to the patches alone gives the tokens themselves.
    network.projector.projections["1x"].bin_embedding[4] *= 10
    torch.testing.assert_close(network.model.model.project_views(patches, (4, 4)), expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_assembling_keeps_the_tokens():
    network = Network(SMALL)
    patches = torch.randn(2, 16, 3 * 14 * 14)
    expected = network.code_map(network.model.model.project_views(patches, (4, 4)))
    found = assemble(network).eval().model.project_views(patches, (4, 4))
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_run_in_pieces_is_the_run_in_one_piece(tmp_path):
    plan, whole, pieces = Plan(SMALL, (READER,)), tmp_path / "whole", tmp_path / "pieces"
    assert train(plan, whole, Options(workers=0))
    # Time is up at once: one step each time.
    assert [train(plan, pieces, Options(workers=0, stop=Stop(minutes=0.0))) for _ in range(3)] == [False, False, True]
    states = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (whole, pieces)]
    assert states[0]["finished"] == states[1]["finished"] == ["reader"]
    for name, value in states[0]["network"].items():
        assert torch.equal(value, states[1]["network"][name]), name
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    (logged,) = [line for line in lines if "loss" in line]
    assert logged["step"] == 3 and logged["stage"] == "reader" and 0 <= logged["exact"] <= 1
    steps = [json.loads(line) for line in (pieces / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2, 3]


def test_copying_is_measured_by_character(tmp_path, capsys):
    setting = {name: value for name, value in vars(SMALL).items() if name != "levels"}
    phases = [{"name": "reader", "kind": "reader", "steps": 1, "tokens": 300, "views": 1, "questions": 4}]
    (tmp_path / "plan.yaml").write_text(json.dumps({"setting": setting, "phases": phases}))
    plan = load_plan(tmp_path / "plan.yaml")
    assert train(plan, tmp_path, Options(workers=0))
    counted, right, answers = measure_copying(Network(SMALL), plan.phases[0], 12, SEED)
    assert 0 <= right < answers
    pointers = [make_sample(SMALL, plan.phases[0], SEED, index).pointers for index in range(12)]
    assert sum(row[0] for row in counted.values()) == sum(point >= 0 for points in pointers for point in points) > 20
    assert all(
        len(row) == 2 + len(Network(SMALL).heads) and 0 <= min(row[1:]) <= max(row[1:]) <= 1
        for row in counted.values()
    )
    main(["--out", str(tmp_path), "--plan", str(tmp_path / "plan.yaml"), "--phase", "reader", "--pages", "6"])
    printed = capsys.readouterr().out
    assert "| 5 and later |" in printed and "answers are right in every token" in printed


def test_copying_is_measured_on_drawn_pages():
    phase = Phase("frozen", "frozen", 1, 300, views=1, questions=2)
    rows, right, answers = measure_copying(Network(SMALL), phase, 4, SEED)
    assert 0 <= right <= answers > 2 and all(row[0] > 0 for row in rows.values())


def test_characters_are_counted_by_size_of_print(tmp_path, capsys):
    a, b = SYMBOL_OF["a"], SYMBOL_OF["b"]
    symbols = torch.zeros(4, 4, dtype=torch.int64)  # 2 x 2 windows of 2 x 2 slots
    symbols[0, 1], symbols[1, 0], symbols[3, 2] = a, b + symbol_names.BEGINS, a
    named = torch.zeros(4, 4, symbol_names.NUM_SYMBOLS)
    assert count_named(named, symbols, 2) == (0, 3)
    named[0, 1, a], named[1, 1, b], named[3, 2, b] = 0.9, 0.8, 1.0
    assert count_named(named, symbols, 2) == (2, 3)
    named[0, 1, a] = named[0, 3, a] = 0.3  # a line between two halves
    assert count_named(named, symbols, 2) == (2, 3)
    phase = replace(TOWER, named="slots", scribble=1.0, views=2)
    network = Network(SMALL)
    torch.nn.init.zeros_(network.patch_heads["slots"][1].weight)  # names nothing: all are missed
    counts = measure_legibility(network, phase, 6, SEED)
    assert all(named == 0 < characters and is_random for (is_random, *_), (named, characters) in counts.items())
    setting = {name: value for name, value in vars(SMALL).items() if name != "levels"}
    phases = [{"name": "slots", "kind": "tower", "named": "slots", "steps": 1, "tokens": 40, "views": 1, "crops": 2}]
    (tmp_path / "plan.yaml").write_text(json.dumps({"setting": setting, "phases": phases}))
    assert train(load_plan(tmp_path / "plan.yaml"), tmp_path, Options(workers=0))
    main(["--out", str(tmp_path), "--plan", str(tmp_path / "plan.yaml"), "--phase", "slots", "--pages", "4"])
    assert "| text | " in capsys.readouterr().out


def test_a_stage_that_is_run_again_replaces_its_lines(tmp_path):
    log, stage = tmp_path / "all.jsonl", tmp_path / "reader"
    stage.mkdir()
    log.write_text('{"stage": "tower", "step": 9}\n')
    for step in (1, 2):
        (stage / "log.jsonl").write_text(json.dumps({"step": step}) + "\n")
        append_log(stage, "reader", log)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines == [{"stage": "tower", "step": 9}, {"stage": "reader", "step": 2}]


def test_a_phase_leaves_what_it_does_not_train(tmp_path):
    before = Network(SMALL).state_dict()
    assert train(Plan(SMALL, (TOWER,)), tmp_path, Options(workers=0))
    after = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["network"]
    changed = {
        name.split(".")[2 if name.startswith("model.model") else 0]
        for name in before
        if not torch.equal(before[name], after[name])
    }
    assert changed == {"vision_tower", "patch_heads"}
    assert torch.equal(before["patch_heads.slots.1.weight"], after["patch_heads.slots.1.weight"])


def test_the_plan_fits_the_wheel_and_names_every_phase():
    plan = load_plan()
    text = describe_plan(plan)
    assert all(f"| {phase.name} |" in text for phase in plan.phases)
    megabytes = float(text.split("; ")[1].split(" MB")[0])
    assert megabytes <= 20
    assert len({phase.name for phase in plan.phases}) == len(plan.phases)


def test_a_plan_with_the_former_name_of_the_slots_loads(tmp_path):
    (tmp_path / "plan.yaml").write_text("setting: {places: 4}\nphases: []")
    assert load_plan(tmp_path / "plan.yaml").setting.slots == 4


def test_an_unknown_name_in_a_plan_is_refused(tmp_path):
    (tmp_path / "plan.yaml").write_text("setting: {}\nphases: [{name: a, kind: reader, steps: 1, token: 9}]")
    with pytest.raises(ValueError, match="phase a: unknown token"):
        load_plan(tmp_path / "plan.yaml")
    with pytest.raises(ValueError, match="families must be one of all, half, wheel, got 'some'"):
        replace(READER, families="some")


def test_random_characters_carry_no_question():
    assert not make_varied(0, 0, kind=SCRIBBLE, fonts=()).questions


def test_attention_written_out_is_that_of_pytorch():
    network = Network(SMALL)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
        torch.nn.init.normal_(parameter, std=0.2)
    inputs = torch.randn(2, 9, SMALL.width)
    views = torch.randn(2, 3, SMALL.view_size, SMALL.view_size)

    def run():
        text = network.language_model(inputs_embeds=inputs).last_hidden_state
        return text, network.tower(views).last_hidden_state

    fused = run()
    write_out_attention(network.tower, network.language_model)
    for expected, found in zip(fused, run(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_pixels_of_half_precision_train_under_autocast():
    plan = Plan(SMALL, (TOWER, Phase("projector", "vision", 1, 40, views=1)))
    network = Network(SMALL)
    for phase in plan.phases:
        samples = make_samples(SMALL, phase, 0, 0)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(SCORES[phase.kind](network, phase, samples, "cpu").loss)


def test_the_halves_of_the_network_can_be_trained_by_two_runs(tmp_path):
    plan = Plan(SMALL, (TOWER, READER))
    halves = []
    for name in ("tower", "reader"):
        assert train(plan, tmp_path / name, Options(workers=0, only=(name,)))
        export(tmp_path / name, tmp_path / f"{name}.pt")
        halves.append(tmp_path / f"{name}.pt")
    assert train(plan, tmp_path / "both", Options(workers=0, begin=tuple(halves)))  # nothing is left to do
    assert torch.load(tmp_path / "both" / "checkpoint.pt", weights_only=True)["finished"] == ["tower", "reader"]
    network = Network(SMALL, seed=1)
    assert begin_with(network, plan, halves) == ["tower", "reader"]
    vision, language = (torch.load(half, weights_only=True)["network"] for half in halves)
    for name, value in network.state_dict().items():
        half = language if name.startswith(LANGUAGE) else vision if name.startswith(VISION) else None
        assert half is None or torch.equal(value, half[name].to(value.dtype)), name
    with pytest.raises(ValueError, match=r"another plan: .* is \(64,\), not \(32,\)"):
        begin_with(Network(replace(SMALL, vision_width=32)), plan, halves)
