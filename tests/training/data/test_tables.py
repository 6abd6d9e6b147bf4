"""Parquet files and saved datasets as training data: the samples are those of the JSON they were made of."""

import json
import math

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from llava_uhd.training.data.check import check_source
from llava_uhd.training.data.encoding import Encoder
from llava_uhd.training.data.mixture import Mixture
from llava_uhd.training.data.sources import open_source
from llava_uhd.training.recipe import DataRecipe, Source
from tests.training.conftest import image_record


@pytest.fixture(scope="module")
def processor(model_folder):
    from llava_uhd.loading import load_processor

    return load_processor(str(model_folder))


def encoded(processor, source):
    samples = Mixture((source,), Encoder(processor, DataRecipe(max_length=400)), seed=0)
    return [samples[index] for index in range(len(samples))]


def same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.labels, other.labels)
        assert one.images.keys() == other.images.keys()
        assert all(torch.equal(value, other.images[name]) for name, value in one.images.items())


@pytest.fixture(scope="module")
def records(data_folder):
    return json.loads((data_folder / "train.json").read_text())


@pytest.fixture(scope="module")
def expected(processor, data_folder):
    return encoded(processor, Source(str(data_folder / "train.json"), str(data_folder)))


def rows(records, data_folder, form):
    """The records as rows with the bytes of their images, in the columns of a form."""
    made = []
    for record in records:
        names = record.get("image", [])
        names = [names] if isinstance(names, str) else names
        images = [{"bytes": (data_folder / name).read_bytes(), "path": name} for name in names]
        turns = record["conversations"]
        roles = {"human": "user", "gpt": "assistant"}
        if form == "conversations":
            said = turns
        elif form == "messages":
            said = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in turns]
        else:  # parts of text and images
            said = []
            for turn in turns:
                texts = turn["value"].removeprefix("<image>\n").split("<image>")
                image = [{"type": "image", "text": None}] if turn["value"].startswith("<image>\n") else []
                parts = [{"type": "text", "text": "<image>".join(texts)}]
                said.append({"role": roles[turn["from"]], "content": image + parts})
        made.append({"images": images, "messages" if form == "parts" else form: said})
    return made


@pytest.mark.parametrize("form", ["conversations", "messages", "parts"])
def test_parquet_gives_what_json_gives(processor, records, expected, data_folder, tmp_path, form):
    table = rows(records[:12] if form == "parts" else records, data_folder, form)
    half = len(table) // 2
    for number, part in enumerate((table[:half], table[half:])):
        parquet.write_table(pa.Table.from_pylist(part), tmp_path / f"train-{number}-of-2.parquet", row_group_size=4)
    for path in (tmp_path, tmp_path / "*.parquet"):
        found = encoded(processor, Source(str(path)))
        same(found, expected[: len(found)])
    report = check_source(Source(str(tmp_path)), processor)
    assert (report.samples, report.broken) == (len(table), 0)


def test_saved_dataset_with_an_image_feature(processor, records, expected, data_folder, tmp_path):
    table = rows(records, data_folder, "conversations")
    made = datasets.Dataset.from_list(table)
    made = made.cast_column("images", datasets.List(datasets.Image()))
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(str(tmp_path / "saved"))
    same(encoded(processor, Source(str(tmp_path / "saved"))), expected)
    assert len(open_source(Source(str(tmp_path / "saved"), split="test"))) == 1
    with pytest.raises(ValueError, match="no split 'dev'; it has train, test"):
        open_source(Source(str(tmp_path / "saved"), split="dev"))


def test_a_folder_of_parquet_files_has_the_splits_of_its_files(records, data_folder, tmp_path):
    table = rows(records, data_folder, "messages")
    for number, name in enumerate(("train-00000-of-00001", "test-00000-of-00001", "testdev-00000-of-00001"), start=1):
        parquet.write_table(pa.Table.from_pylist(table[:number]), tmp_path / f"{name}.parquet")
    assert [len(open_source(Source(str(tmp_path), split=name))) for name in ("train", "test", "testdev")] == [1, 2, 3]
    with pytest.raises(ValueError, match="no split 'validation'; it has test, testdev, train"):
        open_source(Source(str(tmp_path), split="validation"))
    (tmp_path / "parts").mkdir()
    for number in range(2):
        parquet.write_table(pa.Table.from_pylist(table[:2]), tmp_path / "parts" / f"part-{number}.parquet")
    assert len(open_source(Source(str(tmp_path / "parts")))) == 4  # names that say nothing of splits


def test_questions_and_mapped_columns(processor, data_folder, tmp_path):
    image = (data_folder / "0.png").read_bytes()
    table = [{"picture": {"bytes": image, "path": None}, "query": "What?", "label": ["Blocks.", "Bricks."]}]
    table += [{"picture": None, "query": "And?", "label": ["None."]}, {"picture": None, "query": None, "label": ["x"]}]
    parquet.write_table(pa.Table.from_pylist(table), tmp_path / "qa.parquet")
    with pytest.raises(ValueError, match="has the columns picture, query, label, and none of conversations"):
        open_source(Source(str(tmp_path / "qa.parquet")))
    columns = {"image": "picture", "question": "query", "answer": "label"}
    first, second, third = encoded(processor, Source(str(tmp_path / "qa.parquet"), columns=columns))
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Blocks."}]
    (tmp_path / "qa.json").write_text(json.dumps([image_record(0, conversations=turns)]))
    same([first], encoded(processor, Source(str(tmp_path / "qa.json"), str(data_folder))))
    assert not second.images and third is None
    for wrong, message in (({"question": "gone"}, "no column 'gone'"), ({"pictures": "picture"}, "none of image")):
        with pytest.raises(ValueError, match=message):
            open_source(Source(str(tmp_path / "qa.parquet"), columns=wrong))
    with pytest.raises(ValueError, match="is no table"):
        open_source(Source(str(data_folder / "train.json"), columns=columns))


def test_damaged_parquet_is_named(processor, records, data_folder, tmp_path):
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist(rows(records, data_folder, "conversations")), file, row_group_size=6)
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", content[:-20]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="a.parquet is not a whole Parquet file"):
            open_source(Source(str(file)))
    broken = bytearray(content)
    broken[4:400] = bytes(396)
    file.write_bytes(broken)
    report = check_source(Source(str(file)), processor)
    assert report.broken > 0 and report.samples == 18


def test_a_run_on_parquet_resumes_bit_for_bit(recipe_values, records, data_folder, tmp_path):
    import shutil

    from safetensors.torch import load_file

    from llava_uhd.training.recipe import build_recipe
    from llava_uhd.training.tuning import train_stage

    parquet.write_table(pa.Table.from_pylist(rows(records, data_folder, "messages")), tmp_path / "a.parquet")
    recipe_values["data"]["train"] = [{"path": str(tmp_path / "a.parquet")}]
    whole = train_stage(build_recipe(recipe_values))
    before = load_file(f"{whole.model}/model.safetensors")
    shutil.rmtree(whole.model)
    shutil.rmtree(f"{recipe_values['out']}/checkpoint-5")
    resumed = train_stage(build_recipe(recipe_values))
    after = load_file(f"{resumed.model}/model.safetensors")
    assert resumed.resumed_from.endswith("checkpoint-4") and math.isfinite(resumed.loss)
    assert all(torch.equal(before[name], after[name]) for name in before)
