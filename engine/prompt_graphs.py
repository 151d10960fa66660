"""Short prompts as CUDA graphs: launched kernel by kernel, they would keep the GPU waiting for its host.

A graph reads prompts of up to so many tokens and chunks from one flat buffer, and leaves the hidden state after
each chunk. What is padded belongs to no slot. Decode rows of the same step have a graph of their own.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch

from remuda.engine.models.base import ForwardBatch, Model, Slots
from remuda.engine.packing import Ints, PackedStep
from remuda.engine.state_pool import StatePool
from remuda.engine.step_graphs import StepGraphs
from remuda.engine.transfer import send
from remuda.kernels.slots import PAD_SLOT

# Up to here the host takes longer to launch the kernels of a prompt than the GPU to run them.
_TOKENS: Final = (64, 128, 256, 384, 512, 768, 1024, 1280, 1536, 1792, 2048)
_SEQS: Final = (1, 8, 32)


class PromptShape(NamedTuple):
    """What a graph holds: at most so many tokens of at most so many chunks."""

    num_tokens: int
    num_seqs: int


def prompt_shapes(max_tokens: int, max_seqs: int) -> tuple[PromptShape, ...]:
    """All shapes for steps of up to so many prompt tokens and chunks, the largest last."""
    return tuple(
        PromptShape(tokens, seqs)
        for tokens in _TOKENS
        if tokens <= max_tokens
        for seqs in _SEQS
        if seqs <= max_seqs
    )


@dataclass(frozen=True)
class _Views:
    """Where a shape's inputs lie in the flat buffer of int64; slots are offset so that zeros are pads."""

    token_ids: torch.Tensor
    bounds: torch.Tensor
    slots: torch.Tensor
    fresh: torch.Tensor
    seeds: torch.Tensor

    @classmethod
    def of(cls, words: torch.Tensor, shape: PromptShape) -> "_Views":
        T, S = shape
        ends = np.cumsum([T, S + 1, S, S, S]).tolist()
        return cls(*(words[start:end] for start, end in zip([0, *ends], ends, strict=False)))


class PromptGraphs:
    """Reads the prompts of steps that fit one of `shapes`, ascending; with none, of no step."""

    def __init__(self, model: Model, pool: StatePool, shapes: tuple[PromptShape, ...], *, has_seeds: bool) -> None:
        self._model = model
        self._pool = pool
        self.shapes = shapes
        self._has_seeds = has_seeds
        most = PromptShape(*np.max(shapes, axis=0).tolist()) if shapes else PromptShape(0, 0)
        self._words = torch.zeros(most.num_tokens + 4 * most.num_seqs + 1, dtype=torch.int64, device=model.device)
        self._hidden = torch.zeros(
            (most.num_seqs, model.config.hidden_size), dtype=model.dtype, device=model.device
        )
        self.graphs = StepGraphs(self._forward, shapes)

    def shape_of(self, step: PackedStep) -> PromptShape | None:
        """The least shape that holds the step's chunks; None where none does, or all hidden states are wanted."""
        if any(step.scored_chunks()) or any(step.pooled_chunks()):
            return None
        num_tokens, num_seqs = len(step.prompt_ids), len(step.chunks)
        fitting = (s for s in self.shapes if s.num_tokens >= num_tokens and s.num_seqs >= num_seqs)
        return min(fitting, default=None)

    def run(self, step: PackedStep, shape: PromptShape) -> torch.Tensor:
        """Advance the slots of the step's chunks. Returns the hidden states after them, (num_chunks, M)."""
        send(self._pack(step, shape), self._words)
        self.graphs.run(shape)
        return self._hidden[: len(step.chunks)]

    def token_ids(self, step: PackedStep) -> torch.Tensor:
        """Of the step that ran last, as they lie on the device, (T - num_decoding,)."""
        return self._words[: len(step.prompt_ids)]

    def _pack(self, step: PackedStep, shape: PromptShape) -> Ints:
        chunks, num_tokens = step.chunks, len(step.prompt_ids)
        words = np.zeros(shape.num_tokens + 4 * shape.num_seqs + 1, dtype=np.int64)
        views = _Views.of(torch.from_numpy(words), shape)
        words[:num_tokens] = step.prompt_ids
        num_seqs = len(chunks)
        bounds, slots = views.bounds.numpy(), views.slots.numpy()
        bounds[1:] = num_tokens
        bounds[1 : num_seqs + 1] = np.cumsum([c.end - c.start for c in chunks])
        slots[:num_seqs] = [c.slot - PAD_SLOT for c in chunks]
        views.fresh.numpy()[:num_seqs] = [c.start == 0 for c in chunks]
        if self._has_seeds:
            views.seeds.numpy()[:num_seqs] = step.chunk_seeds()
        return words

    def _forward(self, shape: PromptShape) -> None:
        views = _Views.of(self._words, shape)
        slots, fresh = views.slots.int() + PAD_SLOT, views.fresh.bool()
        batch = ForwardBatch(
            token_ids=views.token_ids,
            num_decode=0,
            decode=Slots(slots[:0], slots[:0], fresh[:0]),
            prefill=Slots(slots, slots, fresh),
            cu_seqlens=views.bounds.int(),
            output_rows=(views.bounds[1:] - 1).clamp(min=0),
            decode_seeds=views.seeds[:0] if self._has_seeds else None,
            prefill_seeds=views.seeds if self._has_seeds else None,
        )
        self._hidden[: shape.num_seqs] = self._model.forward(batch, self._pool.layers)
