"""Both forms of configuration: what they mean, that they survive a round trip, and what is refused."""

from typing import Any

import pytest

from remuda.engine.checkpoint.model_config import parse_authors, parse_native, to_native
from remuda.engine.checkpoint.names import canonical_names, expected_shapes
from remuda.engine.errors import CheckpointError
from tests.engine.checkpoint_files import AUTHORS_CONFIG, VARIANTS, authors_config

NATIVE = to_native(parse_authors(AUTHORS_CONFIG, "test"))


def test_authors_defaults() -> None:
    config = parse_authors({"d_model": 40, "n_layer": 3, "vocab_size": 50277}, "test")
    assert config == parse_authors(AUTHORS_CONFIG | {"d_model": 40, "n_layer": 3, "vocab_size": 50277}, "test")
    assert (config.intermediate_size, config.time_step_rank, config.state_size) == (80, 3, 16)
    assert (config.conv_kernel, config.use_conv_bias, config.use_bias) == (4, True, False)
    assert config.padded_vocab_size == 50280


@pytest.mark.parametrize(
    ("ssm_cfg", "field", "value"),
    [
        ({"d_state": 5}, "state_size", 5),
        ({"d_conv": 3}, "conv_kernel", 3),
        ({"expand": 3}, "intermediate_size", 72),
        ({"expand": 1.3}, "intermediate_size", 31),
        ({"dt_rank": 7}, "time_step_rank", 7),
        ({"dt_rank": "auto"}, "time_step_rank", 2),
        ({"conv_bias": False}, "use_conv_bias", False),
        ({"bias": True}, "use_bias", True),
    ],
)
def test_each_ssm_cfg_key(ssm_cfg: dict[str, Any], field: str, value: object) -> None:
    assert getattr(parse_authors(AUTHORS_CONFIG | {"ssm_cfg": ssm_cfg}, "test"), field) == value


@pytest.mark.parametrize(
    "changes",
    [
        {"ssm_cfg": {"dt_min": 0.1, "dt_max": 1.0, "dt_init": "constant", "dt_scale": 2, "dt_init_floor": 1e-3}},
        {"ssm_cfg": {"use_fast_path": True}},
        {"ssm_cfg": {"layer": "Longhorn"}},
        {"ssm_cfg": None},
        {"fused_add_norm": False},
        {"d_state": 16},
        {"d_state": 16, "ssm_cfg": {"d_state": 16}},
        {"architectures": ["x"], "torch_dtype": "float32"},
    ],
)
def test_what_changes_nothing(changes: dict[str, Any]) -> None:
    assert parse_authors(AUTHORS_CONFIG | changes, "test") == parse_authors(AUTHORS_CONFIG, "test")


def test_a_stray_d_state_counts_where_ssm_cfg_is_silent() -> None:
    assert parse_authors(AUTHORS_CONFIG | {"d_state": 8}, "test").state_size == 8


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"d_state": 32, "ssm_cfg": {"d_state": 16}}, r"d_state is 32; it contradicts ssm_cfg, which has 16"),
        ({"ssm_cfg": {"headdim": 64}}, r"ssm_cfg: unknown key 'headdim'"),
        ({"ssm_cfg": {"layer": "Mamba2"}}, r"layer is 'Mamba2'; it must be 'Longhorn'"),
        ({"ssm_cfg": [1]}, r"ssm_cfg is \[1\]"),
        ({"ssm_cfg": {"dt_rank": "full"}}, r"dt_rank is 'full'"),
        ({"ssm_cfg": {"expand": -1}}, r"expand is -1"),
        ({"ssm_cfg": {"expand": 1e-9}}, r"expand is 1e-09"),
        ({"ssm_cfg": {"expand": 1e300}}, r"expand is 1e\+300"),
        ({"ssm_cfg": {"conv_bias": 1}}, r"conv_bias is 1; it must be true or false"),
        ({"d_intermediate": 64}, r"d_intermediate is 64"),
        ({"attn_layer_idx": [1]}, r"attn_layer_idx is \[1\]"),
        ({"attn_cfg": {"num_heads": 8}}, r"attn_cfg is"),
        ({"n_head": 8}, r"unknown key 'n_head'"),
        ({"d_model": 0}, r"d_model is 0; it must be an integer in \[1, "),
        ({"d_model": 2.5}, r"d_model is 2\.5"),
        ({"d_model": True}, r"d_model is True"),
        ({"n_layer": 10**9}, r"n_layer is 1000000000"),
        ({"vocab_size": "many"}, r"vocab_size is 'many'"),
        ({"pad_vocab_size_multiple": 0}, r"pad_vocab_size_multiple is 0"),
        ({"rms_norm": "yes"}, r"rms_norm is 'yes'"),
        ({"tie_embeddings": None}, r"tie_embeddings is None"),
    ],
)
def test_authors_errors(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        parse_authors(AUTHORS_CONFIG | changes, "test")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(CheckpointError, match="vocab_size is missing"):
        parse_authors({"d_model": 8, "n_layer": 1}, "test")


@pytest.mark.parametrize("variant", VARIANTS)
def test_native_form_says_the_same(variant: str) -> None:
    config = parse_authors(authors_config(variant), "test")
    assert parse_native(to_native(config), "test") == config


def test_native_defaults_are_those_of_transformers() -> None:
    config = parse_native(
        {"model_type": "longhorn", "vocab_size": 8, "hidden_size": 20, "num_hidden_layers": 1, "expand": 2}
        | {"time_step_rank": "auto", "use_cache": True, "hidden_act": "silu", "eos_token_id": [0, 3]},
        "test",
    )
    assert (config.intermediate_size, config.time_step_rank, config.state_size) == (40, 2, 16)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "mamba2"}, r"model_type is 'mamba2'; it must be 'longhorn'"),
        ({"hidden_act": "gelu"}, r"hidden_act is 'gelu'"),
        ({"expand": 4}, r"intermediate_size is 48; it must be expand × hidden_size = 96"),
        ({"num_heads": 8}, r"unknown key 'num_heads'"),
        ({"layer_norm_epsilon": 0}, r"layer_norm_epsilon is 0"),
        ({"layer_norm_epsilon": float("nan")}, r"layer_norm_epsilon is nan"),
    ],
)
def test_native_errors(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        parse_native(NATIVE | changes, "test")


def test_shapes_of_the_largest_variant() -> None:
    shapes = expected_shapes(parse_authors(authors_config("everything") | {"n_layer": 1}, "test"))
    mixer = "backbone.layers.0.mixer"
    assert shapes == {
        "backbone.embedding.weight": (16, 24),
        "backbone.layers.0.norm.weight": (24,),
        "backbone.layers.0.norm.bias": (24,),
        f"{mixer}.in_proj.weight": (144, 24),
        f"{mixer}.in_proj.bias": (144,),
        f"{mixer}.conv1d.weight": (72, 1, 2),
        f"{mixer}.x_proj.weight": (11, 72),
        f"{mixer}.dt_head.weight": (72, 5),
        f"{mixer}.dt_head.bias": (72,),
        f"{mixer}.D": (72,),
        f"{mixer}.out_proj.weight": (24, 72),
        f"{mixer}.out_proj.bias": (24,),
        "backbone.norm_f.weight": (24,),
        "backbone.norm_f.bias": (24,),
        "lm_head.weight": (16, 24),
    }


@pytest.mark.parametrize(
    "name",
    ["x", "transformer.x", "_orig_mod.transformer.x", "module._orig_mod.transformer.x", "transformer._orig_mod.x"],
)
def test_prefixes_are_removed(name: str) -> None:
    assert canonical_names([name], "test") == {"x": name}


def test_two_names_of_one_tensor() -> None:
    with pytest.raises(CheckpointError, match=r"'x' and 'module\.x' are the same tensor"):
        canonical_names(["x", "module.x"], "test")
