"""Small random models for the engine's tests: any shape, any backend, no files."""

import torch

from remuda.engine.backend import load_kernels
from remuda.engine.checkpoint.names import expected_shapes
from remuda.engine.config import EngineConfig, ModelConfig
from remuda.engine.core import EngineCore
from remuda.engine.models.longhorn import Longhorn
from remuda.engine.start import build_core
from remuda.engine.tokenizer import SpecialTokens

CPU = torch.device("cpu")
# Small enough for Triton's interpreter: "gpu" stands for its kernels run there.
BACKENDS = ["reference", "cpu", "gpu"]


def tiny_config(**changes: object) -> ModelConfig:
    base: dict[str, object] = {
        "model_type": "longhorn",
        "vocab_size": 37,
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "intermediate_size": 20,
        "time_step_rank": 3,
        "state_size": 5,
    }
    return ModelConfig(**(base | changes))  # type: ignore[arg-type]


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * (0.5 if len(shape) > 1 else 1.0)
        for name, shape in expected_shapes(config).items()
    }


def make_model(backend: str = "cpu", config: ModelConfig | None = None, seed: int = 0) -> Longhorn:
    config = config or tiny_config()
    return Longhorn(
        config,
        random_weights(config, seed),
        load_kernels(backend),
        device=CPU,
        dtype=torch.float32,
        state_dtype=torch.float32,
    )


def make_core(
    backend: str = "cpu",
    *,
    num_slots: int = 4,
    max_batch_tokens: int = 64,
    prefill_chunk: int = 16,
    max_queue: int = 1000,
    eos: tuple[int, ...] = (),
    seed: int = 0,
) -> EngineCore:
    config = EngineConfig(
        num_slots=num_slots,
        max_batch_tokens=max_batch_tokens,
        prefill_chunk=prefill_chunk,
        max_queue=max_queue,
        seed=seed,
    )
    return build_core(make_model(backend), config, special=SpecialTokens(None, eos))
