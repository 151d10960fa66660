"""Turns a plan into flat tensors, runs the model, and samples. Decides nothing."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from remuda.engine.models.base import ForwardBatch, Model, Slots
from remuda.engine.sampler import Sampled, Sampler, token_logprobs
from remuda.engine.scheduler import Plan, PrefillChunk
from remuda.engine.sequence import Sequence
from remuda.engine.state_pool import StatePool
from remuda.kernels.slots import PAD_SLOT

# Rows of logits held at once for prompt log-probabilities: 50 MB each for a vocabulary of 50,000.
_LOGPROB_ROWS: Final = 256


@dataclass(frozen=True)
class StepResult:
    """The tokens that a step drew. Prompt log-probabilities are appended to their requests."""

    sampled: list[tuple[Sequence, Sampled]]


class Runner:
    """Owns the model, the pool's tensors and the sampler, on one device."""

    def __init__(self, model: Model, pool: StatePool, sampler: Sampler) -> None:
        self._model = model
        self._pool = pool
        self._sampler = sampler
        self._device = model.device

    @torch.inference_mode()
    def run(self, plan: Plan) -> StepResult:
        """Advance every sequence of the plan. After a prompt's last chunk its state is copied to all its slots."""
        batch = self._pack(plan)
        hidden = self._model.forward(batch, self._pool.layers)
        for chunk in plan.prefill:
            if chunk.is_last:
                self._fork(chunk)
        row = len(plan.decode)
        rows, sequences = list(range(row)), list(plan.decode)
        for chunk in plan.prefill:
            num_rows = _num_output_rows(chunk)
            if chunk.request.params.prompt_logprobs is not None:
                self._read_prompt_logprobs(chunk, hidden[row : row + num_rows])
            row += num_rows
            if chunk.is_last and chunk.request.params.max_tokens > 0:
                live = [s for s in chunk.request.sequences if not s.is_finished]
                rows += [row - 1] * len(live)
                sequences += live
        if not rows:
            return StepResult([])
        if rows != list(range(len(hidden))):
            hidden = hidden[torch.tensor(rows, device=self._device)]
        sampled = self._sampler.sample(self._model.logits(hidden), sequences)
        return StepResult(list(zip(sequences, sampled, strict=True)))

    @torch.inference_mode()
    def warm_up(self, num_decode: int, num_prefill: int) -> None:
        """Run a step of pad rows, which compiles its kernels and touches no slot."""
        num_tokens = num_decode + num_prefill
        pads = torch.full((num_decode + (num_prefill > 0),), PAD_SLOT, dtype=torch.int32, device=self._device)
        fresh = torch.zeros_like(pads, dtype=torch.bool)
        slots = Slots(pads, pads, fresh)
        batch = ForwardBatch(
            token_ids=torch.zeros(num_tokens, dtype=torch.int64, device=self._device),
            num_decode=num_decode,
            decode=Slots(*(t[:num_decode] for t in slots)),
            prefill=Slots(*(t[num_decode:] for t in slots)),
            cu_seqlens=torch.tensor([0, num_prefill], dtype=torch.int32, device=self._device),
            output_rows=torch.arange(num_tokens, device=self._device),
        )
        self._model.logits(self._model.forward(batch, self._pool.layers))

    def _pack(self, plan: Plan) -> ForwardBatch:
        num_decode = len(plan.decode)
        pieces: list[np.ndarray] = [np.array([s.last_token for s in plan.decode], dtype=np.int64)]
        pieces += [chunk.request.prompt[chunk.start : chunk.end] for chunk in plan.prefill]
        slots = [s.slot for s in plan.decode] + [c.request.sequences[0].slot for c in plan.prefill]
        fresh = [False] * num_decode + [c.start == 0 for c in plan.prefill]
        bounds = np.cumsum([0] + [c.end - c.start for c in plan.prefill], dtype=np.int32)
        rows = list(range(num_decode))
        for chunk, end in zip(plan.prefill, bounds[1:].tolist(), strict=True):
            rows += range(num_decode + end - _num_output_rows(chunk), num_decode + end)
        slots_tensor = self._tensor(np.array(slots, dtype=np.int32))
        fresh_tensor = self._tensor(np.array(fresh, dtype=np.bool_))
        return ForwardBatch(
            token_ids=self._tensor(np.concatenate(pieces, dtype=np.int64)),
            num_decode=num_decode,
            decode=Slots(slots_tensor[:num_decode], slots_tensor[:num_decode], fresh_tensor[:num_decode]),
            prefill=Slots(slots_tensor[num_decode:], slots_tensor[num_decode:], fresh_tensor[num_decode:]),
            cu_seqlens=self._tensor(bounds),
            output_rows=self._tensor(np.array(rows, dtype=np.int64)),
        )

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    def _fork(self, chunk: PrefillChunk) -> None:
        first, *others = chunk.request.sequences
        assert first.slot is not None
        for sequence in others:
            assert sequence.slot is not None
            self._pool.copy(first.slot, sequence.slot)
        for sequence in chunk.request.sequences:
            self._sampler.start(sequence, self._device)

    def _read_prompt_logprobs(self, chunk: PrefillChunk, hidden: torch.Tensor) -> None:
        """Row i of `hidden` (end - start, M) predicts prompt token start + i + 1; the last may predict none."""
        request = chunk.request
        targets = request.prompt[chunk.start + 1 : chunk.end + 1].tolist()
        vocab_size = self._model.config.vocab_size
        for first in range(0, len(targets), _LOGPROB_ROWS):
            block = targets[first : first + _LOGPROB_ROWS]
            logits = self._model.logits(hidden[first : first + len(block)])[:, :vocab_size]
            logprobs = torch.log_softmax(logits, dim=1)
            request.is_healthy &= bool(torch.isfinite(logits.sum()))
            request.prompt_logprobs += token_logprobs(logprobs, block, request.params.prompt_logprobs or 0)


def _num_output_rows(chunk: PrefillChunk) -> int:
    """Hidden rows that a chunk is asked for: all for prompt log-probabilities, else the last of the prompt."""
    if chunk.request.params.prompt_logprobs is not None:
        return chunk.end - chunk.start
    return int(chunk.is_last)
