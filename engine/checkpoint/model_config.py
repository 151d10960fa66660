"""From a checkpoint's configuration, in either form, to a ModelConfig and back. Reads no files, no torch."""

import math
from typing import Any, Final

import msgspec

from remuda.engine.checkpoint.json_file import describe
from remuda.engine.config import ModelConfig
from remuda.engine.errors import CheckpointError

MODEL_TYPE: Final = "longhorn"

_MAX_LAYERS: Final = 4096
_MAX_SIZE: Final = 2**24

# Written by transformers and its kin; none of it changes what the model computes.
_METADATA: Final = frozenset(
    {"architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "model_type"}
)
# Of transformers' MambaConfig: initialisation, training and ways of running.
_IGNORED_NATIVE: Final = frozenset(
    {
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "initializer_range",
        "rescale_prenorm_residual",
        "use_cache",
    }
    | {"time_step_scale", "time_step_min", "time_step_max", "time_step_init_scheme", "time_step_floor"}
    | {"use_mambapy", "use_associative_scan"}
)
# Of the authors' mixer: initialisation, and the choice between two computations of the same thing.
_IGNORED_SSM: Final = frozenset({"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path"})
# `fused_add_norm` chooses between two computations of the same thing.
_AUTHORS_KEYS: Final = frozenset(
    {
        "d_model",
        "d_intermediate",
        "n_layer",
        "vocab_size",
        "ssm_cfg",
        "attn_layer_idx",
        "attn_cfg",
        "rms_norm",
    }
    | {"residual_in_fp32", "fused_add_norm", "pad_vocab_size_multiple", "tie_embeddings", "d_state"}
)
_SSM_KEYS: Final = frozenset({"d_state", "d_conv", "expand", "dt_rank", "conv_bias", "bias", "layer"})


def parse_native(config: dict[str, Any], source: str) -> ModelConfig:
    """A native config.json: the names of transformers' `MambaConfig`, and model_type `longhorn`.

    source: what to call the file in messages. Raises CheckpointError for missing, unknown or wrong values.
    """
    read = _Reader(config, source)
    if config.get("model_type") != MODEL_TYPE:
        raise read.error("model_type", f"must be {MODEL_TYPE!r}")
    read.refuse_unknown(
        set(ModelConfig.__struct_fields__) | _METADATA | _IGNORED_NATIVE | {"expand", "hidden_act"}
    )
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise read.error("hidden_act", "must be 'silu'")
    hidden_size = read.size("hidden_size")
    expanded = read.expanded("expand", hidden_size)
    intermediate_size = read.size("intermediate_size", expanded)
    if "expand" in config and intermediate_size != expanded:
        raise read.error("intermediate_size", f"must be expand × hidden_size = {expanded}")
    return ModelConfig(
        model_type=MODEL_TYPE,
        vocab_size=read.size("vocab_size"),
        hidden_size=hidden_size,
        num_hidden_layers=read.size("num_hidden_layers", limit=_MAX_LAYERS),
        intermediate_size=intermediate_size,
        time_step_rank=read.rank("time_step_rank", hidden_size),
        state_size=read.size("state_size", 16),
        conv_kernel=read.size("conv_kernel", 4),
        use_bias=read.flag("use_bias", False),
        use_conv_bias=read.flag("use_conv_bias", True),
        rms_norm=read.flag("rms_norm", True),
        layer_norm_epsilon=read.positive("layer_norm_epsilon", 1e-5),
        residual_in_fp32=read.flag("residual_in_fp32", True),
        tie_word_embeddings=read.flag("tie_word_embeddings", True),
        pad_vocab_size_multiple=read.size("pad_vocab_size_multiple", 8),
    )


def parse_authors(config: dict[str, Any], source: str) -> ModelConfig:
    """The configuration of the authors' `LonghornConfig`, with the defaults of their code.

    A top-level `d_state`, which their training script leaves behind, must agree with `ssm_cfg`; it counts
    where `ssm_cfg` is silent. Keys of `ssm_cfg` that only initialise, or choose how to compute the same
    result, are ignored; so is `layer` where it names Longhorn. Raises CheckpointError.
    """
    read = _Reader(config, source)
    read.refuse_unknown(_AUTHORS_KEYS | _METADATA)
    for key in ("d_intermediate", "attn_layer_idx", "attn_cfg"):
        if config.get(key):
            raise read.error(key, "is not supported: a Longhorn model has neither MLP nor attention layers")
    ssm_cfg = config.get("ssm_cfg") or {}
    if not isinstance(ssm_cfg, dict):
        raise read.error("ssm_cfg", "must be an object")
    ssm = _Reader(ssm_cfg, f"{source}: ssm_cfg")
    ssm.refuse_unknown(_SSM_KEYS | _IGNORED_SSM)
    if str(ssm_cfg.get("layer", MODEL_TYPE)).lower() != MODEL_TYPE:
        raise ssm.error("layer", "must be 'Longhorn'")
    state_size = ssm.size("d_state", read.size("d_state", 16))
    if config.get("d_state", state_size) != state_size:
        raise read.error("d_state", f"contradicts ssm_cfg, which has {state_size}")
    hidden_size = read.size("d_model")
    return ModelConfig(
        model_type=MODEL_TYPE,
        vocab_size=read.size("vocab_size"),
        hidden_size=hidden_size,
        num_hidden_layers=read.size("n_layer", limit=_MAX_LAYERS),
        intermediate_size=ssm.expanded("expand", hidden_size),
        time_step_rank=ssm.rank("dt_rank", hidden_size),
        state_size=state_size,
        conv_kernel=ssm.size("d_conv", 4),
        use_bias=ssm.flag("bias", False),
        use_conv_bias=ssm.flag("conv_bias", True),
        rms_norm=read.flag("rms_norm", True),
        layer_norm_epsilon=1e-5,
        residual_in_fp32=read.flag("residual_in_fp32", True),
        tie_word_embeddings=read.flag("tie_embeddings", True),
        pad_vocab_size_multiple=read.size("pad_vocab_size_multiple", 8),
    )


def to_native(config: ModelConfig) -> dict[str, Any]:
    """The content of a native config.json; `parse_native` reads the same ModelConfig from it."""
    return {"architectures": ["LonghornForCausalLM"], **msgspec.structs.asdict(config)}


class _Reader:
    """Typed access to a configuration, with one clear error for each wrong value."""

    def __init__(self, config: dict[str, Any], source: str) -> None:
        self._config = config
        self._source = source

    def error(self, key: str, reason: str) -> CheckpointError:
        if key not in self._config:
            return CheckpointError(f"{self._source}: {key} is missing; it {reason}")
        return CheckpointError(f"{self._source}: {key} is {describe(self._config[key])}; it {reason}")

    def refuse_unknown(self, known: set[str] | frozenset[str]) -> None:
        for key in self._config:
            if key not in known:
                raise CheckpointError(f"{self._source}: unknown key {describe(key)}; it might change the result")

    def size(self, key: str, default: int | None = None, *, limit: int = _MAX_SIZE) -> int:
        value = self._config.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
            raise self.error(key, f"must be an integer in [1, {limit}]")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._config.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "must be true or false")
        return value

    def positive(self, key: str, default: float) -> float:
        value = self._config.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.error(key, "must be a positive number")
        return float(value)

    def expanded(self, key: str, hidden_size: int) -> int:
        """D = int(expand · d_model); the factor need not be whole."""
        size = int(self.positive(key, 2) * hidden_size)
        if not 1 <= size <= _MAX_SIZE:
            raise self.error(key, f"must make expand × hidden size an integer in [1, {_MAX_SIZE}]")
        return size

    def rank(self, key: str, hidden_size: int) -> int:
        """R; "auto" is ⌈d_model / 16⌉."""
        if self._config.get(key, "auto") == "auto":
            return math.ceil(hidden_size / 16)
        return self.size(key)
