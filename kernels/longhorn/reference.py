"""Longhorn's recurrence in plain torch, a loop over time: the definition, not for speed."""

import torch
from torch import Tensor

from remuda.kernels.slots import PAD_SLOT


def state_shape(D: int, N: int) -> tuple[int, ...]:
    """Shape of one slot of one layer."""
    return (D, N)


def to_canonical(state: Tensor, D: int) -> Tensor:
    """(..., *state_shape) -> (..., D, N), a copy."""
    return state.clone()


def from_canonical(state: Tensor) -> Tensor:
    """(..., D, N) -> (..., *state_shape), a copy."""
    return state.clone()


def step(
    x: Tensor,
    dt: Tensor,
    k: Tensor,
    q: Tensor,
    z: Tensor,
    skip: Tensor,
    h: Tensor,
    src_slots: Tensor,
    dst_slots: Tensor,
    fresh: Tensor,
) -> Tensor:
    """One token a row, x: (B, D) -> (B, D); otherwise `prefill`."""
    cu_seqlens = torch.arange(len(x) + 1, dtype=torch.int32)
    return prefill(x, dt, k, q, z, skip, h, cu_seqlens, src_slots, dst_slots, fresh)


def prefill(
    x: Tensor,
    dt: Tensor,
    k: Tensor,
    q: Tensor,
    z: Tensor,
    skip: Tensor,
    h: Tensor,
    cu_seqlens: Tensor,
    src_slots: Tensor,
    dst_slots: Tensor,
    fresh: Tensor,
) -> Tensor:
    """Recurrence, skip and gate (Longhorn, arXiv 2407.14207, section 4) for S packed sequences.

    x, z, dt: (T, D), dt before its sigmoid; k, q: (T, N); skip: (D,); h: (num_slots, D, N), updated in
    place, float32 between its reads and writes; cu_seqlens: (S+1,); src_slots, dst_slots, fresh: (S,).
    Every sequence has at least one token, and none may write a slot that another reads.
    Returns (sum_n h*q + skip*x) * silu(z): (T, D) of x's dtype.
    """
    out = torch.zeros_like(x, memory_format=torch.contiguous_format)
    beta, gate = torch.sigmoid(dt.float()), torch.nn.functional.silu(z.float())
    x, k, q = x.float(), k.float(), q.float()
    bounds = cu_seqlens.tolist()
    rows = zip(bounds, bounds[1:], src_slots.tolist(), dst_slots.tolist(), fresh.tolist(), strict=False)
    for start, end, src, dst, is_fresh in rows:
        if dst == PAD_SLOT:
            continue
        state = torch.zeros_like(h[dst]) if is_fresh else h[src]
        state = state.float()
        for t in range(start, end):
            delta = beta[t] / (1 + beta[t] * k[t].square().sum())
            state = (1 - delta[:, None] * k[t].square()) * state + (delta * x[t])[:, None] * k[t]
            out[t] = ((state * q[t]).sum(dim=1) + skip.float() * x[t]) * gate[t]
        h[dst] = state
    return out
