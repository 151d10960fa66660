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
    *,
    seeds: Tensor | None = None,
    salt: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """One token a row, x: (B, D) -> (B, D); otherwise `prefill`."""
    cu_seqlens = torch.arange(len(x) + 1, dtype=torch.int32)
    index = (cu_seqlens, src_slots, dst_slots, fresh)
    return prefill(x, dt, k, q, z, skip, h, *index, seeds=seeds, salt=salt, out=out)


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
    *,
    seeds: Tensor | None = None,
    salt: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """Recurrence, skip and gate (Longhorn, arXiv 2407.14207, section 4) for S packed sequences.

    x, z, dt: (T, D), dt before its sigmoid; k, q: (T, N); skip: (D,); h: (num_slots, D, N), updated in
    place, float32 between its reads and writes; cu_seqlens: (S+1,); src_slots, dst_slots, fresh: (S,).
    Every sequence has at least one token, and none may write a slot that another reads.
    seeds: (S,) int64 or None: a 16-bit state is rounded stochastically by (seed, salt, d, n), or to
    nearest. Returns (sum_n h*q + skip*x) * silu(z): (T, D) of x's dtype, written to `out` if it is given.
    """
    assert seeds is None or h.dtype in (torch.bfloat16, torch.float16)
    out = torch.zeros_like(x, memory_format=torch.contiguous_format) if out is None else out.zero_()
    beta, gate = torch.sigmoid(dt.float()), torch.nn.functional.silu(z.float())
    x, k, q = x.float(), k.float(), q.float()
    bounds = cu_seqlens.tolist()
    rows = zip(bounds, bounds[1:], src_slots.tolist(), dst_slots.tolist(), fresh.tolist(), strict=False)
    for i, (start, end, src, dst, is_fresh) in enumerate(rows):
        if dst == PAD_SLOT:
            continue
        state = torch.zeros_like(h[dst]) if is_fresh else h[src]
        state = state.float()
        for t in range(start, end):
            delta = beta[t] / (1 + beta[t] * k[t].square().sum())
            state = (1 - delta[:, None] * k[t].square()) * state + (delta * x[t])[:, None] * k[t]
            out[t] = ((state * q[t]).sum(dim=1) + skip.float() * x[t]) * gate[t]
        h[dst] = state if seeds is None else _round(state, h.dtype, int(seeds[i]), salt)
    return out


def _round(state: Tensor, dtype: torch.dtype, seed: int, salt: int) -> Tensor:
    """Stochastic rounding of a float32 (D, N) to bfloat16 or float16: up with the probability of the distance.

    bfloat16: 16 random bits an element are added to the float32's, and as many cut off. float16: 13 bits of 32,
    likewise; below its normal numbers multiples of 2^-24, by a comparison with the highest 24.
    """
    if dtype == torch.bfloat16:
        random, num_cut = _random_halves(state.shape, seed, salt, state.device), 16
    else:
        random, num_cut = _random_bits(state.numel(), seed, salt, state.device).view(state.shape), 13
    mask = (1 << num_cut) - 1
    bits = state.view(torch.int32).long() & 0xFFFFFFFF
    cut = (bits + (random & mask)) & ~mask
    rounded = (cut - ((cut >> 31) << 32)).int().view(torch.float32)
    if dtype == torch.float16:
        scaled = state.abs() * 2.0**24
        is_up = scaled - scaled.floor() > (random >> 8).float() * 2.0**-24
        small = torch.copysign((scaled.floor() + is_up) * 2.0**-24, state)
        rounded = torch.where(state.abs() < 2.0**-14, small, rounded)
    return torch.where(state.isfinite(), rounded, state).to(dtype)


def _random_halves(shape: torch.Size, seed: int, salt: int, device: torch.device) -> Tensor:
    """(D, N) int64, 16 bits each: channels 2i and 2i+1 take the low and the high half of one number."""
    D, N = shape
    pairs = _random_bits((D + 1) // 2 * N, seed, salt, device).view(-1, 1, N)
    return torch.cat([pairs & 0xFFFF, pairs >> 16], dim=1).view(-1, N)[:D]


def _random_bits(count: int, seed: int, salt: int, device: torch.device) -> Tensor:
    """(count,) int64, 32 bits each: `_mix` of an index, keyed by `seed` and `salt`."""
    low, high, salt_ = (torch.tensor(word & 0xFFFFFFFF, device=device) for word in (seed, seed >> 32, salt))
    key = _mix(low ^ _mix(high ^ _mix(salt_)))
    return _mix(torch.arange(count, device=device) ^ key)


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers held in int64 (the hash `lowbias32` of C. Wellons and T. Ettinger)."""
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0xD35A2D97) & 0xFFFFFFFF
    return x ^ (x >> 15)
