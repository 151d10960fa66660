"""Runs a state-carrying op of one backend on a hostile pool, and checks what it may not touch.

The pool is one uint8 allocation as in the engine: slots have a stride and an offset, and everything that
is not a state given by the test is NaN, including the columns beside the rows of the inputs.
"""

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from remuda.kernels.slots import PAD_SLOT

NUM_SLOTS = 9
# One rounding to bfloat16, which Triton's interpreter does by cutting bits off.
BFLOAT16 = 2**-7
MARGIN = 64  # floats between the states of neighbouring slots, and before the first


def load(op: str, backend: str) -> Any:
    """The module of `backend` ("reference", "cpu" or "gpu") for one op."""
    return importlib.import_module(f"remuda.kernels.{op}.{backend}")


def device_of(backend: str) -> torch.device:
    """Where tensors of a backend live; Triton kernels are interpreted on the CPU where there is no GPU."""
    return torch.device("cuda" if backend == "gpu" and torch.cuda.is_available() else "cpu")


def ragged(rows: Tensor) -> Tensor:
    """The same values as a view into a wider matrix of NaN, row stride != columns."""
    wide = rows.new_full((rows.shape[0], rows.shape[1] + 7), torch.nan)
    wide[:, 3:-4] = rows
    return wide[:, 3:-4]


@dataclass(frozen=True)
class Longhorn:
    """The recurrence with D channels and state size N."""

    D: int
    N: int
    name = "longhorn"

    def rows(self, T: int, seed: int = 0) -> tuple[Tensor, ...]:
        """x, dt, k, q, z of T tokens."""
        draw = torch.Generator().manual_seed(seed)
        widths = (self.D, self.D, self.N, self.N, self.D)
        return tuple(torch.randn(T, width, generator=draw) for width in widths)

    def states(self, num_slots: int) -> Tensor:
        """A canonical state per slot."""
        return torch.randn(num_slots, self.D, self.N, generator=torch.Generator().manual_seed(7))

    def call(self, backend: str, rows: list[Tensor], state: Tensor, index: list[Tensor], **options: Any) -> Tensor:
        """`step` for three index tensors, `prefill` for four."""
        skip = torch.randn(self.D, generator=torch.Generator().manual_seed(8)).to(state.device)
        module = load(self.name, backend)
        out: Tensor = (module.step if len(index) == 3 else module.prefill)(*rows, skip, state, *index, **options)
        return out


@dataclass(frozen=True)
class Conv:
    """The convolution with D channels and W taps."""

    D: int
    W: int
    name = "conv"

    def rows(self, T: int, seed: int = 0) -> tuple[Tensor, ...]:
        """x of T tokens."""
        return (torch.randn(T, self.D, generator=torch.Generator().manual_seed(seed)),)

    def states(self, num_slots: int) -> Tensor:
        """A canonical state per slot."""
        return torch.randn(num_slots, self.D, self.W - 1, generator=torch.Generator().manual_seed(7))

    def call(self, backend: str, rows: list[Tensor], state: Tensor, index: list[Tensor], **options: Any) -> Tensor:
        """`step` for three index tensors, `prefill` for four."""
        draw = torch.Generator().manual_seed(8)
        weight, bias = torch.randn(self.D, 1, self.W, generator=draw), torch.randn(self.D, generator=draw)
        module = load(self.name, backend)
        packed = module.pack(weight.to(state.device), bias.to(state.device))
        out: Tensor = (module.step if len(index) == 3 else module.prefill)(*rows, packed, state, *index, **options)
        return out


Op = Longhorn | Conv


@dataclass(frozen=True)
class Pack:
    """Sequences of one call: how many tokens each, and its slots."""

    lengths: tuple[int, ...]
    src: tuple[int, ...]
    dst: tuple[int, ...]
    fresh: tuple[bool, ...]

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)


def one(length: int, slot: int = 2) -> Pack:
    """One sequence that goes on from the state in its slot."""
    return Pack((length,), (slot,), (slot,), (False,))


class Pool:
    """`NUM_SLOTS` states of one op for one backend; those of `poisoned` slots, and all gaps, are NaN."""

    def __init__(self, op: Op, backend: str, poisoned: tuple[int, ...] = ()) -> None:
        self.op, self.backend, self.device = op, backend, device_of(backend)
        module = load(op.name, backend)
        canonical = op.states(NUM_SLOTS)
        canonical[list(poisoned)] = torch.nan
        initial = module.from_canonical(canonical)
        shape = module.state_shape(op.D, canonical.shape[-1] + (op.name == "conv"))
        assert initial.shape == (NUM_SLOTS, *shape)
        size = initial[0].numel() + MARGIN
        self.bytes = torch.empty(4 * (MARGIN + NUM_SLOTS * size), dtype=torch.uint8, device=self.device)
        floats = self.bytes.view(torch.float32)
        floats.fill_(torch.nan)
        self.state = floats[MARGIN:].view(NUM_SLOTS, size)[:, : size - MARGIN].unflatten(1, shape)
        self.state.copy_(initial)

    def canonical(self) -> Tensor:
        """(NUM_SLOTS, D, n) on the CPU."""
        state: Tensor = load(self.op.name, self.backend).to_canonical(self.state, self.op.D)
        return state.cpu()

    def run(self, rows: tuple[Tensor, ...], pack: Pack, *, by_step: bool = False, **options: Any) -> Tensor:
        """Outputs (T, D) on the CPU; asserts that only destinations changed, and padding gave zeros."""
        before = self.bytes.clone()
        index = [
            torch.tensor(pack.src, dtype=torch.int32, device=self.device),
            torch.tensor(pack.dst, dtype=torch.int32, device=self.device),
            torch.tensor(pack.fresh, dtype=torch.bool, device=self.device),
        ]
        if by_step:
            assert set(pack.lengths) <= {1}
        else:
            bounds = torch.tensor((0, *pack.lengths)).cumsum(0).to(self.device, torch.int32)
            index.insert(0, bounds)
        inputs = [ragged(row.to(self.device)) for row in rows]
        out = self.op.call(self.backend, inputs, self.state, index, **options).cpu()

        assert out.shape == rows[0].shape
        assert out.is_contiguous()
        live = [slot for slot in pack.dst if slot != PAD_SLOT]
        kept = Pool.__new__(Pool)
        kept.bytes = before
        kept.state = before.view(torch.float32).as_strided(
            self.state.shape, self.state.stride(), self.state.storage_offset()
        )
        kept.state[live] = self.state[live]
        assert torch.equal(kept.bytes, self.bytes), "memory beside the destination slots changed"
        start = 0
        for length, slot in zip(pack.lengths, pack.dst, strict=True):
            if slot == PAD_SLOT:
                assert torch.equal(out[start : start + length], torch.zeros(length, self.op.D))
            start += length
        return out


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    """Largest error below `tolerance` of the largest magnitude; NaN nowhere."""
    scale = max(expected.abs().max().item(), 1e-30)
    error = (actual - expected).abs().max().item()
    assert error <= tolerance * scale, f"error {error:.3g}, of {scale:.3g}"


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal bit for bit, NaN to NaN."""
    assert torch.equal(actual.contiguous().view(torch.int32), expected.contiguous().view(torch.int32))
