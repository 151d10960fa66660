"""Longhorn's recurrence in numba: parallel over (block of 64 channels, sequence), in time order within each.

A slot holds [ceil(D/64), N, 64], channels innermost, so that the loops over channels vectorise; channels
from D on exist in the pool only. float32 throughout.
"""

import torch
from numba import prange
from torch import Tensor

from remuda.kernels import cpu_jit
from remuda.kernels.cpu_jit import (
    BLOCK,
    Floats,
    clear,
    flags,
    floats,
    int32s,
    load_state,
    parallel,
    serial,
    stack,
)
from remuda.kernels.cpu_math import ONE, ZERO, exp, fma, silu
from remuda.kernels.rows import rows_for


def state_shape(D: int, N: int) -> tuple[int, ...]:
    """Shape of one slot of one layer."""
    return (cpu_jit.num_blocks(D), N, BLOCK)


def to_canonical(state: Tensor, D: int) -> Tensor:
    """(..., *state_shape) -> (..., D, N)."""
    return cpu_jit.from_blocks(state, D)


def from_canonical(state: Tensor) -> Tensor:
    """(..., D, N) -> (..., *state_shape)."""
    return cpu_jit.to_blocks(state)


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
    out: Tensor | None = None,
) -> Tensor:
    """One token a row, x: (B, D) -> (B, D); bit for bit `prefill` of B sequences of one token."""
    bounds = cpu_jit.one_token_each(x.shape[0])
    return prefill(x, dt, k, q, z, skip, h, bounds, src_slots, dst_slots, fresh, out=out)


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
    out: Tensor | None = None,
) -> Tensor:
    """Recurrence, skip and gate for S packed sequences, each of at least one token.

    x, z, dt: (T, D), dt before its sigmoid; k, q: (T, N); rows may be views of wider ones. skip: (D,);
    h: (num_slots, *state_shape), updated in place; cu_seqlens: (S+1,); src_slots, dst_slots, fresh: (S,).
    Returns (T, D), written to `out` if it is given. No sequence may write a slot that another reads.
    """
    (T, D), N, S = x.shape, k.shape[1], src_slots.shape[0]
    assert dt.shape == z.shape == x.shape
    assert k.shape == q.shape == (T, N)
    assert skip.shape == (D,)
    assert h.shape[1:] == state_shape(D, N)
    assert cu_seqlens.shape == (S + 1,)
    assert src_slots.shape == dst_slots.shape == fresh.shape
    out = rows_for(x, out)
    scan(
        *cpu_jit.rows(x),
        *cpu_jit.rows(dt),
        *cpu_jit.rows(k),
        *cpu_jit.rows(q),
        *cpu_jit.rows(z),
        cpu_jit.address(skip, torch.float32),
        *cpu_jit.slots(h),
        cpu_jit.address(cu_seqlens, torch.int32),
        cpu_jit.address(src_slots, torch.int32),
        cpu_jit.address(dst_slots, torch.int32),
        cpu_jit.address(fresh, torch.bool),
        S,
        D,
        N,
        out.data_ptr(),
    )
    return out


@parallel
def scan(
    x: int,
    x_stride: int,
    dt: int,
    dt_stride: int,
    k: int,
    k_stride: int,
    q: int,
    q_stride: int,
    z: int,
    z_stride: int,
    skip: int,
    h: int,
    slot_stride: int,
    cu_seqlens: int,
    src_slots: int,
    dst_slots: int,
    fresh: int,
    S: int,
    D: int,
    N: int,
    out: int,
) -> None:
    """`prefill` on addresses, for compiled callers too; `out` is contiguous and overlaps no input.

    Strides are in float32 elements. Items run through the sequences of one block, then the next, so that
    threads share ragged sequences evenly.
    """
    num_blocks = (D + BLOCK - 1) // BLOCK
    for item in prange(num_blocks * S):
        block, s = item // S, item % S
        bounds = int32s(cu_seqlens, 0, S + 1)
        start, end = bounds[s], bounds[s + 1]
        src, dst = int32s(src_slots, 0, S)[s], int32s(dst_slots, 0, S)[s]
        first = block * BLOCK
        width = min(BLOCK, D - first)
        if dst < 0:
            for t in range(start, end):
                clear(out, t * D + first, width)
        else:
            h_src = h + 4 * (src * slot_stride + block * N * BLOCK)
            h_dst = h + 4 * (dst * slot_stride + block * N * BLOCK)
            load_state(h_src, h_dst, flags(fresh, 0, S)[s], N * BLOCK)
            _block(
                x, x_stride, dt, dt_stride, k, k_stride, q, q_stride, z, z_stride, skip, h_dst,
                start, end, first, width, D, N, out,
            )  # fmt: skip


@serial
def _block(
    x: int,
    x_stride: int,
    dt: int,
    dt_stride: int,
    k: int,
    k_stride: int,
    q: int,
    q_stride: int,
    z: int,
    z_stride: int,
    skip: int,
    h: int,
    start: int,
    end: int,
    first: int,
    width: int,
    D: int,
    N: int,
    out: int,
) -> None:
    """Tokens [start, end) for channels [first, first + width), the state `h` (N, 64) in place.

    beta / (1 + beta * sum k^2) of the definition is 1 / (1 + sum k^2 + exp(-dt)): one division less, and
    0 where exp(-dt) overflows.
    """
    delta = stack(BLOCK)
    value = stack(BLOCK)
    y = stack(BLOCK)
    delta[:] = ZERO
    value[:] = ZERO
    y[:] = ZERO
    skip_row = floats(skip, first, width)
    for t in range(start, end):
        x_row = floats(x, t * x_stride + first, width)
        dt_row = floats(dt, t * dt_stride + first, width)
        z_row = floats(z, t * z_stride + first, width)
        out_row = floats(out, t * D + first, width)
        k_row, q_row = floats(k, t * k_stride, N), floats(q, t * q_stride, N)
        k_squared = ZERO
        for n in range(N):
            k_squared = fma(k_row[n], k_row[n], k_squared)
        # One loop for each array that is written: LLVM gives up on more than eight overlap checks.
        for c in range(width):
            delta[c] = ONE / (ONE + k_squared + exp(-dt_row[c]))
        for c in range(width):
            value[c] = x_row[c]
        for c in range(width):
            y[c] = skip_row[c] * x_row[c]
        _advance(h, k_row, q_row, N, delta, value, y)
        for c in range(width):
            out_row[c] = y[c] * silu(z_row[c])


@serial
def _advance(h: int, k: Floats, q: Floats, N: int, delta: Floats, x: Floats, y: Floats) -> None:
    """One token of one block: h += delta*k*(x - k*h) and y += sum_n h*q, four n at a time."""
    num_fours = N // 4 * 4
    for n in range(0, num_fours, 4):
        k0, k1, k2, k3 = k[n], k[n + 1], k[n + 2], k[n + 3]
        q0, q1, q2, q3 = q[n], q[n + 1], q[n + 2], q[n + 3]
        h0 = floats(h, n * BLOCK, BLOCK)
        h1 = floats(h, (n + 1) * BLOCK, BLOCK)
        h2 = floats(h, (n + 2) * BLOCK, BLOCK)
        h3 = floats(h, (n + 3) * BLOCK, BLOCK)
        for c in range(BLOCK):
            v0 = fma(delta[c] * k0, fma(-k0, h0[c], x[c]), h0[c])
            v1 = fma(delta[c] * k1, fma(-k1, h1[c], x[c]), h1[c])
            v2 = fma(delta[c] * k2, fma(-k2, h2[c], x[c]), h2[c])
            v3 = fma(delta[c] * k3, fma(-k3, h3[c], x[c]), h3[c])
            h0[c], h1[c], h2[c], h3[c] = v0, v1, v2, v3
            y[c] = fma(v3, q3, fma(v2, q2, fma(v1, q1, fma(v0, q0, y[c]))))
    for n in range(num_fours, N):
        k0, q0, h0 = k[n], q[n], floats(h, n * BLOCK, BLOCK)
        for c in range(BLOCK):
            v0 = fma(delta[c] * k0, fma(-k0, h0[c], x[c]), h0[c])
            h0[c] = v0
            y[c] = fma(v0, q0, y[c])
