"""Turns a plan into tensors, runs the model, samples on the host. Decides nothing. On GPUs: device_runner.py."""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch

from remuda.engine.models.base import ForwardBatch, Model, Slots
from remuda.engine.packing import LOGPROB_ROWS, PackedStep, pack
from remuda.engine.pooling import pool_prompts
from remuda.engine.sampler import Sampler, token_logprobs
from remuda.engine.scheduler import Plan, PrefillChunk
from remuda.engine.sequence import Sequence, row_seed
from remuda.engine.state_pool import StatePool
from remuda.engine.wire import TokenLogprobs
from remuda.kernels.slots import PAD_SLOT

# What a sequence draws where its logits are not finite.
NO_TOKEN: Final = -1


@dataclass(frozen=True)
class StepResult:
    """What a step drew: `tokens[i]` for `sequences[i]`, or NO_TOKEN where its logits were not finite.

    logprobs: one entry per sequence, None where it asks for none; None where nobody does. Those of prompts
    are appended to their requests.
    """

    sequences: list[Sequence]
    tokens: list[int]
    logprobs: list[TokenLogprobs | None] | None = None


class PendingStep(Protocol):
    """A step under way."""

    def read(self) -> StepResult:
        """Wait for the step to end. Called once, and in the order of the steps."""
        ...


class Runner(Protocol):
    """Owns the model, the pool's tensors and the sampling, on one device."""

    def launch(self, plan: Plan) -> PendingStep:
        """Advance every sequence of the plan. After a prompt's last chunk its state is copied to all its slots."""
        ...

    def warm_up(self, num_decode: int, num_prefill: int, num_seqs: int = 1) -> None:
        """Run a step of pad rows, which compiles its kernels and touches no slot.

        num_prefill: tokens beside the `num_decode` rows, in `num_seqs` chunks of about equal length.
        """
        ...


@dataclass(frozen=True)
class _Done:
    result: StepResult

    def read(self) -> StepResult:
        return self.result


class HostRunner:
    """Draws tokens by `Sampler`, from logits that it waits for: a step has ended when `launch` returns."""

    def __init__(self, model: Model, pool: StatePool, sampler: Sampler) -> None:
        self._model = model
        self._pool = pool
        self._sampler = sampler
        self._device = model.device

    @torch.inference_mode()
    def launch(self, plan: Plan) -> PendingStep:
        """See `Runner.launch`."""
        step = pack(plan)
        hidden = self._model.forward(self._batch(plan, step), self._pool.layers)
        for chunk in step.chunks:
            if chunk.is_last:
                fork_state(self._pool, chunk)
                for sequence in chunk.request.sequences:
                    self._sampler.start(sequence, self._device)
        for chunk, rows in step.scored_chunks():
            self._score_prompt(chunk, hidden[rows])
        for pooled in pool_prompts(step, hidden):
            pooled.read()
        if not step.sequences:
            return _Done(StepResult([], []))
        if len(hidden) != len(step.sequences) or not np.array_equal(step.output_of, np.arange(len(hidden))):
            hidden = hidden[self._tensor(step.output_of)]
        sampled = self._sampler.sample(self._model.logits(hidden), step.sequences)
        tokens = [s.token if s.is_healthy else NO_TOKEN for s in sampled]
        for sequence, token in zip(step.sequences, tokens, strict=True):
            sequence.last_token = token
        logprobs = [s.logprobs for s in sampled] if any(s.logprobs is not None for s in sampled) else None
        return _Done(StepResult(step.sequences, tokens, logprobs))

    @torch.inference_mode()
    def warm_up(self, num_decode: int, num_prefill: int, num_seqs: int = 1) -> None:
        """See `Runner.warm_up`."""
        has_seeds = self._model.state_dtype != torch.float32
        batch = pad_batch(num_decode, num_prefill, num_seqs, self._device, has_seeds=has_seeds)
        self._model.logits(self._model.forward(batch, self._pool.layers))

    def _batch(self, plan: Plan, step: PackedStep) -> ForwardBatch:
        b = step.num_decode
        last_tokens = np.array([s.last_token for s in plan.decode], dtype=np.int64)
        slots, fresh = self._tensor(step.slots), self._tensor(step.fresh)
        seeds: torch.Tensor | None = None
        if self._model.state_dtype != torch.float32:
            rows = [row_seed(s.key, s.num_tokens) for s in plan.decode]
            seeds = self._tensor(np.array(rows + step.chunk_seeds(), dtype=np.int64))
        return ForwardBatch(
            token_ids=self._tensor(np.concatenate([last_tokens, step.prompt_ids])),
            num_decode=b,
            decode=Slots(slots[:b], slots[:b], fresh[:b]),
            prefill=Slots(slots[b:], slots[b:], fresh[b:]),
            cu_seqlens=self._tensor(step.cu_seqlens),
            output_rows=self._tensor(step.output_rows),
            decode_seeds=None if seeds is None else seeds[:b],
            prefill_seeds=None if seeds is None else seeds[b:],
        )

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    def _score_prompt(self, chunk: PrefillChunk, hidden: torch.Tensor) -> None:
        """Row i of `hidden` (end - start, M) predicts prompt token start + i + 1; the last may predict none."""
        request = chunk.request
        targets = request.prompt[chunk.start + 1 : chunk.end + 1].tolist()
        vocab_size = self._model.config.vocab_size
        for first in range(0, len(targets), LOGPROB_ROWS):
            block = targets[first : first + LOGPROB_ROWS]
            logits = self._model.logits(hidden[first : first + len(block)])[:, :vocab_size]
            logprobs = torch.log_softmax(logits, dim=1)
            request.is_healthy &= bool(torch.isfinite(logits.sum()))
            request.prompt_logprobs += token_logprobs(logprobs, block, request.params.prompt_logprobs or 0)


def fork_state(pool: StatePool, chunk: PrefillChunk) -> None:
    """Copy the state after a prompt's last chunk to the slots of the request's other sequences."""
    for sequence in chunk.request.sequences[1:]:
        if sequence.slot is not None:
            pool.copy(chunk.slot, sequence.slot)


def pad_batch(
    num_decode: int, num_prefill: int, num_seqs: int, device: torch.device, *, has_seeds: bool
) -> ForwardBatch:
    """A step of pad rows: `num_decode`, and `num_prefill` tokens in `num_seqs` chunks, whose last is wanted."""
    num_seqs = min(num_seqs, num_prefill)
    pads = torch.full((num_decode + num_seqs,), PAD_SLOT, dtype=torch.int32, device=device)
    slots = Slots(pads, pads, torch.zeros_like(pads, dtype=torch.bool))
    bounds = np.linspace(0, num_prefill, num_seqs + 1).astype(np.int32)
    rows = np.concatenate([np.arange(num_decode), num_decode + bounds[1:] - 1]).astype(np.int64)
    seeds = torch.zeros(len(pads), dtype=torch.int64, device=device)
    return ForwardBatch(
        token_ids=torch.zeros(num_decode + num_prefill, dtype=torch.int64, device=device),
        num_decode=num_decode,
        decode=Slots(*(t[:num_decode] for t in slots)),
        prefill=Slots(*(t[num_decode:] for t in slots)),
        cu_seqlens=torch.from_numpy(bounds).to(device),
        output_rows=torch.from_numpy(rows).to(device),
        decode_seeds=seeds[:num_decode] if has_seeds else None,
        prefill_seeds=seeds[num_decode:] if has_seeds else None,
    )
