"""Sequences of the next built-in model: answers, places, blanks, batches."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

pytest.importorskip("faker", reason="varied documents need the extra synthetic")

from experiments.tiny import symbols as symbol_names
from experiments.tiny.earlier import make_earlier
from experiments.tiny.loader import cut_batches, stream_batches
from experiments.tiny.locations import (
    FOUND_ID,
    LOCATION_ID,
    doubtful_id,
    first_note_id,
    first_slice_id,
    is_quarter,
    location_id,
    location_tokens,
    slice_id,
)
from experiments.tiny.losses import codes_of
from experiments.tiny.network import Network
from experiments.tiny.samples import (
    COMPARED,
    COMPARED_KINDS,
    COMPARED_QUESTIONS,
    IGNORED,
    IMAGE_START,
    Sample,
    Turn,
    _slices,
    collate,
    continued_turns,
    converse,
    draw_document,
    is_compared,
    make_sample,
    pick_questions,
    question_turns,
)
from experiments.tiny.setting import Phase, Setting
from experiments.tiny.symbols import SYMBOL_OF, plan_of, row_stride, run_positions
from experiments.tiny_v1.tokenizer import ASSISTANT_ID, EOS_ID, IMAGE_ID, build_tokenizer, byte_id, encode
from llava_uhd.model.layout import TokenGrid, plan_layout
from llava_uhd.model.slicing import plan_slices
from llava_uhd.synthetic.varied import NOT_THERE, SCRIBBLE, make_varied
from llava_uhd.synthetic.varied.notes import COMPARED_SIGNS, DIGITS, NOTED
from llava_uhd.synthetic.varied.questions import Asked

from .small import READER, SMALL


# A token has no room for all characters of small print.
@pytest.mark.parametrize(("smallest", "most_wrong"), [(13.0, 0.03), (8.5, 0.08)])
def test_pointers_lead_to_the_token_that_holds_the_next_character(smallest, most_wrong):
    setting, phase = Setting(), Phase("reader", "reader", 1, 4000, views=2, print=(smallest, 26.0))
    right = wrong = 0
    for index in range(12):
        sample = make_sample(setting, phase, 1, index)
        tokens = iter(sample.symbols)
        held = {at: next(tokens) for at, token in enumerate(sample.input_ids) if token == IMAGE_ID}
        assert next(tokens, None) is None
        for position, pointer in enumerate(sample.pointers):
            character = sample.input_ids[position + 1] - 6 if pointer >= 0 else 128
            if character < 128:
                # Questions are typed in other cases than what is printed.
                forms = {SYMBOL_OF[form] for form in (chr(character).lower(), chr(character).upper())}
                forms |= {form + symbol_names.BEGINS for form in forms}
                found = not forms.isdisjoint(held[pointer].tolist())
                right, wrong = right + found, wrong + (not found)
    assert right > 100 and wrong < most_wrong * right


@torch.no_grad()
def test_a_character_between_two_slots_is_partly_in_both():
    network = Network(SMALL)
    samples = (make_sample(SMALL, replace(READER, blanks=1.0), 0, index) for index in range(20))
    # A page with text that is no mere mark of small print.
    sample = next(sample for sample in samples if (sample.symbols > symbol_names.SMALL).sum() > 5)
    assert sample.drafts.shape == (symbol_names.DRAFTS, *sample.symbols.shape)
    codes, drafts = codes_of(network, [sample]), sample.drafts
    same = (drafts == drafts[0]).all(dim=0).all(dim=-1)
    assert 0.3 < same.float().mean() < 1
    exact = codes_of(network, [sample], drafts[0])
    torch.testing.assert_close(codes[same], exact[same])
    mean = torch.stack([codes_of(network, [sample], draft) for draft in drafts]).mean(dim=0)
    torch.testing.assert_close(codes, mean)


def test_answers_name_the_quarter_of_a_window_before_its_characters():
    setting, phase = Setting(), Phase("reader", "reader", 1, 4000, views=2)
    notes = first_note_id(setting.query_grid, setting.max_slices)
    named = sliced = 0
    for index in range(3):
        sample = make_sample(setting, phase, 1, index)
        images = [at for at, token in enumerate(sample.input_ids) if token == IMAGE_ID]
        window_of = dict(zip(images, sample.windows.tolist(), strict=True))
        slice_of = dict(zip(images, sample.slices.tolist(), strict=True))
        location, in_slice = None, [setting.max_slices] * 2
        for position, pointer in enumerate(sample.pointers):
            token = sample.input_ids[position + 1] if position + 1 < sample.length else EOS_ID
            if is_quarter(token, setting.query_grid):
                row, column = divmod(token - LOCATION_ID, 2 * setting.query_grid)
                location = row // 2 * setting.query_grid + column // 2
                named += 1
            elif first_slice_id(setting.query_grid) <= token < notes:
                in_slice = list(divmod(token - first_slice_id(setting.query_grid), setting.max_slices))
                assert is_quarter(sample.input_ids[position + 2], setting.query_grid)
                sliced += 1
            elif token == EOS_ID:
                in_slice = [setting.max_slices] * 2
            if pointer >= 0 and sample.labels[position + 1] != IGNORED:
                assert slice_of[pointer] == (in_slice if sample.grid[0] else [setting.max_slices] * 2)
                # The digits of a note can be printed in windows before that of its place, which is the last one.
                assert window_of[pointer] == location or token >= first_slice_id(setting.query_grid)
    assert named > 30 and named / 2 > sliced > 3


def test_a_token_is_of_the_slice_at_its_place_in_the_raster():
    columns, rows, grid = 3, 2, 4
    plan = plan_slices(48 * columns, 48 * rows, max_slices=6, view_size=48, patch_size=12, pad_to_grid=True)
    order = torch.tensor(plan_layout(plan, TokenGrid(query_grid=grid), "stitched").order)
    assert plan.grid == (columns, rows)
    found = _slices(order // grid**2, plan, 6)
    raster = [[row // grid, column // grid] for row in range(rows * grid) for column in range(columns * grid)]
    assert found[: len(raster)].tolist() == raster
    assert len(found) == len(raster) + grid**2 and set(found[len(raster) :].flatten().tolist()) == {6}
    # The same, counted from positions, at which each row of the raster ends with a separator.
    for number, (row, column) in enumerate(raster):
        position = number + number // (columns * grid)
        assert slice_id(position, columns * grid + 1, grid, 6) == first_slice_id(grid) + 6 * row + column


def test_an_answer_begins_with_the_place_of_what_it_is_found_by():
    setting = Setting()
    document = make_varied("keys", 0, kind="receipt", shown=2 * setting.view_size**2, fonts=())
    asked = next(each for each in document.questions if each.ability == "price")
    (key,), (source,) = asked.keys, asked.sources
    turn = Turn(asked.text, asked.answer, (source,), keys=(key,))
    plan = plan_of(document, setting, 2)
    ids, _, pointers = converse(document, plan, setting, [turn])
    all_positions = run_positions(document, plan, setting)
    positions_of = {run: all_positions[document.sheet.texts.index(run)].tolist() for run in (key, source)}
    first_two = [positions_of[key][-1], positions_of[source][0]]
    stride, start = row_stride(plan, setting), ids.index(ASSISTANT_ID)
    named, looked_at = [], []
    in_slice = None
    for position, quarter in first_two:
        quarter_id = location_id(position, quarter, stride, setting.query_grid)
        its_slice = slice_id(position, stride, setting.query_grid, setting.max_slices)
        named += [quarter_id] if its_slice == in_slice else [its_slice, quarter_id]
        looked_at += [IMAGE_START + position] * (len(named) - len(looked_at))
        in_slice = its_slice
    assert plan.grid is not None and ids[start + 1 : start + 2 + len(named)] == [FOUND_ID, *named]
    assert named[1] != named[-1] and pointers[start : start + 1 + len(named)] == [-1, *looked_at]
    # The letters of the name, from its second on, are looked for in the question.
    begin = start - len(asked.text) + asked.text.lower().index(key.text.lower())
    visible = iter(positions_of[key])
    printed = [IMAGE_START + next(visible)[0] if character != " " else -1 for character in key.text]
    assert pointers[begin : begin + len(printed) - 1] == printed[1:]
    assert all(pointer == -1 for pointer in [*pointers[:begin], *pointers[begin + len(printed) - 1 : start]])


def test_numbers_are_noted_behind_their_places_before_they_are_compared():
    setting = Setting()
    document = make_varied("notes", 0, kind="receipt", shown=2 * setting.view_size**2, fonts=())
    asked = next(each for each in document.questions if each.ability == "extreme" and each.notes)
    plan = plan_of(document, setting, 2)
    turn = Turn(asked.text, asked.answer, asked.sources, keys=asked.keys, notes=asked.notes)
    ids, labels, pointers = converse(document, plan, setting, [turn])
    positions = dict(zip(map(id, document.sheet.texts), run_positions(document, plan, setting), strict=True))
    first = first_note_id(setting.query_grid, setting.max_slices)
    stride, noted = row_stride(plan, setting), []
    rows = [(key, note) for key, note in zip(asked.keys, asked.notes, strict=True) if note]
    for at, token in enumerate(ids):
        if token >= first and ids[at - 1] < first:
            key, note = rows[len(noted)]
            signs = ids[at : at + len(note)]
            position, quarter = positions[id(key)][-1]
            assert ids[at - 1] == location_id(position, quarter, stride, setting.query_grid)
            noted.append("".join(NOTED[sign - first] for sign in signs))
            if len(note) < COMPARED_SIGNS:
                continue
            # Each digit is looked for in the window where it is printed.
            digits = [IMAGE_START + place for place in positions[id(key)][:, 0]]
            looked_at = pointers[at - 1 : at - 1 + COMPARED_SIGNS]
            assert set(looked_at[3:-1:3]) <= set(digits) and looked_at.count(-1) == COMPARED_SIGNS - DIGITS
    assert len(noted) > 4 and noted == [note for _, note in rows]
    assert all(label in (IGNORED, token) for label, token in zip(labels, ids, strict=True))


def test_questions_of_the_first_generator_have_the_text_on_their_line():
    document = make_earlier(3, 1)  # a table
    of_cells = [question for question in document.questions if " of " in question.text and question.sources]
    assert len(of_cells) > 3
    for question in of_cells:
        (source,), keys = question.sources, question.keys
        assert keys[0].text in question.text and keys[0].baseline == source.baseline and keys[0].x < source.x
        heading = keys[1]
        assert heading.text.lower() in question.text.lower() and heading.baseline < source.baseline


def test_bars_of_the_first_generator_are_found_by_their_names():
    charts = 0
    for index in range(40):
        document = make_earlier(5, index)
        charts += document.kind == "chart"
        numbers = {}
        for question in document.questions if document.kind == "chart" else ():
            if question.keys and question.text.startswith(("What is the value", "Value of")):
                assert question.keys[0].text in question.text
                numbers[question.keys[0].text] = float(question.answer.rstrip("%"))
        for question in document.questions if document.kind == "chart" else ():
            if question.text.startswith("Which"):
                best = max if question.text.endswith(("highest?", "longest?")) else min
                names, values, leaders = (question.keys[place::3] for place in range(3))
                shown = {key.text: float(value.text.rstrip("%")) for key, value in zip(names, values, strict=True)}
                assert numbers.items() <= shown.items() and len(shown) == len(names) > 2
                assert leaders[-1].text == question.answer == best(shown, key=lambda name: shown[name])
                assert set(leaders) <= set(names) and question.notes[2::3] == ("+",) * (len(names) - 1) + ("-",)
    assert charts > 5


def test_location_tokens_are_of_the_vocabulary_and_not_of_the_text():
    tokenizer = build_tokenizer(location_tokens(4, 3))
    position = 6 * 9 + 5  # row 6, column 5 of a raster of two slices side by side, whose rows end with a separator
    token, its_slice = location_id(position, 3, 9, 4), slice_id(position, 9, 4, 3)
    assert tokenizer.convert_ids_to_tokens([FOUND_ID, its_slice, token]) == [
        "<|found|>",
        "<|slice 1,1|>",
        "<|2.5,1.5|>",
    ]
    note = first_note_id(4, 3)
    assert tokenizer.convert_ids_to_tokens([note, note + len(NOTED) - 1]) == ["<|note 0|>", "<|note -|>"]
    assert doubtful_id(4, 3) == note + len(NOTED) == len(tokenizer) - 1
    assert (
        tokenizer.decode([FOUND_ID, its_slice, note, *encode("4"), token, *encode("2")], skip_special_tokens=True)
        == "42"
    )


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
        # Bytes and places.
        answered += sum(label >= 6 and label not in (byte_id(" "), FOUND_ID) for label in sample.labels)
        following = zip(sample.pointers, sample.labels[1:], strict=False)
        pointed += sum(pointer >= 0 and label != IGNORED for pointer, label in following)
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
    hidden, attention, before, _ = network.hidden_states(ids, codes, torch.tensor([[-1] * 6 + [3, -1]]), gap)
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
    first = [label for label in asked[: asked.index(EOS_ID)] if label < FOUND_ID]
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


def test_random_characters_carry_no_question():
    assert not make_varied(0, 0, kind=SCRIBBLE, fonts=()).questions


@torch.no_grad()
def test_scores_of_slices_come_page_by_page():
    network = Network(SMALL)
    for layer in network.language_model.layers:
        layer.self_attn.o_proj.weight.normal_(std=0.1)
    samples = [make_sample(SMALL, READER, 0, index) for index in (1, 2)]
    assert samples[0].length != samples[1].length  # so that one of them is padded

    def scores(batch):
        ids, _, pointers, positions = collate(batch)
        return network.hidden_states(ids, codes_of(network, batch), pointers, positions).slices

    together, apart = scores(samples), torch.cat([scores([sample]) for sample in samples])
    assert together.shape == (sum(len(sample.slices) for sample in samples), 2, SMALL.max_slices + 1)
    assert torch.allclose(together, apart, atol=1e-4)


def test_questions_of_all_abilities_are_picked_in_turn():
    questions = [Asked(str(number), "", "cell") for number in range(40)]
    questions += [Asked("title", "", "title"), Asked("total", "", "total")]
    for seed in range(20):
        picked = pick_questions(questions, random.Random(seed), 4)
        assert Counter(asked.ability for asked in picked) == {"cell": 2, "title": 1, "total": 1}
        assert len(pick_questions(questions, random.Random(seed), 99)) == len({asked.text for asked in questions})


def test_pages_of_the_first_generator_are_asked_for_what_is_not_there():
    absent = 0
    for index in range(20):
        document = make_earlier("absent", index)
        *others, last = document.questions
        assert make_earlier("absent", index).questions == document.questions
        assert all(asked.sources for asked in others)
        if last.answer == NOT_THERE:
            absent += 1
            printed = {word.lower() for text in document.sheet.texts for word in text.text.rstrip(":").split()}
            named = {word.strip("?.").lower() for word in last.text.split()}
            assert not last.sources and named - printed
    assert absent >= 15


def test_some_pages_are_rows_to_compare_given_as_codes():
    phase = Phase("rows", "joint", 1, 400, compared=0.5, questions=16, earlier=0.3)
    compared = [index for index in range(30) if is_compared(phase, 0, index)]
    assert 8 < len(compared) < 22
    kinds = []
    for index in range(30):
        document, sample = draw_document(Setting(), phase, 0, index), make_sample(Setting(), phase, 0, index)
        if index in compared:
            kinds.append(document.kind)
            assert sample.patches is None
            assert 0 < sample.input_ids.count(ASSISTANT_ID) <= COMPARED_QUESTIONS + 1  # the page is read out, too
        else:
            assert sample.patches is not None
    assert set(kinds) <= {*COMPARED_KINDS, "chart"} and 0 < kinds.count("chart") < len(compared)


@pytest.mark.parametrize(("rendered", "symbols"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.0)])
def test_rows_to_compare_are_drawn_or_given_as_codes_apart_from_other_pages(rendered, symbols):
    phase = Phase("rows", "joint", 1, 400, compared=0.6, rendered=rendered, symbols=symbols, questions=4, views=4)
    setting, drawn = Setting(), {True: [], False: []}
    for index in range(12):
        drawn[is_compared(phase, 0, index)].append(make_sample(setting, phase, 0, index).patches is not None)
    assert len(drawn[True]) > 3 and len(drawn[False]) > 2
    assert set(drawn[True]) == ({False, True} if rendered == 0.5 else {rendered == 1})
    assert set(drawn[False]) == {symbols == 0}


def test_of_codes_is_not_asked_what_shapes_alone_tell():
    drawn = coded = 0
    for index in range(20):
        document = make_varied("shapes", index, kind="bars", fonts=())
        of_number = {asked.text: asked for asked in document.questions}
        texts = [
            {turn.text for turn in question_turns(document, random.Random(0), 99, is_coded, COMPARED)}
            for is_coded in (False, True)
        ]
        assert all(of_number[text].ability in COMPARED for text in texts[0] if text in of_number)
        drawn, coded = drawn + len(texts[0]), coded + len(texts[1])
        # Bars without printed values have a largest one, which their code does not tell.
        printed = bool(document.sheet.facts[-1].columns)
        missing = [of_number[text] for text in texts[0] - texts[1] if text in of_number]
        assert all(asked.ability in ("extreme", "yes/no") and not asked.notes for asked in missing)
        assert not printed or all(asked.ability != "extreme" for asked in missing)
        kept = [of_number[text] for text in texts[1] if text in of_number]
        assert all(asked.notes for asked in kept if asked.ability == "yes/no" and len(asked.sources) > 1)
    assert 0 < coded < drawn
