"""Recipes: the shipped ones load and carry the published values; what is wrong in one is said."""

import copy
import json
import random
import re
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter

import pytest
import torch
import yaml

from llava_uhd import LlavaUhdConfig, LlavaUhdForConditionalGeneration
from llava_uhd.training.assembly import planned_config
from llava_uhd.training.parts import group_of, train_only
from llava_uhd.training.plan import make_plan, with_present_groups
from llava_uhd.training.recipe import FOLDER, build_recipe, load_recipe, recipe_text, shipped_recipes
from llava_uhd.training.recipe_files import read_about, read_values
from llava_uhd.training.upsampler.plan import make_plan as plan_upsampler
from tests.conftest import build_model, small_config

V2 = ("vicuna-7b", "vicuna-13b", "qwen2-7b")
FAMILIES = ("tiny", *V2, *(f"{family}-paper" for family in V2), "v1")


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_print_as_they_are(name):
    recipe = load_recipe(name)
    assert build_recipe(yaml.safe_load(recipe_text(recipe))) == recipe


def test_each_family_has_its_stages():
    expected = {f"{family}-{stage}" for family in FAMILIES for stage in ("align", "instruct")}
    expected |= {"tiny-upsampler", "clip-l-upsampler", "clip-l-paper-upsampler"}
    expected |= {"tiny-closer-look-upsampler", "clip-l-closer-look-upsampler"}
    expected |= {"vicuna-7b-instruct-lora", "vicuna-7b-instruct-qlora"}
    assert set(shipped_recipes()) == expected


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_published_values(family):
    align, instruct = load_recipe(f"{family}-align"), load_recipe(f"{family}-instruct")
    first, second = align.optimization, instruct.optimization
    assert (first.global_batch, second.global_batch) == (256, 128)
    rate = 2e-4 if family.startswith(("vicuna-13b", "qwen2-7b")) else 1e-3
    assert first.learning_rates == {"projector": rate, "positions": rate}
    assert set(second.learning_rates.values()) == {2e-5} and "positions" not in second.learning_rates
    assert first.weight_decay == second.weight_decay == 0.0
    for schedule in (align.schedule, instruct.schedule):
        assert (schedule.type, schedule.warmup, schedule.epochs) == ("cosine", 0.03, 1.0)
    # December 2024 and v1 clip nothing; the configuration of April 2025 leaves it to the Trainer, which clips at 1.
    clipped = 1.0 if family.startswith(("vicuna-13b", "qwen2-7b")) else 0.0
    assert first.max_grad_norm == second.max_grad_norm == clipped
    assert align.data.max_slices == 1 and instruct.data.max_slices == (6 if "paper" in family else 7)
    assert instruct.data.max_length == (2048 if family == "v1" else 4096)
    trained = {"language_model", "projector"}
    trained |= set() if family == "v1" else {"vision_tower"}
    assert set(second.learning_rates) == trained | ({"upsampler_fixup"} if family in V2 else set())
    assert instruct.model.start == f"{align.out}/model"


def test_v1_is_its_own_branch():
    align, instruct = load_recipe("v1-align"), load_recipe("v1-instruct")
    assert align.model.config.layout == "sequential" and align.data.max_length == 2048
    assert instruct.data.published_samples == 665_000 and not instruct.data.vary_images


def test_stage_0_of_paper_and_code():
    paper, code = load_recipe("clip-l-paper-upsampler"), load_recipe("clip-l-upsampler")
    assert (paper.optimization.optimizer, paper.schedule.max_steps) == ("adam", 2000)
    assert (code.optimization.optimizer, code.schedule.max_steps, code.schedule.epochs) == ("nadam", None, 1)
    assert paper.optimization.global_batch == code.optimization.global_batch == 16
    assert code.loss.images_per_jitter == 2


@pytest.mark.parametrize("name", ["clip-l-upsampler", "clip-l-paper-upsampler"])
def test_the_published_upsampler(name):
    recipe = load_recipe(name)
    optimization, loss = recipe.optimization, recipe.loss
    assert (optimization.learning_rate, optimization.clip_first, optimization.max_grad_norm) == (1e-3, 10, 1e-4)
    assert (loss.jitters, loss.max_pad, loss.max_zoom) == (2, 30, 2.0)
    assert (loss.projection, loss.crf, loss.tv) == (30, 1e-3, 0)


def test_overrides():
    recipe = load_recipe("vicuna-7b-align", ["data.train.0.path=mine.json", "schedule.epochs=2", "seed=7"])
    assert (recipe.data.train[0].path, recipe.schedule.epochs, recipe.seed) == ("mine.json", 2.0, 7)
    assert load_recipe(
        "vicuna-7b-align", ["optimization.learning_rates={projector: 5e-4}"]
    ).optimization.learning_rates
    assert (
        load_recipe("vicuna-7b-instruct", ["monitoring.report_to=tensorboard"]).monitoring.report_to == "tensorboard"
    )


WRONG = [
    (["optimisation.epochs=2"], "unknown key optimisation; nearest: optimization"),
    (["optimization.epoch=2"], "unknown key optimization.epoch; nearest: schedule.epochs"),
    (["schedule.epochs=many"], "schedule.epochs must be float, got 'many'"),
    (["optimization.micro_batch=1.5"], "optimization.micro_batch must be int, got 1.5"),
    (["optimization.micro_batch=3"], "256 is no multiple of micro_batch 3"),
    (["optimization.learning_rates.language_model=1e-5"], "stage align trains projector, positions"),
    (["optimization.learning_rates.projector=0"], "projector must be above 0"),
    (["schedule.type=cosin"], r"must be one of cosine, .*got 'cosin' \(nearest: cosine\)"),
    (["data.train.1.path=x"], "data.train.1.path: there are 1 entries"),
    (["data.train=x"], "data.train must be a list"),
    (["data.pack=1"], "data.pack must be bool, got 1"),
    (["model.start=tiny"], "either start, or both"),
    (["model.vision_tower=null"], "either start, or both"),
    (["checkpoints.keep=1"], "checkpoints.keep must be at least 2"),
    (["lora={rank: 4}"], "trains language_model alone"),
    (["stage=aline"], "stage must be one of"),
    (["seed"], "expected key=value"),
    (["seed=[1"], "not YAML"),
]


@pytest.mark.parametrize("overrides, message", WRONG, ids=[overrides[0] for overrides, _ in WRONG])
def test_what_is_wrong_is_said(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("vicuna-7b-align", overrides)


OUTSIDE = [
    ("schedule.epochs=0", "schedule.epochs must be above 0, got 0"),
    ("schedule.epochs=.nan", "must be a finite number, got nan"),
    ("schedule.max_steps=-3", "max_steps must be at least 1, got -3"),
    ("schedule.warmup=5", "warmup must be at most 0.999, got 5"),
    ("schedule.warmup=1", "warmup must be at most 0.999, got 1"),
    ("optimization.weight_decay=-5", "weight_decay must be at least 0, got -5"),
    ("optimization.global_batch=0", "global_batch must be at least 1, got 0"),
    ("optimization.learning_rates.projector=.inf", "learning_rates.projector must be a finite number, got inf"),
    ("data.max_slices=0", "data.max_slices must be at least 1, got 0"),
    ("data.train.0.weight=.inf", "data.train.0.weight must be a finite number, got inf"),
    ("data.train.0.path=''", "data.train.0.path must be a path"),
    ("data.workers=-1", "data.workers must be at least 0, got -1"),
    ("monitoring.max_loss_rise=.nan", "max_loss_rise must be a finite number"),
    ("seed=18446744073709551616", "seed must be at most"),
    ("lora={targets: '('}", "lora.targets is no regular expression"),
    ("micro_batch=16", "nearest: optimization.micro_batch"),
    ("learning_rate=1", "nearest: optimization.learning_rates"),
]


@pytest.mark.parametrize("override, message", OUTSIDE, ids=[override for override, _ in OUTSIDE])
def test_numbers_outside_their_limits(override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("vicuna-7b-align", [override])


def test_all_numbers_outside_are_named_at_once():
    with pytest.raises(ValueError, match="max_steps must be .*; .*warmup must be"):
        load_recipe("tiny-align", ["schedule.warmup=2", "schedule.max_steps=0"])


def keys_of(values, place=""):
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield f"{place}{key}"
        if isinstance(value, dict | list):
            yield from keys_of(value, f"{place}{key}.")


def test_a_thousand_fuzzed_recipes_give_a_recipe_or_one_clear_line(tmp_path):
    """Values of any type at any place, and files with bytes changed: only ValueError, and quickly."""
    rng = random.Random(0)
    values = [
        0,
        -1,
        1,
        5.5,
        1e308,
        float("nan"),
        float("inf"),
        -float("inf"),
        True,
        None,
        "",
        "x",
        "\0",
        [],
        {},
        [1],
        {1: 2},
    ]
    values += [10**400, 2**63, "1e999", "../..", [[]], {"a": {"b": []}}, "\ud83e", b"x", 1e-320, -0.0, "é" * 3000]
    names = shipped_recipes()
    shipped = {name: read_values(name) for name in names}
    started, rejected = perf_counter(), 0
    for number in range(1000):
        name = rng.choice(names)
        loaded = copy.deepcopy(shipped[name])
        if number % 4 == 0:
            text = (FOLDER / f"{name}.yaml").read_text() if number % 8 else yaml.safe_dump(loaded)
            content = bytearray(text.encode())
            for _ in range(rng.randint(1, 4)):
                content[rng.randrange(len(content))] = rng.randrange(256)
            file = tmp_path / "fuzzed.yaml"
            file.write_bytes(content[: rng.choice((len(content), rng.randrange(len(content))))])
            make, argument = load_recipe, str(file)
        else:
            for _ in range(rng.randint(1, 3)):
                *way, last = rng.choice([key for key in keys_of(loaded)] + ["extra", "data.extra"]).split(".")
                place = loaded
                for step in way:
                    place = place[int(step)] if isinstance(place, list) else place.get(step, {})
                    if not isinstance(place, dict | list):
                        place = {}
                if isinstance(place, list):
                    if place:
                        place[0] = rng.choice(values)
                else:
                    place[last] = rng.choice(values)
            make, argument = build_recipe, loaded
        try:
            recipe_text(make(argument))
        except ValueError as error:
            rejected += 1
            assert str(error)
    assert rejected > 500 and perf_counter() - started < 60


def test_other_training_data_leaves_the_recipes_own_alone(tmp_path, caplog):
    (tmp_path / "mine").mkdir()
    recipe = load_recipe("tiny-instruct", [f"data.train.0.path={tmp_path}/mine.json"])
    assert (
        recipe.data.held_out == () and recipe.data.train[0].images == "." and "runs/tiny-data" not in str(recipe.data)
    )
    assert "held-out data is left out" in caplog.text
    named = load_recipe("tiny-instruct", ["data.train=[{path: a.json}]", "data.held_out=[{path: b.json}]"])
    assert named.data.held_out[0].path == "b.json"
    assert load_recipe("tiny-instruct").data.held_out


def test_files_as_windows_writes_them(tmp_path):
    text = (FOLDER / "tiny-align.yaml").read_text()
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "mine.yaml").write_bytes(text.replace("\n", "\r\n").encode(encoding))
        assert load_recipe(str(tmp_path / "mine.yaml")) == load_recipe("tiny-align")


def test_unknown_and_broken_files(tmp_path):
    with pytest.raises(ValueError, match="nearest: vicuna-7b-align"):
        load_recipe("vicuna-7b-alin")
    for name in (tmp_path / "gone.yaml", "runs/gone.yml", "runs/gone"):
        with pytest.raises(ValueError, match="there is no file .*gone"):
            load_recipe(str(name))
    for content in ("", "5", "[stage]", "stage: [1]", "\xff", "{" * 2000):
        (tmp_path / "odd.yaml").write_text(content, encoding="latin-1")
        with pytest.raises(ValueError):
            load_recipe(str(tmp_path / "odd.yaml"), ["seed=1"])
    (tmp_path / "broken.yaml").write_text("stage: [align")
    with pytest.raises(ValueError, match="not YAML"):
        load_recipe(str(tmp_path / "broken.yaml"))
    values = yaml.safe_load((FOLDER / "tiny-align.yaml").read_text())
    missing = copy.deepcopy(values)
    del missing["optimization"]["global_batch"]
    with pytest.raises(ValueError, match="optimization.global_batch is missing"):
        build_recipe(missing)


def test_the_guide_names_recipes_that_exist():
    """Every recipe in docs/training.md is shipped, and every shipped one is in it."""
    guide = (FOLDER.parents[2] / "docs" / "training.md").read_text()
    named = set(re.findall(r"\b[a-z0-9-]+-(?:upsampler|align|instruct(?:-q?lora)?)\b", guide))
    assert named == set(shipped_recipes())


OPTIONS = {
    "model.config.projector.type": "resampler",
    "model.config.projector.bin_embedding": True,
    "model.config.projector.aligned_windows": True,
    "model.config.projector.bin_grid": "fixed",
    "model.config.projector.input_level": 2,
    "model.config.projector.upsampler": "deconvolution",
    "model.config.layout": "unseparated",
    "model.config.slice_grid": [2, 2],
    "model.config.pad_to_square": True,
}


def test_options_of_the_papers_tables_reach_the_model():
    recipe = load_recipe("vicuna-7b-align", [f"{key}={json.dumps(value)}" for key, value in OPTIONS.items()])
    config = planned_config(recipe.model)
    for key, value in OPTIONS.items():
        of_projector = key.startswith("model.config.projector.")
        found = getattr(config.projector if of_projector else config, key.rpartition(".")[2])
        assert found == value, key
    off = planned_config(load_recipe("vicuna-7b-align").model)
    assert all(
        getattr(off.projector if "projector." in key else off, key.rpartition(".")[2]) != value
        for key, value in OPTIONS.items()
    )
    with pytest.raises(ValueError, match="'bicubik' is not registered"):
        planned_config(load_recipe("vicuna-7b-align", ["model.config.projector.upsampler=bicubik"]).model)


def test_tower_is_trained_in_alignment_where_a_recipe_says_so():
    recipe = load_recipe("vicuna-7b-align", ["optimization.learning_rates.vision_tower=1e-5"])
    model = build_model(small_config())
    train_only(model, model.config, list(recipe.optimization.learning_rates))
    ids = torch.tensor([[5] + [423] * 9 + [7, 8]])
    image = {
        "view_shapes": torch.tensor([[4, 4]]),
        "num_views": torch.tensor([1]),
        "grids": torch.zeros(1, 2).long(),
    }
    model(input_ids=ids, labels=ids.clamp(max=400), pixel_values=torch.randn(16, 588), **image).loss.backward()
    with_gradient = {group_of(name, model.config) for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {"projector", "positions", "vision_tower"}


FORMER = Path(__file__).parent / "former_recipes"
RESOLVED = yaml.safe_load((FORMER / "resolved.yaml").read_text())


@pytest.mark.parametrize("name", RESOLVED)
def test_recipes_in_run_folders_of_earlier_versions_load(name):
    """Return the `recipe.yaml` that runs had before recipes were nested, all defaults included."""
    assert build_recipe(RESOLVED[name]) == load_recipe(name)


@pytest.mark.parametrize("file", sorted(FORMER.glob("*-*.yaml")), ids=lambda file: file.stem)
def test_recipe_files_of_earlier_versions_load(file, caplog):
    assert load_recipe(str(file)) == load_recipe(file.stem)
    assert "former names of keys, which still work" in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize(
    "name, former, now",
    [
        ("tiny-align", ["optimization.epochs=2", "watch.keep=3"], ["schedule.epochs=2", "checkpoints.keep=3"]),
        ("tiny-align", ["watch={keep: 3, log_every: 1}"], ["checkpoints.keep=3", "monitoring={log_every: 1}"]),
        ("v1-align", ["model.projector.query_grid=4"], ["model.config.projector.query_grid=4"]),
        ("tiny-upsampler", ["objective=closer_look", "pictures=7"], None),
    ],
)
def test_overrides_by_former_names(name, former, now):
    if now is None:
        now = ["loss.objective=closer_look", "monitoring.images_every=7"]
    assert load_recipe(name, former) == load_recipe(name, now) != load_recipe(name)


def test_a_section_by_override_may_hold_former_names():
    text = (
        "optimization={learning_rates: {projector: 1}, global_batch: 4, micro_batch: 2, epochs: 3, schedule: linear}"
    )
    recipe = load_recipe("tiny-align", [text])
    assert (recipe.schedule.epochs, recipe.schedule.type, recipe.schedule.warmup) == (3, "linear", 0.03)
    assert recipe.optimization.precision == "bf16"  # the section's default: the override replaces the recipe's


def test_a_value_under_both_names_is_refused():
    values = copy.deepcopy(RESOLVED["tiny-align"]) | {"schedule": {"epochs": 3}}
    with pytest.raises(ValueError, match="schedule.epochs is named twice|optimization.epochs is named twice"):
        build_recipe(values)


def test_a_recipe_from_a_base(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: tiny-instruct\nout: runs/mine\noptimization: {global_batch: 8}\n")
    (tmp_path / "longer.yaml").write_text(
        "base: mine.yaml\noptimization:\n  epochs: 5\n  learning_rates: {projector: 1}"
    )
    mine, longer = load_recipe(str(tmp_path / "mine.yaml")), load_recipe(str(tmp_path / "longer.yaml"))
    whole = load_recipe("tiny-instruct", ["out=runs/mine", "optimization.global_batch=8"])
    assert mine == whole and mine.optimization.learning_rates["language_model"] == 5e-4
    assert longer.schedule.epochs == 5 and longer.optimization.global_batch == 8
    assert longer.optimization.learning_rates == {"projector": 1}  # replaced, not merged
    for text, message in (
        ("base: longer.yaml", "base leads back"),
        ("base: [1]", "base must be the name"),
        ("base: nowhere", "mine.yaml: base: no recipe 'nowhere'"),
        ("base: tiny-instruct\nabout: {need: x}", "about must have follows, needs, reaches"),
    ):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_recipe(str(tmp_path / "mine.yaml"))
            read_about(str(tmp_path / "mine.yaml"))


def test_the_config_of_the_model_is_nested():
    """Every field of the model's own config that its backbones do not give can be set, with the config's own check."""
    recipe = load_recipe("vicuna-7b-align", ["model.config.projector.bin_embedding=true", "model.config.max_slices=5"])
    config = planned_config(recipe.model)
    assert config.projector.bin_embedding and config.max_slices == 5 and config.layout == "stitched"
    own = set(LlavaUhdConfig.__annotations__) - set(asdict(recipe.model.config))
    assert own == {"vision_config", "text_config", "image_token_id", "tie_word_embeddings"}
    for override, message in (
        ("model.config.projector.levels=[3]", "model.config.projector: levels must ascend"),
        ("model.config.projector.bin_embeding=true", "nearest: model.config.projector.bin_embedding"),
        ("model.config.row_separator_id=-1", "model.config.row_separator_id must be at least 0, got -1"),
        ("model.config.max_slices=true", "model.config.max_slices must be int, got True"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            load_recipe("vicuna-7b-align", [override])


@pytest.mark.parametrize("name", shipped_recipes())
def test_heads_state_what_the_plan_computes(name):
    """Devices, memory and hours in each recipe's head are those of `train plan`."""
    about = read_about(name)
    assert about.follows and "train plan" in about.needs and about.reaches
    devices = int(re.match(r"(\d+) (?:devices|CPU)", about.needs)[1])
    if name.endswith("-upsampler"):
        message = f"{plan_upsampler(load_recipe(name), devices).memory_gib} GiB"
        assert message in about.needs and "not measured" in about.needs
        return
    overrides = ["monitoring.peak_tflops=989"] + (["model.start=tiny"] if name.startswith("tiny") else [])
    plan = make_plan(load_recipe(name, overrides), devices)
    for gib in (plan.memory_gib[strategy] for strategy in ("fsdp2", "ddp") if strategy in plan.memory_gib):
        assert f" {gib} GiB" in about.needs
    if plan.hours is not None:
        assert f"for {plan.hours:.2g} hours" in about.needs


PROJECTORS = {
    "mlp": {"type": "mlp"},
    "resampler": {"type": "resampler"},
    "perceiver of an up-sampled map": {"type": "perceiver", "input_level": 2, "upsampler": "deconvolution"},
    "mlp of an up-sampled map": {"type": "mlp", "input_level": 2, "upsampler": "jbu"},
    "one level": {"levels": [1]},
    "no up-sampler": {"levels": [1], "upsampler": "none"},
    "bilinear": {"levels": [1, 2], "upsampler": "bilinear"},
    "deconvolution": {"levels": [1, 2], "upsampler": "deconvolution"},
}
WITHOUT_POSITIONS = {"mlp", "mlp of an up-sampled map"}
WITH_FIXUP = {"mlp of an up-sampled map"}


def small_model(projector):
    with torch.device("meta"):
        config = small_config(**{"levels": [1], "upsampler": "none"} | projector)
        return LlavaUhdForConditionalGeneration(config)


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if not name.endswith("upsampler")])
def test_shipped_recipes_train_what_a_chosen_projector_has(name, caplog):
    """Every shipped recipe with every kind of projector: rates of missing groups and up-samplers are left out."""
    for kind, projector in PROJECTORS.items():
        overrides = [f"model.config.projector.{key}={json.dumps(value)}" for key, value in projector.items()]
        # Stage 2 takes the projector of stage 1.
        recipe = load_recipe(name, overrides if name.endswith("align") else [])
        model = small_model(projector)
        fitted = with_present_groups(recipe, model, model.config).optimization
        missing = ({"positions"} if kind in WITHOUT_POSITIONS else set()) | (
            set() if kind in WITH_FIXUP else {"upsampler_fixup"}
        )
        rates = recipe.optimization.learning_rates
        assert fitted.learning_rates == {group: rate for group, rate in rates.items() if group not in missing}
        train_only(model, model.config, list(fitted.learning_rates))
        if name.endswith("align"):
            assert recipe.model.upsampler is None or kind in WITH_FIXUP


def test_rates_that_a_user_names_are_required(tmp_path):
    """An override, a user's file and a copy raise an error that lists the model's parameter groups."""
    model = small_model({"type": "mlp"})
    mlp = "model.config.projector.type=mlp"
    (tmp_path / "mine.yaml").write_text(
        "base: vicuna-7b-align\nmodel: {config: {projector: {type: mlp}}}\n"
        "optimization: {learning_rates: {projector: 1e-3, positions: 1e-3}}"
    )
    (tmp_path / "inherits.yaml").write_text("base: vicuna-7b-align\nmodel: {config: {projector: {type: mlp}}}")
    for recipe in (
        load_recipe("vicuna-7b-align", [mlp, "optimization.learning_rates.positions=1e-3"]),
        load_recipe("vicuna-7b-align", [mlp, "optimization.learning_rates={projector: 1e-3, positions: 1e-3}"]),
        load_recipe(str(tmp_path / "mine.yaml")),
        build_recipe(asdict(load_recipe(str(tmp_path / "mine.yaml")))),
    ):
        with pytest.raises(ValueError, match="no part 'positions' to train; .*it has vision_tower, projector"):
            with_present_groups(recipe, model, model.config)
    inherits = load_recipe(str(tmp_path / "inherits.yaml"))
    assert inherits.model.upsampler is None and inherits.optimization.optional_groups == ("positions",)
    again = build_recipe(yaml.safe_load(recipe_text(inherits)))
    assert list(with_present_groups(again, model, model.config).optimization.learning_rates) == ["projector"]
    named = load_recipe("vicuna-7b-align", [mlp, "model.upsampler=mine"])
    assert named.model.upsampler == "mine"  # rejected when the model is built
    alone = load_recipe("vicuna-7b-align", [mlp, "optimization.learning_rates={positions: 1e-3}"])
    optional = replace(alone.optimization, optional_groups=("positions",))
    with pytest.raises(ValueError, match="of positions the model has none"):
        with_present_groups(replace(alone, optimization=optional), model, model.config)


def test_config_of_a_model_that_starts_from_another():
    recipe = load_recipe("tiny-align", ["model.config.projector.levels=[1, 2]", "model.config.projector.query_grid=4"])
    assert planned_config(recipe.model).projector.query_grid == 4
    assert planned_config(recipe.model).projector.box_dtype == "float32"  # of tiny
    assert recipe.model.upsampler == "runs/tiny-upsampler"
    whole = load_recipe("tiny-align", ["model.config.projector={query_grid: 4}"])
    assert planned_config(whole.model).projector.query_grid == 4 and whole.model.config.projector.levels == (1, 2)
    for name, override, expected in (
        ("tiny-align", "model.config.layout=sequential", "layout has no effect: model.start .tiny. brings its own"),
        ("tiny-instruct", "model.config.projector.type=mlp", r"type has no effect.*model.renew=\[projector\]"),
    ):
        with pytest.raises(ValueError, match=expected):
            load_recipe(name, [override])
