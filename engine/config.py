"""Configuration: what the checkpoint says of the model, and what the user says of the engine. No torch here."""

from typing import Literal, get_args

import msgspec

from remuda.engine.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
Backend = Literal["auto", "reference", "cpu", "gpu"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hyperparameters of a recurrent model, under the field names of transformers' `MambaConfig`.

    They come from the checkpoint and never from flags. `intermediate_size` is D, `state_size` N,
    `conv_kernel` W and `time_step_rank` R of the design's glossary.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    time_step_rank: int
    state_size: int = 16
    conv_kernel: int = 4
    use_bias: bool = False
    use_conv_bias: bool = True
    rms_norm: bool = True
    layer_norm_epsilon: float = 1e-5
    residual_in_fp32: bool = True
    tie_word_embeddings: bool = True
    pad_vocab_size_multiple: int = 8

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: `vocab_size` rounded up. The surplus ids are never sampled."""
        multiple = self.pad_vocab_size_multiple
        return -(-self.vocab_size // multiple) * multiple


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the user chooses. None and "auto" are resolved against the model and the machine at start.

    model: `demo`, a directory, a `.pt` file or a hub repository id. state_memory: bytes for the state
    pool, instead of num_slots. max_batch_tokens: tokens of one step, decode rows first. prefill_chunk:
    tokens of one prompt in one step. max_queue: requests that may wait for a slot. gpu_memory_utilization:
    the share of a GPU's memory that may be used, by everybody. deterministic: a request's tokens have the
    same bits alone, in any batch and in any chunks.
    """

    model: str = "demo"
    tokenizer: str | None = None
    device: Device = "auto"
    backend: Backend = "auto"
    dtype: Dtype = "auto"
    state_dtype: Dtype = "auto"
    num_slots: int | None = None
    state_memory: int | None = None
    max_batch_tokens: int | None = None
    prefill_chunk: int | None = None
    max_queue: int = 4096
    seed: int | None = None
    num_threads: int | None = None
    gpu_memory_utilization: float = 0.9
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("device", Device), ("backend", Backend), ("dtype", Dtype), ("state_dtype", Dtype)):
            choice, allowed = getattr(self, name), get_args(kind)
            if choice not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {choice!r}")
        for name in (
            "num_slots",
            "state_memory",
            "max_batch_tokens",
            "prefill_chunk",
            "max_queue",
            "num_threads",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(f"gpu_memory_utilization must be in (0, 1], not {self.gpu_memory_utilization}")
        if self.deterministic and self.state_dtype not in ("auto", "float32"):
            raise ConfigError(f"deterministic needs state_dtype float32, not {self.state_dtype}")
        if self.num_slots is not None and self.state_memory is not None:
            raise ConfigError(
                f"give num_slots ({self.num_slots}) or state_memory ({self.state_memory} bytes), not both"
            )


class MemoryUse(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of the GPU by what holds them; all but `total`, `limit` and `left` add up to what is in use.

    limit: gpu_memory_utilization of the total. others: the CUDA context, other processes, and what cannot be
    told apart from them. workspace: activations, logits and staging of the largest step. table: what sampling
    keeps of each slot. graphs: CUDA graphs and what the driver holds for them. left: below the limit.
    """

    total: int
    limit: int
    others: int
    weights: int
    workspace: int
    table: int
    pool: int
    graphs: int
    left: int


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a started engine is: every "auto" resolved. Sent to the API workers with "ready".

    weights_fingerprint: `checkpoint.fingerprint` of the weights. hidden_size: d_model.
    """

    model: str
    model_type: str
    num_parameters: int
    num_layers: int
    hidden_size: int
    device: str
    backend: str
    dtype: str
    state_dtype: str
    num_slots: int
    slot_bytes: int
    vocab_size: int
    max_batch_tokens: int
    prefill_chunk: int
    max_queue: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    load_seconds: float
    weights_fingerprint: str = ""
    deterministic: bool = False
    memory: MemoryUse | None = None
