"""Causal depthwise convolution + SiLU in numba, parallel over (block of 64 channels, sequence).

A slot holds [ceil(D/64), W-1, 64], channels innermost, and taps and bias are one [ceil(D/64), W+1, 64];
channels from D on exist in the pool only. float32 throughout.
"""

import torch
from numba import prange
from torch import Tensor

from remuda.kernels import cpu_jit
from remuda.kernels.cpu_jit import BLOCK, clear, flags, floats, int32s, load_state, parallel, serial, stack
from remuda.kernels.cpu_math import fma, silu
from remuda.kernels.rows import rows_for


def pack(weight: Tensor, bias: Tensor | None) -> Tensor:
    """weight: (D, 1, W) as in `torch.nn.Conv1d`; bias: (D,) or None for zero."""
    taps = weight[:, 0].float()
    last = taps.new_zeros(len(taps)) if bias is None else bias.float()
    return cpu_jit.to_blocks(torch.cat([taps, last[:, None]], dim=1))


def state_shape(D: int, W: int) -> tuple[int, ...]:
    """Shape of one slot of one layer: the last W-1 inputs, oldest first."""
    return (cpu_jit.num_blocks(D), W - 1, BLOCK)


def to_canonical(state: Tensor, D: int) -> Tensor:
    """(..., *state_shape) -> (..., D, W-1)."""
    return cpu_jit.from_blocks(state, D)


def from_canonical(state: Tensor) -> Tensor:
    """(..., D, W-1) -> (..., *state_shape)."""
    return cpu_jit.to_blocks(state)


def step(
    x: Tensor,
    packed: Tensor,
    conv_state: Tensor,
    src_slots: Tensor,
    dst_slots: Tensor,
    fresh: Tensor,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """One token a row, x: (B, D) -> (B, D); bit for bit `prefill` of B sequences of one token."""
    bounds = cpu_jit.one_token_each(x.shape[0])
    return prefill(x, packed, conv_state, bounds, src_slots, dst_slots, fresh, out=out)


def prefill(
    x: Tensor,
    packed: Tensor,
    conv_state: Tensor,
    cu_seqlens: Tensor,
    src_slots: Tensor,
    dst_slots: Tensor,
    fresh: Tensor,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """silu(bias + sum_w taps[w] * the last W inputs) for S packed sequences, each of at least one token.

    x: (T, D), rows may be views of wider ones; conv_state: (num_slots, *state_shape), updated in place;
    cu_seqlens: (S+1,); src_slots, dst_slots, fresh: (S,). Returns (T, D), written to
    `out` if it is given. No sequence may write a slot that another reads.
    """
    D, W, S = x.shape[1], packed.shape[1] - 1, src_slots.shape[0]
    assert packed.shape == (cpu_jit.num_blocks(D), W + 1, BLOCK)
    assert conv_state.shape[1:] == state_shape(D, W)
    assert cu_seqlens.shape == (S + 1,)
    assert src_slots.shape == dst_slots.shape == fresh.shape
    out = rows_for(x, out)
    convolve(
        *cpu_jit.rows(x),
        cpu_jit.address(packed, torch.float32),
        *cpu_jit.slots(conv_state),
        cpu_jit.address(cu_seqlens, torch.int32),
        cpu_jit.address(src_slots, torch.int32),
        cpu_jit.address(dst_slots, torch.int32),
        cpu_jit.address(fresh, torch.bool),
        S,
        D,
        W,
        out.data_ptr(),
    )
    return out


@parallel
def convolve(
    x: int,
    x_stride: int,
    packed: int,
    conv_state: int,
    slot_stride: int,
    cu_seqlens: int,
    src_slots: int,
    dst_slots: int,
    fresh: int,
    S: int,
    D: int,
    W: int,
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
            size = (W - 1) * BLOCK
            before = conv_state + 4 * (src * slot_stride + block * size)
            state = conv_state + 4 * (dst * slot_stride + block * size)
            load_state(before, state, flags(fresh, 0, S)[s], size)
            taps = packed + 4 * block * (W + 1) * BLOCK
            _block(x, x_stride, taps, state, start, end, first, width, D, W, out)
            _keep_last_inputs(x, x_stride, state, start, end, first, width, W)


@serial
def _block(
    x: int,
    x_stride: int,
    taps: int,
    state: int,
    start: int,
    end: int,
    first: int,
    width: int,
    D: int,
    W: int,
    out: int,
) -> None:
    """Outputs of tokens [start, end) for channels [first, first + width); `state` holds the inputs before."""
    total = stack(BLOCK)
    bias = floats(taps, W * BLOCK, BLOCK)
    for t in range(start, end):
        for c in range(BLOCK):
            total[c] = bias[c]
        for w in range(W):
            tap = floats(taps, w * BLOCK, BLOCK)
            value = floats(_input(x, x_stride, state, start, first, t - W + 1 + w, W), 0, width)
            for c in range(width):
                total[c] = fma(tap[c], value[c], total[c])
        out_row = floats(out, t * D + first, width)
        for c in range(width):
            out_row[c] = silu(total[c])


@serial
def _keep_last_inputs(
    x: int, x_stride: int, state: int, start: int, end: int, first: int, width: int, W: int
) -> None:
    """Shift the inputs of tokens [start, end) into `state`."""
    for w in range(W - 1):
        kept = floats(state, w * BLOCK, width)
        value = floats(_input(x, x_stride, state, start, first, end - W + 1 + w, W), 0, width)
        for c in range(width):
            kept[c] = value[c]


@serial
def _input(x: int, x_stride: int, state: int, start: int, first: int, t: int, W: int) -> int:
    """Address of the input at time t: a row of x, or of the state for t < start."""
    if t >= start:
        return x + 4 * (t * x_stride + first)
    return state + 4 * (t - start + W - 1) * BLOCK
