"""Causal depthwise convolution + SiLU in plain torch, a loop over time: the definition, not for speed."""

import torch
from torch import Tensor

from remuda.kernels.slots import PAD_SLOT

# Taps (D, W), oldest first, and bias (D,), float32.
PackedConv = tuple[Tensor, Tensor]


def pack(weight: Tensor, bias: Tensor | None) -> PackedConv:
    """weight: (D, 1, W) as in `torch.nn.Conv1d`; bias: (D,) or None for zero."""
    taps = weight[:, 0].float()
    return taps, taps.new_zeros(len(taps)) if bias is None else bias.float()


def state_shape(D: int, W: int) -> tuple[int, ...]:
    """Shape of one slot of one layer: the last W-1 inputs, oldest first."""
    return (D, W - 1)


def to_canonical(state: Tensor, D: int) -> Tensor:
    """(..., *state_shape) -> (..., D, W-1), a copy."""
    return state.clone()


def from_canonical(state: Tensor) -> Tensor:
    """(..., D, W-1) -> (..., *state_shape), a copy."""
    return state.clone()


def step(
    x: Tensor,
    packed: PackedConv,
    conv_state: Tensor,
    src_slots: Tensor,
    dst_slots: Tensor,
    fresh: Tensor,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """One token a row, x: (B, D) -> (B, D); otherwise `prefill`."""
    cu_seqlens = torch.arange(len(x) + 1, dtype=torch.int32)
    return prefill(x, packed, conv_state, cu_seqlens, src_slots, dst_slots, fresh, out=out)


def prefill(
    x: Tensor,
    packed: PackedConv,
    conv_state: Tensor,
    cu_seqlens: Tensor,
    src_slots: Tensor,
    dst_slots: Tensor,
    fresh: Tensor,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """silu(bias + sum_w taps[w] * the last W inputs) for S packed sequences, each of at least one token.

    x: (T, D); conv_state: (num_slots, D, W-1), updated in place; cu_seqlens: (S+1,); src_slots,
    dst_slots, fresh: (S,). Returns (T, D) of x's dtype, written to `out` if it is
    given. No sequence may write a slot that another reads.
    """
    taps, bias = packed
    out = torch.zeros_like(x, memory_format=torch.contiguous_format) if out is None else out.zero_()
    bounds = cu_seqlens.tolist()
    rows = zip(bounds, bounds[1:], src_slots.tolist(), dst_slots.tolist(), fresh.tolist(), strict=False)
    for start, end, src, dst, is_fresh in rows:
        if dst == PAD_SLOT:
            continue
        past = torch.zeros_like(conv_state[dst]) if is_fresh else conv_state[src]
        past = past.float()
        for t in range(start, end):
            window = torch.cat([past, x[t].float()[:, None]], dim=1)
            out[t] = torch.nn.functional.silu((window * taps).sum(dim=1) + bias)
            past = window[:, 1:]
        conv_state[dst] = past
    return out
