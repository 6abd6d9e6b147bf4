"""Training data from files to batches: reading, rejection, labels, masks and order."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from time import process_time

import pytest
import torch
from PIL import Image

from experiments.tiny_v1.tokenizer import CHAT_TEMPLATE
from llava_uhd import built_in
from llava_uhd.model.chat_templates import TINY
from llava_uhd.synthetic import make_document
from llava_uhd.synthetic.charts import COMPARISONS
from llava_uhd.training.data.check import check_source
from llava_uhd.training.data.collation import Collator
from llava_uhd.training.data.conversations import BadSample, read_conversation
from llava_uhd.training.data.encoding import Encoder
from llava_uhd.training.data.mixture import Mixture
from llava_uhd.training.data.order import EpochOrder, epoch_order
from llava_uhd.training.data.sources import JsonSamples, TarSamples
from llava_uhd.training.data.synthetic import write_documents
from llava_uhd.training.labels import IGNORE
from llava_uhd.training.recipe import DataRecipe, Source
from tests.conversations import (
    CASES,
    IMAGE,
    PLACEHOLDER,
    llama_tokenizer,
    one_token_processor,
)
from tests.conversations import qwen_tokenizer as qwen_golden_tokenizer
from tests.training.conftest import image_record, text_record


@pytest.fixture(scope="module")
def processor(model_folder):
    from llava_uhd.loading import load_processor

    return load_processor(str(model_folder))


@pytest.fixture
def mixture(processor, data_folder):
    def make(*sources, fatal=False, report=None, **data):
        sources = sources or (Source(str(data_folder / "train.json"), str(data_folder)),)
        return Mixture(sources, Encoder(processor, DataRecipe(**data)), seed=0, fatal=fatal, report=report)

    return make


PUBLISHED = [
    pytest.param(case, template, legacy, case[name], id=f"{template}-{legacy}-{case['name']}")
    for template, published, legacies in (
        ("vicuna", "dec24_v1_legacy", (0, 1)),
        ("plain", "dec24_plain_legacy", (0, 1)),
    )
    for legacy in legacies
    for case in CASES
    if (name := f"{published}{bool(legacy)}") in case
] + [
    pytest.param(case, "qwen", None, case["apr25_qwen_1_5"], id=f"qwen-{case['name']}")
    for case in CASES
    if "apr25_qwen_1_5" in case
]


@pytest.mark.parametrize("case, template, legacy, golden", PUBLISHED)
def test_labels_of_the_published_conversations(case, template, legacy, golden):
    """Encode the record to ids and labels, as the published data preparation gives them."""
    tokenizer = qwen_golden_tokenizer() if template == "qwen" else llama_tokenizer(legacy=bool(legacy))
    processor = one_token_processor(tokenizer, template)
    encoder = Encoder(processor, DataRecipe(template=template, labels="published"))
    record = {"conversations": case["conversation"], "image": ["x.png"] if case["has_image"] else []}
    conversation = read_conversation(record)
    encoded = encoder(conversation, [IMAGE] * len(conversation.images), "0")
    ids = [PLACEHOLDER if token == processor.image_token_id else token for token in encoded.input_ids.tolist()]
    assert ids == golden["input_ids"] and encoded.labels.tolist() == golden["labels"]


def test_the_built_in_model_has_the_template_of_the_package():
    saved = Path(built_in("tiny"), "chat_template.jinja").read_text(encoding="utf-8")
    assert saved == TINY == CHAT_TEMPLATE


BAD = [
    ("no object", 7, "no list of conversations"),
    ("no turns", {"id": 1}, "no list of conversations"),
    ("no answer", {"conversations": [{"from": "human", "value": "Hi"}]}, "no answer"),
    ("odd speaker", {"conversations": [{"from": "dog", "value": "Wau"}]}, "'dog'"),
    ("no text", {"conversations": [{"from": "human"}]}, "turn 0 has no text"),
    ("image without a placeholder", text_record(1) | {"image": "a.png"}, "0 <image> placeholders, but it has 1"),
    ("placeholder without an image", image_record(1, image=[]), "1 <image> placeholders, but it has 0"),
    ("images of another kind", image_record(1, image=3), "must be a name"),
    (
        "twice the same side",
        {"conversations": [{"from": side, "value": "x"} for side in ("human", "gpt", "gpt")]},
        "from one side",
    ),
]


@pytest.mark.parametrize("record, message", [pytest.param(record, message, id=name) for name, record, message in BAD])
def test_bad_records_are_refused(record, message):
    with pytest.raises(BadSample, match=message):
        read_conversation(record)


def test_turns_before_the_first_question_are_dropped():
    record = {"conversations": [{"from": "gpt", "value": "Hello"}, *text_record(1)["conversations"]]}
    assert [message["role"] for message in read_conversation(record).messages] == ["user", "assistant"]


def test_bad_samples_are_reported_with_their_index(mixture, data_folder, tmp_path, caplog):
    lines = [json.dumps(image_record(0)), "{not json", json.dumps(image_record(1, image="missing.png"))]
    lines += [json.dumps(image_record(2, image="cut.png")), json.dumps(text_record(0))]
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    for index in range(2):
        content = (data_folder / f"{index}.png").read_bytes()
        (tmp_path / f"{index}.png").write_bytes(content)
    (tmp_path / "cut.png").write_bytes(content[:300])
    source = Source(str(tmp_path / "bad.jsonl"), str(tmp_path))
    samples = mixture(source, report=tmp_path / "left-out.jsonl")
    taken = [samples[index] is not None for index in range(len(samples))]
    assert taken == [True, False, False, False, True]
    reports = [json.loads(line) for line in (tmp_path / "left-out.jsonl").read_text().splitlines()]
    assert [report["index"] for report in reports] == [1, 2, 3]
    assert "missing.png" in reports[1]["reason"] and "cut.png" in reports[2]["reason"]
    assert "sample 1" in caplog.text
    with pytest.raises(ValueError, match="sample 2: there is no file .*missing.png"):
        mixture(source, fatal=True)[2]


def test_long_samples_are_cut_behind_their_images(mixture, processor):
    whole = mixture(max_length=400)[1]
    cut = mixture(max_length=len(whole.input_ids) - 3)[1]
    assert torch.equal(cut.input_ids, whole.input_ids[:-3]) and torch.equal(cut.labels, whole.labels[:-3])
    with pytest.raises(ValueError, match="image tokens beyond the longest sequence of 20"):
        mixture(max_length=20, fatal=True)[1]


def test_slices_are_the_recipes(mixture, processor):
    one, all_ = mixture(max_slices=1)[0], mixture()[0]
    assert one.images["num_views"].tolist() == [1] and all_.images["num_views"].tolist() == [5]
    assert int((one.input_ids == processor.image_token_id).sum()) == 9


def test_varied_sizes(mixture):
    """Every tenth image or so is enlarged to six slices; the same ones whenever they are asked for."""
    samples = mixture(vary_images=True)
    again = mixture(vary_images=True)
    views = [samples[index].images["num_views"].tolist() for index in range(12)]
    assert views == [again[index].images["num_views"].tolist() for index in range(12)]
    encoder = samples.encoder
    conversation = read_conversation(image_record(2))
    image = samples.sources[0].image(2, "2.png")
    counts = Counter(encoder(conversation, [image], str(seed)).images["num_views"].item() for seed in range(100))
    assert 3 <= sum(count for views, count in counts.items() if views > 1) <= 20
    named = read_conversation(image_record(2, image="textvqa/2.png"))
    assert encoder(named, [image], "0").images["num_views"].item() > 1


def test_weights(mixture, data_folder):
    path = str(data_folder / "train.json")
    samples = mixture(Source(path, str(data_folder), weight=2.5), Source(path, str(data_folder), weight=0.5))
    assert len(samples) == 2 * 18 + 9 + 9
    assert Counter(place for place in samples.places if place[0] == 0).most_common(1)[0][1] == 3
    assert samples.has_images.count(False) >= 10


@pytest.mark.parametrize("key", ["image", "images"])
def test_tars_give_what_the_folder_gives(mixture, data_folder, tmp_path, key):
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for index in range(3 * shard, 3 * shard + 3):
                fields = image_record(index)
                if key == "images" and "image" in fields:
                    fields["images"] = [fields.pop("image")]
                record = json.dumps(fields).encode()
                image = (data_folder / f"{index % 4}.png").read_bytes()
                for suffix, content in (("json", record), ("png", image)):
                    member = tarfile.TarInfo(f"set/{index:04}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    tars, files = mixture(Source(str(tmp_path))), mixture()
    assert len(tars) == 6
    for index in range(6):
        assert torch.equal(tars[index].input_ids, files[index].input_ids)
        assert torch.equal(tars[index].images["pixel_values"], files[index].images["pixel_values"])
    (tmp_path / "cut.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:700])
    with pytest.raises(ValueError, match="cut.tar"):
        TarSamples(str(tmp_path / "cut.tar"))


def test_broken_sources(tmp_path):
    (tmp_path / "cut.json").write_text('[{"id": 1}')
    for path, message in [("nowhere.json", "no file"), ("cut.json", "not valid JSON")]:
        with pytest.raises(ValueError, match=message):
            JsonSamples(str(tmp_path / path))


def test_order_is_whole_grouped_and_the_same_for_any_number_of_devices():
    rng = torch.Generator().manual_seed(0)
    lengths = torch.randint(10, 900, (103,), generator=rng).tolist()
    images = [index % 3 > 0 for index in range(103)]
    order = epoch_order(lengths, images, 8, seed=1, epoch=0, by_modality=True)
    assert len(order) == 104 and set(order) == set(range(103))
    batches = [order[start : start + 8] for start in range(0, 104, 8)]
    mixed = [batch for batch in batches if len({images[index] for index in batch}) > 1]
    assert len(mixed) <= 2
    assert all(lengths[a] >= lengths[b] for batch in batches for a, b in zip(batch, batch[1:], strict=False))
    assert order == epoch_order(lengths, images, 8, 1, 0, True) != epoch_order(lengths, images, 8, 1, 1, True)
    sampler = EpochOrder(lengths, images, 8, 1)
    assert list(sampler) == order and sampler.steps == 13
    sampler.set_epoch(1)
    assert list(sampler) != order


def test_padded_and_packed_batches(mixture):
    samples = [mixture()[index] for index in (0, 13, 1)]
    padded, packed = Collator(421)(samples), Collator(421, pack=True)(samples)
    lengths = [len(sample.input_ids) for sample in samples]
    assert padded["input_ids"].shape == (3, max(lengths)) and padded["attention_mask"].sum(dim=1).tolist() == lengths
    assert (padded["labels"][padded["attention_mask"] == 0] == IGNORE).all()
    assert packed["input_ids"].shape == (1, sum(lengths)) and packed["position_ids"].eq(0).sum() == 3
    assert torch.equal(padded["pixel_values"], packed["pixel_values"]) and len(padded["num_views"]) == 2
    empty = Collator(421)([None, None])
    assert (empty["labels"] == IGNORE).all() and "pixel_values" not in empty


def test_packed_samples_do_not_see_each_other(mixture, model_folder):
    """Loss and gradients of a packed batch are those of the padded one."""
    from llava_uhd import LlavaUhdForConditionalGeneration
    from llava_uhd.training.loss import use_training_forward

    samples = [mixture()[index] for index in (0, 13, 12, 3)]
    results = []
    for pack in (False, True):
        model = LlavaUhdForConditionalGeneration.from_pretrained(model_folder)
        use_training_forward(model, 64)
        loss = model(**Collator(421, pack)(samples)).loss
        loss.backward()
        results.append((loss, model.model.multi_modal_projector.proj.grad, model.lm_head.weight.grad))
    for padded, packed in zip(*results, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-6)


def test_check(processor, data_folder, tmp_path, mixture):
    records = json.loads((data_folder / "train.json").read_text())
    records[3]["image"] = "gone.png"
    (data_folder / "checked.json").write_text(json.dumps(records))
    source = Source(str(data_folder / "checked.json"), str(data_folder))
    report = check_source(source, processor, manifest=tmp_path / "manifest.jsonl")
    assert (report.samples, report.broken, report.text_only, report.multi_image) == (18, 1, 5, 1)
    assert report.problems[0]["index"] == 3 and "gone.png" in report.problems[0]["reason"]
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert len(lines) == 18 and lines[0]["images"][0]["size"] == [120, 80] and lines[0]["sha256"] != lines[1]["sha256"]
    samples = mixture(Source(source.path, source.images, manifest=str(tmp_path / "manifest.jsonl")))
    assert samples.lengths[0] == lines[0]["num_tokens"]
    # All but the template's own tokens are counted.
    assert 0 <= len(samples[0].input_ids) - lines[0]["num_tokens"] < 80
    with pytest.raises(ValueError, match="no manifest"):
        mixture(Source(source.path, source.images, manifest="none.jsonl"))


def test_synthetic_documents_are_llava_data(tmp_path, processor):
    write_documents(tmp_path, 3, seed=5)
    for name, pages in (("captions", "overviews"), ("questions", "images")):
        report = check_source(Source(str(tmp_path / f"{name}.jsonl"), str(tmp_path / pages)), processor)
        assert (report.samples, report.broken, report.images) == (3, 0, 3)


def test_an_answer_cannot_be_told_from_those_before_it(tmp_path):
    write_documents(tmp_path, 24, seed=5, kinds=("chart", "table"))
    records = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    asked = [[turn["value"].removeprefix("<image>") for turn in record["conversations"]] for record in records]
    documents = [make_document(5, index, kind=("chart", "table")[index % 2]) for index in range(24)]
    in_page_order = compared_first = comparing = 0
    for said, document in zip(asked, documents, strict=True):
        right = [(question.text, question.answer) for question in (*document.questions, *document.hints)]
        turns = list(zip(said[::2], said[1::2], strict=True))
        assert sorted(turns) == sorted(right)
        in_page_order += turns == right and len(turns) > 3
        comparisons = [question in COMPARISONS for question, _ in turns]
        if any(comparisons):
            comparing += 1
            compared_first += all(comparisons[: sum(comparisons)])
    assert in_page_order == 0 and comparing > 8 and comparing / 2 < compared_first < comparing


def test_every_damage_of_a_tar_is_named(tmp_path, data_folder):
    """A flipped bit in any header, a cut at any block and a second tar behind the first: never fewer samples."""
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w") as tar:
        for index in range(6):
            for suffix, content in (("json", json.dumps(image_record(index)).encode()), ("png", b"p" * 700)):
                member = tarfile.TarInfo(f"{index:04}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    content = file.read_bytes()
    assert len(TarSamples(str(file))) == 6
    headers = [member.offset for member in tarfile.open(file)]
    damaged = [content[: headers[5] + 100], content[: headers[5] + 700], content + content]
    for header in headers:
        for place in (0, 3, 130, 150, 257):
            flipped = bytearray(content)
            flipped[header + place] ^= 1
            damaged.append(bytes(flipped))
    for number, data in enumerate(damaged):
        file.write_bytes(data)
        with pytest.raises(ValueError, match="a.tar is not a whole tar"):
            print(number, len(TarSamples(str(file))))


def test_a_missing_shard_and_a_missing_end_are_logged(tmp_path, caplog):
    for number in (0, 1, 3, 4):
        with tarfile.open(tmp_path / f"train-{number:03}.tar", "w") as tar:
            member = tarfile.TarInfo("a.json")
            member.size = 2
            tar.addfile(member, io.BytesIO(b"{}"))
    assert len(TarSamples(str(tmp_path))) == 4 and "train-2" in caplog.text
    content = (tmp_path / "train-000.tar").read_bytes()[:1024]
    (tmp_path / "b.tar").write_bytes(content)
    assert len(TarSamples(str(tmp_path / "b.tar"))) == 1 and "without the mark of its end" in caplog.text


ENCODINGS = [("utf-8-sig", "a byte order mark"), ("utf-16", "as PowerShell writes"), ("utf-16-be", "big-endian")]


@pytest.mark.parametrize("encoding", [encoding for encoding, _ in ENCODINGS])
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_encodings_and_line_ends_of_windows(tmp_path, data_folder, encoding, form):
    records = [image_record(0, image="sub\\0.png"), text_record(1)]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "0.png").write_bytes((data_folder / "0.png").read_bytes())
    text = json.dumps(records) if form == "json" else "\r\n".join(map(json.dumps, records)) + "\r\n"
    byte_order_mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / f"a.{form}").write_bytes((byte_order_mark + text).encode(encoding))
    report = check_source(Source(str(tmp_path / f"a.{form}"), str(tmp_path)))
    assert (report.samples, report.broken, report.images) == (2, 0, 1)


def test_samples_that_stop_nothing(tmp_path, processor):
    """Half characters, deep nesting, turns of another type: one sample left out each, by name."""
    lone = [{"from": "human", "value": "cut \ud83e"}, {"from": "gpt", "value": "yes"}]
    samples = [
        (json.dumps({"conversations": lone}), "half a character"),
        (json.dumps(image_record(0, image="\ud83e.png")), "half a character"),
        (json.dumps(image_record(0, image="a\0.png")), "name of its image"),
        (json.dumps(image_record(0, image="")), "name of its image"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        (json.dumps({"conversations": [{"from": ["human"], "value": "x"}]}), "turn 0 is from"),
        (json.dumps({"conversations": [["human", "x"]]}), "turn 0 has no text"),
        (json.dumps({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}), "neither text nor an image"),
        (json.dumps({"question": 3, "answer": "x"}), "question must be text"),
        (json.dumps({"question": "x", "answer": True}), "answer text or a number"),
        (json.dumps(image_record(0, image="narrow.png")), "too narrow"),
    ]
    Image.new("L", (1, 200_000)).save(tmp_path / "narrow.png")
    (tmp_path / "odd.jsonl").write_text("\n".join(line for line, _ in samples) + "\n" + json.dumps(text_record(1)))
    source = Source(str(tmp_path / "odd.jsonl"), str(tmp_path))
    report = check_source(source, processor, manifest=tmp_path / "manifest.jsonl")
    assert report.broken == len(samples) and report.samples == len(samples) + 1
    for problem, (_, message) in zip(report.problems, samples, strict=True):
        assert message in problem["reason"]
        problem["reason"].encode()
    mixture = Mixture((source,), Encoder(processor, DataRecipe()), 0, report=tmp_path / "left-out.jsonl")
    assert [mixture[index] is None for index in range(len(mixture))] == [True] * len(samples) + [False]


@pytest.mark.parametrize("record", [{"answer": 3}, {"answers": [3, 4]}])
def test_a_number_is_an_answer(record):
    conversation = read_conversation({"question": "How many?"} | record)
    assert conversation.messages[-1]["content"] == "3"


def test_answers_hold_no_image(processor):
    turns = [{"from": "human", "value": "draw"}, {"from": "gpt", "value": "here: <image>"}]
    with pytest.raises(BadSample, match="turn 1 is an answer and holds <image>"):
        read_conversation({"image": "a.png", "conversations": turns})
    assert read_conversation(text_record(1) | {"image": None}).images == []


def test_a_conversation_of_many_turns_takes_linear_time(processor):
    from time import process_time

    seconds = []
    for turns in (1000, 8000):
        said = [{"from": ("human", "gpt")[place % 2], "value": f"hello {place}"} for place in range(turns)]
        encoder = Encoder(processor, DataRecipe(max_length=400))
        start = process_time()
        encoder(read_conversation({"conversations": said}), [], "0")
        seconds.append(process_time() - start)
    assert seconds[1] < 30 * max(seconds[0], 0.05)


def test_one_object_over_several_lines_is_refused(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"data": [1, 2]}, indent=1))
    with pytest.raises(ValueError, match="one JSON object per line|one object per line"):
        JsonSamples(str(tmp_path / "a.json"))


def test_very_many_turns_take_no_quadratic_time(processor):
    """Turns beyond the longest sequence are not rendered; what is within it is the same."""
    turns = [{"from": ("human", "gpt")[turn % 2], "value": f"turn {turn}"} for turn in range(20_000)]
    conversation = read_conversation({"conversations": turns})
    encoder = Encoder(processor, DataRecipe(template="vicuna", max_length=200))
    started = process_time()
    encoded = encoder(conversation, [], "0")
    assert process_time() - started < 2
    few = encoder(read_conversation({"conversations": turns[:400]}), [], "0")
    assert torch.equal(encoded.input_ids, few.input_ids) and torch.equal(encoded.labels, few.labels)
    turns[300]["value"] += "<image>"
    with pytest.raises(BadSample, match="20000 turns and an image in turn 300, beyond the longest sequence of 200"):
        encoder(read_conversation({"conversations": turns, "image": "x.png"}), [None], "0")
