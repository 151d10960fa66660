"""Small random models for the engine's tests: any shape, any backend, no files."""

from dataclasses import replace

import torch

from remuda.engine.backend import load_kernels
from remuda.engine.checkpoint.names import expected_shapes
from remuda.engine.config import EngineConfig, ModelConfig
from remuda.engine.core import EngineCore
from remuda.engine.grammar_compiler import GrammarCompiler
from remuda.engine.models.longhorn import Longhorn
from remuda.engine.start import build_core
from remuda.engine.tokenizer import SpecialTokens
from remuda.kernels.sample import reference as reference_sample

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


def make_model(
    backend: str = "cpu",
    config: ModelConfig | None = None,
    seed: int = 0,
    *,
    has_table: bool | None = None,
    deterministic: bool = False,
    state_dtype: torch.dtype = torch.float32,
) -> Longhorn:
    """has_table: sample by a table of slots, as on a GPU; by default where the backend does."""
    config = config or tiny_config()
    kernels = load_kernels(backend, deterministic=deterministic)
    if has_table is False:
        kernels = replace(kernels, sample=None)
    elif has_table and kernels.sample is None:
        kernels = replace(kernels, sample=reference_sample)
    return Longhorn(
        config, random_weights(config, seed), kernels, device=CPU, dtype=torch.float32, state_dtype=state_dtype
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
    depth: int = 0,
    has_table: bool | None = None,
    model: Longhorn | None = None,
    grammars: GrammarCompiler | None = None,
) -> EngineCore:
    """depth: steps under way, which ask for a table of slots."""
    config = EngineConfig(
        num_slots=num_slots,
        max_batch_tokens=max_batch_tokens,
        prefill_chunk=prefill_chunk,
        max_queue=max_queue,
        seed=seed,
    )
    model = model or make_model(backend, has_table=True if depth else has_table)
    return build_core(model, config, special=SpecialTokens(None, eos), depth=depth, grammars=grammars)
