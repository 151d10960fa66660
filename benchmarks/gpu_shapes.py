"""What benchmarks/gpu.py measures: model shapes, batch sizes and prompts, and random models of those shapes."""

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from gpu_lab import Lab

from remuda.engine.backend import load_kernels
from remuda.engine.checkpoint.names import expected_shapes
from remuda.engine.config import EngineConfig, ModelConfig
from remuda.engine.core import EngineCore
from remuda.engine.models.longhorn import Longhorn
from remuda.engine.start import build_core

# (sequences, tokens of each)
Prompts = tuple[int, int]


@dataclass(frozen=True)
class Sizes:
    """Sizes of every section."""

    models: tuple[str, ...]
    step_batches: tuple[int, ...]
    norm_rows: tuple[int, ...]
    scans: tuple[Prompts, ...]
    conv_scans: tuple[Prompts, ...]
    decode_batches: tuple[int, ...]
    prefills: tuple[Prompts, ...]
    # Requests, prompt tokens, new tokens; and how many of them run at a time.
    load: tuple[int, int, int]
    load_slots: tuple[int, ...]
    state_dtypes: tuple[torch.dtype, ...]
    million: int
    peer_batches: tuple[int, ...]
    peer_prefill: Prompts
    demo_tokens: int


FULL: Final = Sizes(
    models=("1.3B", "130M"),
    step_batches=(64, 256, 1024),
    norm_rows=(64, 256, 1024, 16384),
    scans=((1, 2048), (1, 16384), (1, 131072), (8, 2048), (64, 512)),
    conv_scans=((1, 16384), (64, 512)),
    decode_batches=(1, 8, 64, 256, 1024),
    prefills=((1, 512), (1, 2048), (8, 2048), (1, 16384), (1, 131072), (64, 512)),
    load=(1024, 512, 256),
    load_slots=(256, 1024),
    state_dtypes=(torch.float32, torch.bfloat16),
    million=1_000_000,
    peer_batches=(1, 64),
    peer_prefill=(1, 2048),
    demo_tokens=128,
)
TINY: Final = Sizes(
    models=("tiny",),
    step_batches=(3,),
    norm_rows=(3,),
    scans=((1, 9), (3, 5)),
    conv_scans=((2, 7),),
    decode_batches=(1, 3),
    prefills=((1, 20), (3, 9)),
    load=(6, 5, 4),
    load_slots=(3,),
    state_dtypes=(torch.float32, torch.bfloat16),
    million=200,
    peer_batches=(2,),
    peer_prefill=(1, 8),
    demo_tokens=8,
)
# Layers, hidden size, vocabulary.
_MODELS: Final = {"1.3B": (48, 2048, 50304), "130M": (24, 768, 50304), "tiny": (2, 32, 512)}


@dataclass(frozen=True)
class Options:
    """What the command line chose. num_layers: instead of the shape's own."""

    sizes: Sizes
    num_layers: int | None
    prefill_chunks: tuple[int | None, ...]
    max_batch_tokens: int | None
    temperature: float
    is_profiling: bool
    is_deterministic: bool

    @property
    def state_dtypes(self) -> tuple[torch.dtype, ...]:
        """Of decode steps and of the load; one for the deterministic mode, whose products they do not change."""
        return self.sizes.state_dtypes[:1] if self.is_deterministic else self.sizes.state_dtypes

    def core_options(self, chunk: int | None = None) -> dict[str, Any]:
        """What a server would be started with, prompts read in chunks of `chunk` tokens."""
        return {
            "prefill_chunk": chunk,
            "max_batch_tokens": self.max_batch_tokens,
            "deterministic": self.is_deterministic,
        }


def model_config(name: str, num_layers: int | None) -> ModelConfig:
    layers, hidden, vocab = _MODELS[name]
    return ModelConfig(
        model_type="longhorn",
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=num_layers or layers,
        intermediate_size=2 * hidden,
        time_step_rank=math.ceil(hidden / 16),
    )


def make_weights(config: ModelConfig, device: torch.device) -> dict[str, torch.Tensor]:
    """Random bf16 weights, the same ones every time, whose activations stay near 1 through all layers.

    The embedding is small beside what the layers add: otherwise a tied head repeats the last token.
    """
    generator = torch.Generator(device).manual_seed(0)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if "norm" in name or name.endswith(".D"):
            return torch.ones(shape, device=device)
        if name.endswith("dt_head.bias"):
            # Mamba's start: steps from 0.001 to 0.1, here before a sigmoid (Gu & Dao 2023, section 3.6).
            low, high = math.log(1e-3), math.log(1e-1)
            step = torch.rand(shape, generator=generator, device=device).mul_(high - low).add_(low).exp_()
            return torch.logit(step)
        values = torch.randn(shape, generator=generator, device=device)
        return values * (0.5 if "conv1d" in name else shape[-1] ** -0.5)

    return {name: draw(name, shape).bfloat16() for name, shape in expected_shapes(config).items()}


def make_model(
    lab: Lab,
    config: ModelConfig,
    state_dtype: torch.dtype,
    *,
    dtype: torch.dtype = torch.bfloat16,
    backend: str = "gpu",
    is_deterministic: bool = False,
) -> Longhorn:
    """A random model on the lab's device; in a dry run the reference's kernels, which are quicker there."""
    if lab.is_dry and is_deterministic:
        # Triton's interpreter has no bfloat16 products.
        dtype = torch.float32
    elif lab.is_dry:
        backend = "reference"
    kernels = load_kernels(backend, deterministic=is_deterministic)
    weights = make_weights(config, lab.device)
    return Longhorn(config, weights, kernels, device=lab.device, dtype=dtype, state_dtype=state_dtype)


def make_core(model: Longhorn, num_slots: int | None, **options: Any) -> EngineCore:
    """A core over a model, sized and warmed up as a server would be."""
    return build_core(model, EngineConfig(num_slots=num_slots, seed=0, **options))


def random_prompts(config: ModelConfig, num: int, length: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[list[int]] = torch.randint(config.vocab_size, (num, length), generator=generator).tolist()
    return ids


def gemm_flops(config: ModelConfig) -> int:
    """Floating-point operations a token of the layers' linear projections."""
    projections = ("in_proj.weight", "x_proj.weight", "dt_head.weight", "out_proj.weight")
    shapes = expected_shapes(config).items()
    return 2 * sum(math.prod(shape) for name, shape in shapes if name.endswith(projections))
