"""What every recurrent model gives the engine: its state, declared once, and one forward over a packed batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from remuda.engine.backend import KernelBackend
from remuda.engine.config import ModelConfig

LayerState = dict[str, torch.Tensor]


@dataclass(frozen=True)
class StateTensor:
    """One tensor of one layer's state: its canonical shape, and the shape in which the backend stores it."""

    name: str
    shape: tuple[int, ...]
    storage_shape: tuple[int, ...]
    dtype: torch.dtype
    to_canonical: Callable[[torch.Tensor], torch.Tensor]
    from_canonical: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class StateSpec:
    """The state of one sequence: `layers[i]` lists the tensors of layer i, in the order of storage."""

    layers: tuple[tuple[StateTensor, ...], ...]


class Slots(NamedTuple):
    """For S sequences: pool rows read and written, (S,) int32, and who starts from the zero state, (S,) bool."""

    src: torch.Tensor
    dst: torch.Tensor
    fresh: torch.Tensor


@dataclass(frozen=True)
class ForwardBatch:
    """One step: B decode rows of one token each, then P prefill chunks, packed without padding.

    token_ids: (T,) int64. decode: slots of the B rows. prefill: slots of the P chunks. cu_seqlens: (P+1,)
    int32, the chunks' bounds among the T - B rows after the decode rows. output_rows: (L,) int64, the rows
    whose hidden state is wanted; None: all. decode_seeds (B,), prefill_seeds (P,): int64, for the stochastic
    rounding of 16-bit states; None where they are float32.
    """

    token_ids: torch.Tensor
    num_decode: int
    decode: Slots
    prefill: Slots
    cu_seqlens: torch.Tensor
    output_rows: torch.Tensor | None
    decode_seeds: torch.Tensor | None = None
    prefill_seeds: torch.Tensor | None = None


class Model(Protocol):
    """A model whose weights are loaded. Forward advances the slots named by the batch, and nothing else."""

    config: ModelConfig
    state_spec: StateSpec
    num_parameters: int
    backend: KernelBackend
    device: torch.device
    dtype: torch.dtype
    state_dtype: torch.dtype

    def forward(self, batch: ForwardBatch, state: list[LayerState]) -> torch.Tensor:
        """Hidden states after the last norm, (L, hidden_size)."""
        ...

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """(L, hidden_size) to (L, padded_vocab_size) float32, in `out` where it is given."""
        ...
