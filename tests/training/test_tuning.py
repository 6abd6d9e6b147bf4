"""Stages 1 and 2 from a recipe to a trained folder: what is trained, written, checked and resumed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor

from llava_uhd import LlavaUhdForConditionalGeneration
from llava_uhd.files import lock_folder
from llava_uhd.training import trainer as trainer_module
from llava_uhd.training.data.collation import Collator
from llava_uhd.training.data.encoding import Encoder
from llava_uhd.training.data.mixture import Mixture
from llava_uhd.training.parts import group_of
from llava_uhd.training.plan import num_steps
from llava_uhd.training.recipe import build_recipe
from llava_uhd.training.trainer import StageTrainer, last_checkpoint
from llava_uhd.training.tuning import train_stage
from llava_uhd.training.watch import LossGuard, RunStopped
from tests.conftest import small_config


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def changed_parts(before, after):
    config = small_config()
    return {group_of(name, config) for name in before if not torch.equal(before[name], after[name])}


def test_instruct(recipe_values, model_folder):
    recipe_values["data"]["held_out"] = recipe_values["data"]["train"]
    recipe_values["monitoring"] |= {"eval_every": 5, "peak_tflops": 0.1}
    trained = train_stage(build_recipe(recipe_values))
    assert trained.steps == 5 and trained.resumed_from is None
    before, after = weights(model_folder), weights(trained.model)
    assert changed_parts(before, after) == set(recipe_values["optimization"]["learning_rates"])
    logs = [json.loads(line) for line in (Path(recipe_values["out"]) / "log.jsonl").read_text().splitlines()]
    losses = [log["loss"] for log in logs if "loss" in log]
    assert len(losses) == 5 and losses[-1] < losses[0] and trained.held_out_loss < losses[0]
    assert all(log["samples_per_second"] > 0 and 0 < log["utilisation"] < 1 for log in logs if "loss" in log)
    model = LlavaUhdForConditionalGeneration.from_pretrained(trained.model)
    assert type(model).__name__ == "LlavaUhdForConditionalGeneration" and model.dtype == torch.float32
    with pytest.raises(ValueError, match="holds a finished run"):
        train_stage(build_recipe(recipe_values))


def test_align_trains_the_projector_from_the_overview_alone(recipe_values, model_folder):
    recipe_values["stage"] = "align"
    recipe_values["data"] |= {"max_slices": 1, "template": "plain", "pack": True}
    recipe_values["optimization"] |= {
        "learning_rates": {"projector": 1e-3, "positions": 1e-3},
        "max_steps": 2,
        "precision": "bf16",
    }
    trained = train_stage(build_recipe(recipe_values))
    before = {name: value.bfloat16() for name, value in weights(model_folder).items()}
    after = weights(trained.model)
    assert all(value.dtype == torch.bfloat16 for value in after.values())
    assert changed_parts(before, after) == {"projector", "positions"}
    assert json.loads((Path(trained.model) / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_is_frozen_behind_a_trained_tower_takes_its_float32(recipe_values):
    """The tower's last LayerNorm is not trained, and runs on what comes out of the layers that are."""
    recipe_values["optimization"]["precision"] = "bf16"
    recipe_values["schedule"]["max_steps"] = 1
    trained = train_stage(build_recipe(recipe_values))
    assert {"vision_tower", "vision_tower (not run)"} <= {row.part for row in trained.parts}
    assert all(value.dtype == torch.bfloat16 for value in weights(trained.model).values())


@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_align_trains_tower_and_upsampler_where_they_have_rates(recipe_values, model_folder, checkpoint_activations):
    """The first step of Adam moves a weight by its learning rate at most, and some of each part by all of it."""
    rates = {"projector": 1e-3, "positions": 2e-3, "vision_tower": 3e-4, "upsampler": 5e-3, "upsampler_fixup": 7e-4}
    recipe_values["stage"] = "align"
    recipe_values["data"] |= {"max_slices": 1, "template": "plain"}
    recipe_values["optimization"] |= {"learning_rates": rates, "checkpoint_activations": checkpoint_activations}
    recipe_values["schedule"] = {"max_steps": 1, "type": "constant_with_warmup", "warmup": 0.0}
    trained = train_stage(build_recipe(recipe_values))
    assert {row.part for row in trained.parts if row.trainable} == set(rates)
    before, after = weights(model_folder), weights(trained.model)
    moved: dict[str, float] = {}
    for name, value in before.items():
        part = group_of(name, small_config())
        moved[part] = max(moved.get(part, 0.0), float((after[name] - value).abs().max()))
    assert {part: rate for part, rate in moved.items() if rate} == pytest.approx(rates, rel=0.01)
    assert {"language_model", "vision_tower (not run)"} <= set(moved)


def test_projector_of_another_type_is_trained(recipe_values, tmp_path):
    """A new MLP in place of the start's HiWin; the rate of its positions comes from a base and is left out."""
    recipe_values |= {"stage": "align"}
    recipe_values["model"] |= {"renew": ["projector"], "config": {"projector": {"type": "mlp", "upsampler": "none"}}}
    recipe_values["model"]["config"]["projector"]["levels"] = [1]
    recipe_values["optimization"]["learning_rates"] = {"projector": 1e-3, "positions": 1e-3}
    recipe_values["schedule"]["max_steps"] = 1
    with pytest.raises(ValueError, match="no part 'positions' to train"):
        train_stage(build_recipe(recipe_values))
    recipe_values["optimization"]["optional_groups"] = ["positions"]
    trained = train_stage(build_recipe(recipe_values))
    assert {row.part for row in trained.parts if row.trainable} == {"projector"}
    model = LlavaUhdForConditionalGeneration.from_pretrained(trained.model)
    assert model.config.projector.type == "mlp" and model.model.multi_modal_projector.linear_1.weight.isfinite().all()
    recipe_values |= {"out": str(tmp_path / "next"), "stage": "instruct"}
    recipe_values["model"] = {"start": trained.model, "upsampler": "clip-large-jbu.ckpt"}
    recipe_values["optimization"] |= {"learning_rates": {"projector": 1e-3}, "optional_groups": []}
    with pytest.raises(ValueError, match="the projector has no JBU up-sampler: its type is mlp"):
        train_stage(build_recipe(recipe_values))


def test_learning_rates_by_part(recipe_values, monkeypatch):
    rates = {}

    def spy(self, model=None):
        optimizer = original(self, model)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                rates.setdefault(group_of(names[id(parameter)], self.model.config), set()).add(group["lr"])
        return optimizer

    original = StageTrainer.create_optimizer
    monkeypatch.setattr(StageTrainer, "create_optimizer", spy)
    recipe_values["schedule"]["max_steps"] = 1
    train_stage(build_recipe(recipe_values))
    assert rates == {part: {rate} for part, rate in recipe_values["optimization"]["learning_rates"].items()}


def test_lora_changes_adapters_only(recipe_values, model_folder):
    recipe_values["optimization"] |= {"learning_rates": {"language_model": 1e-2}, "checkpoint_activations": True}
    recipe_values["lora"] = {"rank": 4, "alpha": 8, "dropout": 0.0}
    trained = train_stage(build_recipe(recipe_values))
    assert {row.part for row in trained.parts if row.trainable} == {"adapters"}
    adapter = load_file(Path(recipe_values["out"]) / "adapter" / "adapter_model.safetensors")
    assert adapter and all(".language_model." in name and "lora_" in name for name in adapter)
    before, after = weights(model_folder), weights(trained.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    # Seven linear layers in each of two layers carry adapters; merged, they alone differ.
    assert len(moved) == 14 and all("language_model.layers" in name and "_proj" in name for name in moved)


def test_renewed_projector_and_stage_0(recipe_values, model_folder, tmp_path):
    from safetensors.torch import save_file

    from llava_uhd.training.assembly import build_model, read_upsampler

    prefix = "model.multi_modal_projector."
    before = weights(model_folder)
    upsampler = {
        name.removeprefix(prefix + "upsampler."): value + 1
        for name, value in before.items()
        if name.startswith(prefix + "upsampler.")
    }
    save_file(upsampler, tmp_path / "upsampler.safetensors")
    torch.save(
        {"state_dict": {**{f"upsampler.{key}": value for key, value in upsampler.items()}, "model.x": torch.ones(1)}},
        tmp_path / "jbu.ckpt",
    )
    recipe_values["model"] |= {"renew": ["projector"], "upsampler": str(tmp_path)}
    model, _ = build_model(build_recipe(recipe_values))
    after = model.state_dict()
    for name, value in before.items():
        # Norms and biases begin at fixed values, which the saved model has still.
        begins_anew = name.startswith(prefix) and ("upsampler." in name or value.std() > 0)
        assert torch.equal(value, after[name]) != begins_anew, name
    assert torch.equal(
        after[prefix + "upsampler.up1.sigma_spatial"], before[prefix + "upsampler.up1.sigma_spatial"] + 1
    )
    assert read_upsampler(str(tmp_path / "jbu.ckpt")).keys() == upsampler.keys()
    save_file({"up1.range_temp": torch.ones(1)}, tmp_path / "upsampler.safetensors")
    with pytest.raises(ValueError, match="has 1 tensors and the model wants"):
        build_model(build_recipe(recipe_values))


def test_a_loss_that_is_no_number_stops_with_its_batch(recipe_values, model_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    state = weights(broken)
    state["lm_head.weight"][0] = float("nan")
    from safetensors.torch import save_file

    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    recipe_values["model"]["start"] = str(broken)
    with pytest.raises(RunStopped, match="the loss is nan at step 1"):
        train_stage(build_recipe(recipe_values))
    (file,) = Path(recipe_values["out"]).glob("stopped-step-1-rank-0.pt")
    assert {"input_ids", "labels", "pixel_values"} <= torch.load(file, weights_only=True).keys()


def test_a_loss_that_rises_stops(recipe_values):
    guard = LossGuard(max_rise=2.0)
    assert not any(guard.rises(loss) for loss in (4.0, 3.0, 2.0, 2.5, 6.0))
    assert any(guard.rises(10.0) for _ in range(20))
    recipe_values["optimization"]["learning_rates"] = {"language_model": 50.0}
    recipe_values["monitoring"]["max_loss_rise"] = 1.5
    recipe_values["schedule"]["epochs"] = 6
    for _ in range(2):  # resumed, it is held to the losses before its checkpoint
        with pytest.raises(RunStopped, match=r"the smoothed loss rose .*max_loss_rise=1\.5; .* the last whole"):
            train_stage(build_recipe(recipe_values))


def held_out_loss(recipe_values, folder, records, **changes) -> float:
    """Held-out loss of a model that is hardly trained."""
    folder.mkdir()
    file = folder / "held-out.json"
    file.write_text(json.dumps(records))
    values = {**recipe_values, "out": str(folder / "run"), "schedule": {"max_steps": 1}}
    values["optimization"] = {**recipe_values["optimization"], "learning_rates": {"projector": 1e-12}, **changes}
    source = {"path": str(file), "images": recipe_values["data"]["train"][0]["images"]}
    values["data"] = {**recipe_values["data"], "held_out": [source]}
    return train_stage(build_recipe(values)).held_out_loss


def test_the_held_out_loss_is_that_of_the_target_tokens_of_samples_that_can_be_used(
    recipe_values, data_folder, model_folder, tmp_path
):
    records = json.loads((data_folder / "train.json").read_text())[6:15]  # answers of other lengths
    losses = [held_out_loss(recipe_values, tmp_path / f"{size}", records, micro_batch=size) for size in (1, 4)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    gone = [{**record, "image": "gone.png"} for record in records]
    assert held_out_loss(recipe_values, tmp_path / "some", records + gone) == pytest.approx(losses[0], rel=1e-6)
    # By hand, a sample at a time.
    model = LlavaUhdForConditionalGeneration.from_pretrained(model_folder).eval()
    recipe = build_recipe(recipe_values)
    source = replace(recipe.data.train[0], path=str(tmp_path / "1" / "held-out.json"))
    mixture = Mixture((source,), Encoder(AutoProcessor.from_pretrained(model_folder), recipe.data), 0)
    collate = Collator(AutoProcessor.from_pretrained(model_folder).tokenizer.pad_token_id)
    total = count = 0.0
    for index in range(len(mixture)):
        batch = collate([mixture[index]])
        targets = int((batch["labels"][:, 1:] != -100).sum())
        with torch.no_grad():
            total += targets * float(model(**{k: v for k, v in batch.items() if k != "target_positions"}).loss)
        count += targets
    assert losses[0] == pytest.approx(total / count, rel=1e-4)
    with pytest.raises(ValueError, match=r"data\.held_out: none of its 9 samples can be used; .*left-out\.jsonl"):
        held_out_loss(recipe_values, tmp_path / "none", gone)


def test_the_last_step_is_logged(recipe_values):
    recipe_values["monitoring"]["log_every"] = 10
    trained = train_stage(build_recipe(recipe_values))
    log = [json.loads(line) for line in (Path(recipe_values["out"]) / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 5]
    assert trained.loss == log[-2]["loss"] != log[0]["loss"]


def test_more_steps_than_the_epochs_have_are_not_run(recipe_values):
    recipe_values["schedule"]["max_steps"] = 50
    recipe = build_recipe(recipe_values)
    trained = train_stage(recipe)
    assert trained.steps == num_steps(recipe, trained_samples(recipe)) < 50


def trained_samples(recipe) -> int:
    return len(json.loads(Path(recipe.data.train[0].path).read_text()))


def test_a_run_without_a_usable_sample_ends_with_an_error(recipe_values, data_folder, tmp_path):
    records = [{**record, "image": "gone.png"} for record in json.loads((data_folder / "train.json").read_text())]
    (tmp_path / "bad.json").write_text(json.dumps(records))
    recipe_values["data"]["train"][0]["path"] = str(tmp_path / "bad.json")
    for _ in range(2):  # and likewise when it is run again
        with pytest.raises(RunStopped, match="no sample of the first . steps can be used; .*left-out.jsonl"):
            train_stage(build_recipe(recipe_values))
    assert not (Path(recipe_values["out"]) / "model").exists()
    guard = LossGuard(max_rise=2.0)
    assert not any(guard.rises(loss) for loss in (0.0, 4.0, 0.0, 3.0)) and guard.lowest > 0


def test_bad_samples_are_skipped_or_fatal(recipe_values, data_folder, tmp_path):
    records = json.loads((data_folder / "train.json").read_text())
    for record in records[:4]:
        record["image"] = "gone.png"
    (tmp_path / "bad.json").write_text(json.dumps(records))
    recipe_values["data"]["train"][0]["path"] = str(tmp_path / "bad.json")
    trained = train_stage(build_recipe(recipe_values))
    left_out = [json.loads(line) for line in (Path(recipe_values["out"]) / "left-out.jsonl").read_text().splitlines()]
    assert trained.steps == 5 and sorted(entry["index"] for entry in left_out) == [0, 1, 2, 3]
    recipe_values["schedule"]["epochs"] = 3  # each is reported once
    recipe_values["out"] = str(tmp_path / "thrice")
    train_stage(build_recipe(recipe_values))
    assert len((tmp_path / "thrice" / "left-out.jsonl").read_text().splitlines()) == 4
    recipe_values["schedule"]["epochs"] = 1
    recipe_values["out"] = str(tmp_path / "fatal")
    recipe_values["data"]["on_bad_sample"] = "fatal"
    recipe_values["checkpoints"]["save_every"] = 100
    with pytest.raises(ValueError, match="bad.json: sample .: there is no file"):
        train_stage(build_recipe(recipe_values))


def test_a_folder_keeps_its_recipe(recipe_values):
    recipe_values["schedule"]["max_steps"] = 1
    train_stage(build_recipe(recipe_values))
    shutil.rmtree(Path(recipe_values["out"]) / "model")
    recipe_values["optimization"]["learning_rates"]["projector"] = 3e-3
    with pytest.raises(ValueError, match="projector was 0.002 and is 0.003"):
        train_stage(build_recipe(recipe_values))


def test_a_model_put_together_from_its_parts(recipe_values, qwen_tokenizer, tmp_path):
    """Start as stage 1 of the paper: language model, tower and up-sampler from three places, a new projector."""
    from transformers import CLIPVisionModel, LlamaForCausalLM

    from llava_uhd import load
    from llava_uhd.model.attention import sincos_position_embedding
    from llava_uhd.training.assembly import build_model
    from tests.conftest import random_image

    config = small_config()
    torch.manual_seed(1)
    language_model, tower = LlamaForCausalLM(config.text_config), CLIPVisionModel(config.vision_config)
    language_model.save_pretrained(tmp_path / "language")
    qwen_tokenizer.save_pretrained(tmp_path / "language")
    tower.save_pretrained(tmp_path / "tower")
    recipe_values |= {"stage": "align"}
    recipe_values["model"] = {
        "language_model": str(tmp_path / "language"),
        "vision_tower": str(tmp_path / "tower"),
        "projector": {"levels": [1, 2], "query_grid": 3, "num_attention_heads": 2},
        "layout": "sequential",
        "slice_separator_id": 14,
        "template": "qwen",
    }
    recipe_values["optimization"] |= {"learning_rates": {"projector": 1e-3, "positions": 1e-3}, "max_steps": 1}
    too_large = build_recipe(recipe_values | {"model": recipe_values["model"] | {"slice_separator_id": 29892}})
    with pytest.raises(ValueError, match="separator's id is 29892, but .* has 423 tokens"):
        build_model(too_large)
    model, processor = build_model(build_recipe(recipe_values))
    state = model.state_dict()
    for part, prefix in ((language_model.model, "model.language_model."), (tower, "model.vision_tower.")):
        assert all(torch.equal(value, state[prefix + name]) for name, value in part.state_dict().items())
    assert torch.equal(state["lm_head.weight"], language_model.lm_head.weight)
    projector = model.model.multi_modal_projector
    assert 0.01 < projector.queries.std() < 0.03 and torch.equal(projector.ln_q.weight, torch.ones(32))
    torch.testing.assert_close(projector.positions, sincos_position_embedding(32, 3))
    trained = train_stage(build_recipe(recipe_values))
    loaded, processor = load(trained.model)
    inputs = processor(text="<image>Hi", images=random_image(120, 80), return_tensors="pt")
    assert loaded.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]


def test_out_of_memory_says_what_to_lower(recipe_values, monkeypatch):
    def exhausted(*arguments, **options):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(trainer_module.Trainer, "training_step", exhausted)
    with pytest.raises(
        RunStopped, match=r"out of memory at step 1 on a batch of \(2, .*lower optimization.micro_batch"
    ):
        train_stage(build_recipe(recipe_values))


class Killed(BaseException):
    """Exception that no handler catches, like a kill."""


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(recipe_values, monkeypatch, tmp_path):
    """Killed while it saves, in the second epoch: it continues from the last whole checkpoint, bit by bit the same."""
    recipe_values["schedule"]["epochs"] = 2
    whole = train_stage(build_recipe(recipe_values))
    recipe_values["out"] = str(tmp_path / "killed")

    original = trainer_module.Trainer._save_optimizer_and_scheduler

    def kill(self, output_dir):
        if self.state.global_step == 8:
            raise Killed
        return original(self, output_dir)

    monkeypatch.setattr(trainer_module.Trainer, "_save_optimizer_and_scheduler", kill)
    with pytest.raises(Killed):
        train_stage(build_recipe(recipe_values))
    monkeypatch.undo()
    out = Path(recipe_values["out"])
    assert (out / "checkpoint-8").is_dir() and last_checkpoint(out) == out / "checkpoint-6"
    resumed = train_stage(build_recipe(recipe_values))
    assert resumed.resumed_from == str(out / "checkpoint-6") and resumed.steps == whole.steps == 10
    before, after = weights(whole.model), weights(resumed.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps.count(7) == 1


def damage(file, how):
    """Cut, empty, change one bit of, or remove a file."""
    content = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "flipped":
        content[len(content) // 2] ^= 16
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2] if how == "cut" else b"")


RESUMED = {"model.safetensors": "cut", "optimizer.pt": "flipped", "rng_state.pth": "missing"}


def test_damaged_checkpoints_are_passed_over(recipe_values, tmp_path, caplog):
    """Whatever is damaged, the newest complete checkpoint is taken, and the weights are those of an unbroken run."""
    whole = train_stage(build_recipe(recipe_values))
    before = weights(whole.model)
    out = Path(recipe_values["out"])
    shutil.rmtree(out / "model")
    names = [file.name for file in sorted((out / "checkpoint-5").iterdir())]
    assert {"complete", "recipe.yaml", "scheduler.pt", *RESUMED} <= set(names)
    for name in names:
        for how in ("cut", "empty", "flipped", "missing"):
            copy = tmp_path / "copy"
            shutil.copytree(out, copy)
            damage(copy / "checkpoint-5" / name, how)
            # An empty list is that of an earlier version: what it lists is whole here.
            passed_over = (name, how) != ("complete", "empty")
            caplog.clear()
            assert last_checkpoint(copy).name == ("checkpoint-4" if passed_over else "checkpoint-5"), (name, how)
            assert ("passed over" in caplog.text and "checkpoint-5" in caplog.text) == passed_over, (name, how)
            if RESUMED.get(name) == how:
                recipe_values["out"] = str(copy)
                resumed = train_stage(build_recipe(recipe_values))
                after = weights(resumed.model)
                assert resumed.steps == 5 and all(torch.equal(before[name], after[name]) for name in before)
            shutil.rmtree(copy)


def test_checkpoints_of_earlier_versions(recipe_values, tmp_path, caplog):
    """Their mark is an empty file: they are resumed if nothing is missing, and what cannot be read is named."""
    whole = train_stage(build_recipe(recipe_values))
    out = Path(recipe_values["out"])
    shutil.rmtree(out / "model")
    for checkpoint in out.glob("checkpoint-*"):
        (checkpoint / "complete").write_bytes(b"")
        (checkpoint / "recipe.yaml").unlink()
    assert last_checkpoint(out).name == "checkpoint-5"
    (out / "checkpoint-5" / "optimizer.pt").unlink()
    assert last_checkpoint(out).name == "checkpoint-4" and "optimizer* is missing" in caplog.text
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors"):
        copy = tmp_path / name
        shutil.copytree(out, copy)
        damage(copy / "checkpoint-4" / name, "cut")
        recipe_values["out"] = str(copy)
        with pytest.raises(RunStopped, match="checkpoint-4 cannot be read .*remove it"):
            train_stage(build_recipe(recipe_values))
    recipe_values["out"] = str(out)
    assert train_stage(build_recipe(recipe_values)).steps == whole.steps == 5


def test_killed_between_the_last_checkpoint_and_the_model(recipe_values, tmp_path):
    """No step more is made, also where the run ends within an epoch."""
    recipe_values["schedule"]["max_steps"] = 3
    whole = train_stage(build_recipe(recipe_values))
    before = weights(whole.model)
    shutil.rmtree(whole.model)
    resumed = train_stage(build_recipe(recipe_values))
    after = weights(resumed.model)
    assert resumed.steps == 3 and resumed.resumed_from.endswith("checkpoint-3")
    assert all(torch.equal(before[name], after[name]) for name in before) and resumed.loss == whole.loss


@pytest.mark.parametrize("content", ["", "stage: instr", "7"])
def test_a_damaged_recipe_of_a_run(recipe_values, content):
    recipe_values["schedule"]["max_steps"] = 2
    train_stage(build_recipe(recipe_values))
    out = Path(recipe_values["out"])
    shutil.rmtree(out / "model")
    (out / "recipe.yaml").write_text(content)
    train_stage(build_recipe(recipe_values))  # the checkpoint holds a copy
    shutil.rmtree(out / "model")
    (out / "recipe.yaml").write_text(content)
    (out / "checkpoint-2" / "complete").write_text("")
    (out / "checkpoint-2" / "recipe.yaml").unlink()
    with pytest.raises(ValueError, match="recipe.yaml is damaged .*restore it"):
        train_stage(build_recipe(recipe_values))


def test_two_runs_into_one_folder(recipe_values):
    with lock_folder(Path(recipe_values["out"])), pytest.raises(ValueError, match="run is in use by another run"):
        train_stage(build_recipe(recipe_values))


def test_a_full_disk_says_what_is_kept(recipe_values, monkeypatch):
    def full(self, output_dir):
        if self.state.global_step == 4:
            raise OSError(28, "No space left on device")
        return original(self, output_dir)

    original = trainer_module.Trainer._save_optimizer_and_scheduler
    monkeypatch.setattr(trainer_module.Trainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(RunStopped, match="checkpoint-4 could not be written .*No space left.*/checkpoint-2"):
        train_stage(build_recipe(recipe_values))


def test_changed_training_data_is_refused_on_resume(recipe_values, data_folder, tmp_path):
    file = tmp_path / "mine.json"
    records = json.loads((data_folder / "train.json").read_text())
    file.write_text(json.dumps(records))
    recipe_values["data"]["train"][0]["path"] = str(file)
    recipe_values["schedule"]["max_steps"] = 3
    train_stage(build_recipe(recipe_values))
    out = Path(recipe_values["out"])
    shutil.rmtree(out / "model")
    records[0]["conversations"][1]["value"] += "!"
    file.write_text(json.dumps(records))
    with pytest.raises(ValueError, match=r"data changed since the run in .*18 samples \(sha256 \w{12}\) then, 18 \("):
        train_stage(build_recipe(recipe_values))
    file.write_text(json.dumps(records[:-1]))
    with pytest.raises(ValueError, match=r"then, 17 \(\w{12}\) now; restore it"):
        train_stage(build_recipe(recipe_values))
    (out / "data.json").unlink()  # as a run of an earlier version
    assert train_stage(build_recipe(recipe_values)).steps == 3
