"""From files to batches: what is read, what is refused, what labels and masks say, in which order it comes."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import torch

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
    """From the record to ids and labels, as the published data preparation gives them."""
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


@pytest.mark.parametrize("record, told", [pytest.param(record, told, id=name) for name, record, told in BAD])
def test_bad_records_are_refused(record, told):
    with pytest.raises(BadSample, match=told):
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
    """About every tenth image is enlarged to six slices; the same ones whenever they are asked for."""
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


def test_tars_give_what_the_folder_gives(mixture, data_folder, tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for index in range(3 * shard, 3 * shard + 3):
                record = json.dumps(image_record(index)).encode()
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
    for path, told in [("nowhere.json", "no file"), ("cut.json", "not valid JSON")]:
        with pytest.raises(ValueError, match=told):
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
