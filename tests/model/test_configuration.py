"""The configuration is checked as a whole when it is made and when it is read."""

import json
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, PreTrainedConfig

from llava_uhd import LlavaUhdConfig, built_in
from llava_uhd.model.configuration_llava_uhd import LlavaUhdProjectorConfig
from tests.conftest import small_config

NAN, INFINITY = float("nan"), float("inf")


def changed(path: str, value) -> dict:
    """Values of a small config, one of them changed."""
    values = small_config().to_dict()
    *parents, name = path.split(".")
    inner = values
    for parent in parents:
        inner = inner[parent]
    inner[name] = value
    return values


@pytest.mark.parametrize(
    "path, value, complaint",
    [
        ("max_slice", 3, "no key 'max_slice': did you mean max_slices?"),
        ("projector.querygrid", 4, "no key 'querygrid': did you mean query_grid?"),
        ("projector.colour", "red", "no key 'colour': there are type, levels"),
        ("vision_config.pach_size", 14, "no key 'pach_size'"),
        ("text_config.hiden_size", 64, "no key 'hiden_size'"),
        ("max_slices", 0, "at least 1, got 0"),
        ("max_slices", "7", "expected int, got str"),
        ("max_slices", 10**9, "from 1 to 1024, got 1000000000"),
        ("layout", "spiral", "got spiral"),
        ("image_token_id", -1, "image_token_id must be a whole number from 0"),
        ("image_token_id", 14, "slice_separator_id and image_token_id must differ, both are 14"),
        ("slice_separator_id", 423, "from 0 to 422, got 423"),
        ("row_separator_id", -1, "from 0 to 422, got -1"),
        ("vision_feature_layer", 4, "from -4 to 3, got 4"),
        ("dtype", "float33", "dtype must be one of float64"),
        ("projector.levels", "124", "levels must be a list"),
        ("projector.levels", [1, True], "levels must be a list of whole numbers"),
        ("projector.num_attention_heads", 5, "text_config.hidden_size must be a multiple of .*, got 32 and 5"),
        ("projector.num_attention_heads", None, "hidden_size is 32, no multiple of 128"),
        ("projector.query_grid", 10**6, "query_grid must be a whole number from 1 to 128"),
        ("vision_config.model_type", "dinov2", "clip_vision_model or siglip_vision_model, got 'dinov2'"),
        ("text_config.model_type", "lama", "'lama' is unknown to transformers: did you mean llama?"),
        ("vision_config.num_hidden_layers", 10**9, "from 0 to 2048, got 1000000000"),
        ("vision_config.hidden_size", 17, "multiple of"),
        ("vision_config.patch_size", 1000, "patch_size must be a whole number from 1 to 56, got 1000"),
        ("vision_config.layer_norm_eps", NAN, "layer_norm_eps must be a positive number, got nan"),
        ("text_config.vocab_size", -5, "vocab_size must be a whole number"),
        ("text_config.num_key_value_heads", 3, "multiple of text_config.num_key_value_heads, got 4 and 3"),
        ("text_config.pad_token_id", 423, "pad_token_id must be a whole number from -423 to 422, got 423"),
        ("text_config.hidden_size", "wide", "expected int, got str"),
        ("text_config.rms_norm_eps", INFINITY, "rms_norm_eps"),
        ("text_config", 7, "text_config must be a config or a dict, got int"),
        ("projector", [1], "projector must be a config or a dict, got list"),
        ("id2label", {"a": 1}, "."),
    ],
)
def test_wrong_values_are_refused_when_a_config_is_made_and_read(tmp_path, path, value, complaint):
    values = changed(path, value)
    with pytest.raises(ValueError, match=complaint):
        LlavaUhdConfig(**values)
    (tmp_path / "config.json").write_text(json.dumps(values))
    for reader in (LlavaUhdConfig, AutoConfig):
        with pytest.raises(ValueError, match=complaint):
            reader.from_pretrained(tmp_path)


def test_options_of_a_call_are_checked_too(tmp_path):
    small_config().save_pretrained(tmp_path)
    assert LlavaUhdConfig.from_pretrained(tmp_path, max_slices=3).max_slices == 3
    with pytest.raises(ValueError, match="at least 1, got 0"):
        LlavaUhdConfig.from_pretrained(tmp_path, max_slices=0)


def test_sizes_of_the_mlp_and_of_towers_that_are_no_multiple_of_a_patch():
    """SigLIP So400m has 384 pixels and patches of 14."""
    values = changed("vision_config.image_size", 60)
    assert LlavaUhdConfig(**values).vision_config.image_size == 60
    values["projector"] |= {"type": "mlp", "num_attention_heads": None, "unshuffle_factor": 2}
    assert LlavaUhdConfig(**values).projector.type == "mlp"
    values["projector"]["unshuffle_factor"] = 5
    with pytest.raises(ValueError, match="unshuffle_factor must be a whole number from 1 to 4, got 5"):
        LlavaUhdConfig(**values)


def test_keys_that_transformers_writes_are_taken(tmp_path):
    """Those of this release, of version 4, and whatever a newer one writes."""
    config = LlavaUhdConfig.from_pretrained(built_in("tiny"))
    assert LlavaUhdConfig(**config.to_dict()).to_dict() == config.to_dict()
    legacy = {"torch_dtype": "float16", "use_cache": True, "torchscript": False, "pruned_heads": {}, "num_beams": 1}
    legacy |= {"_name_or_path": "x", "tokenizer_class": None, "bos_token_id": 1, "auto_map": {"AutoConfig": "a.B"}}
    assert LlavaUhdConfig(**config.to_dict() | legacy).max_slices == 7
    newer = config.to_dict() | {"transformers_version": "99.1", "quasi_flag": 1}
    assert LlavaUhdConfig(**newer).max_slices == 7
    with pytest.raises(ValueError, match="did you mean max_slices"):
        LlavaUhdConfig(**newer, max_slice=3)
    for base in (LlavaUhdConfig, LlavaUhdProjectorConfig):
        values = {field.name: field.default for field in fields(PreTrainedConfig)}
        base(**{name: value for name, value in values.items() if name != "transformers_version"})


NUMBERS = st.one_of(st.integers(-(10**12), 10**12), st.floats(), st.integers(-3, 70))
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_value_gives_a_config_or_one_line(data):
    values = small_config().to_dict()
    for _ in range(data.draw(st.integers(1, 3))):
        inner = values
        if (part := data.draw(st.sampled_from([None, "vision_config", "text_config", "projector"]))) is not None:
            inner = values[part] if isinstance(values[part], dict) else values
        # An earlier draw may have left a part without names.
        names = [st.sampled_from(sorted(inner, key=str))] if inner else []
        inner[data.draw(st.one_of(*names, st.text(max_size=9)))] = data.draw(JUNK)
    try:
        config = LlavaUhdConfig(**{str(key): value for key, value in values.items()})
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    else:
        config.validate_values()


def test_a_path_without_remote_code_names_its_auto_class(tmp_path):
    """Trainers that are given a path read the Auto class from `auto_map`."""
    values = small_config().to_dict()
    assert "auto_map" not in values
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.auto_map["AutoModelForImageTextToText"] == "modeling_llava_uhd.LlavaUhdForConditionalGeneration"
