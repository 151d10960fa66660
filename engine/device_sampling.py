"""Sampling that stays on the device: starts sequences in the table of slots, and draws by the backend."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from remuda.engine.guide import masks
from remuda.engine.packing import PackedStep
from remuda.engine.sequence import SEED_STRIDE, Sequence
from remuda.engine.transfer import upload
from remuda.kernels.sample.table import KEY, WORDS, SamplingTable, encode, make_table
from remuda.kernels.slots import PAD_SLOT


@dataclass(frozen=True)
class Starts:
    """What a step does to the table before it draws.

    slots: (K,) int32 and rows: (K, WORDS) int32 of sequences that begin. marked: (T - num_decoding,) int32, the
    slot of each prompt token whose penalties count it, else PAD_SLOT; empty where none does. src, dst: (F,)
    int64, slots whose counts are copied to a sibling's.
    """

    slots: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]
    marked: npt.NDArray[np.int32]
    src: npt.NDArray[np.int64]
    dst: npt.NDArray[np.int64]

    def arrays(self) -> list[npt.NDArray[Any]]:
        """All fields, in this order."""
        return [self.slots, self.rows, self.marked, self.src, self.dst]


class DeviceSampling:
    """The table of one pool's slots, and the kernels that draw by it."""

    def __init__(self, kernels: ModuleType, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self._kernels = kernels
        self.table: SamplingTable = make_table(num_slots, vocab_size, device)
        # A word pair is the key, low half first, as this machine stores an int64.
        self._keys = self.table.packed.view(torch.int64)[:, KEY // 2]

    def last_tokens(self, slots: torch.Tensor) -> torch.Tensor:
        """What was drawn last for slots (B,) int32; of pad rows any token. Returns (B,) int64."""
        return self.table.last_token.index_select(0, slots.clamp(min=0))

    def seeds(self, slots: torch.Tensor) -> torch.Tensor:
        """`row_seed` at the number of tokens drawn for slots (B,) int32, (B,) int64."""
        slots = slots.clamp(min=0)
        position = self.table.num_tokens.index_select(0, slots)
        return torch.add(self._keys.index_select(0, slots), position.long(), alpha=SEED_STRIDE)

    def sample(
        self, logits: torch.Tensor, slots: torch.Tensor, work: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (R,) int64 and healthy (R,) bool for rows of logits (R, V or more), as the kernels' reference."""
        tokens, healthy = self._kernels.sample(logits, slots, self.table, work)
        return tokens, healthy

    def set_masks(self, sequences: list[Sequence]) -> None:
        """Before they draw: what those of `sequences` that follow a grammar may draw next."""
        guided = [(s, s.guide) for s in sequences if s.guide is not None]
        if guided:
            slots = np.array([sequence.slot for sequence, _ in guided], dtype=np.int64)
            found = masks([guide for _, guide in guided], [sequence.num_tokens for sequence, _ in guided])
            index, rows = upload([slots, found.view(np.int32)], self.table.masks.device)
            self.table.masks.index_copy_(0, index, rows)

    def warm_up(self, pads: torch.Tensor) -> None:
        """Run what begins a sequence, for pad rows (R,) int32."""
        self._kernels.reset(self.table, pads)
        self._kernels.mark_prompt(self.table, pads.long().clamp(min=0), pads)

    def start(self, starts: list[torch.Tensor], prompt_ids: torch.Tensor) -> None:
        """Do what `Starts` says, by its fields on the device; prompt_ids: (T - num_decoding,) int64."""
        slots, rows, marked, src, dst = starts
        if len(slots):
            self.table.packed.index_copy_(0, slots.long(), rows)
            self._kernels.reset(self.table, slots)
        if len(marked):
            self._kernels.mark_prompt(self.table, prompt_ids, marked)
        if len(src):
            self.table.counts.index_copy_(0, dst, self.table.counts.index_select(0, src))


def plan_starts(step: PackedStep) -> Starts:
    """Sequence 0 of a request begins with its prompt, the others once that is read."""
    begun: list[tuple[int, Sequence]] = []
    marked: list[npt.NDArray[np.int32]] = []
    copies: list[tuple[int, int]] = []
    is_marked = False
    for chunk in step.chunks:
        request = chunk.request
        penalised = request.params.is_penalised
        is_marked |= penalised
        marked.append(np.full(chunk.end - chunk.start, chunk.slot if penalised else PAD_SLOT, dtype=np.int32))
        if chunk.start == 0:
            begun.append((chunk.slot, request.sequences[0]))
        if chunk.is_last:
            others = [(s.slot, s) for s in request.sequences[1:] if s.slot is not None]
            begun += others
            copies += [(chunk.slot, slot) for slot, _ in others if penalised]
    pairs = np.array(copies, dtype=np.int64).reshape(-1, 2)
    return Starts(
        slots=np.array([slot for slot, _ in begun], dtype=np.int32),
        rows=np.array([_encode(s) for _, s in begun], dtype=np.int32).reshape(-1, WORDS),
        marked=np.concatenate(marked) if is_marked else np.zeros(0, dtype=np.int32),
        src=pairs[:, 0],
        dst=pairs[:, 1],
    )


def _encode(sequence: Sequence) -> npt.NDArray[np.int32]:
    params = sequence.request.params
    return encode(
        key=sequence.key,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=params.logit_bias,
        held_ids=tuple(sequence.request.stop_ids),
        # A guide's masks hold the stop ids back by themselves.
        min_tokens=params.min_tokens if sequence.guide is None else 0,
        is_guided=sequence.guide is not None,
    )
