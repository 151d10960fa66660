"""Causal depthwise convolution + SiLU in Triton: one token a row, and packed prefill parallel over time.

State of one slot: [W-1, D], so that the loads of a tap are contiguous. Outputs depend on W inputs only,
so prefill needs no scan; the program of a sequence's first tokens, which alone reads its state, writes it.
"""

# Kernels know tuples that grow, but no unpacking.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, unreachable"
# ruff: noqa: RUF005

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from remuda.kernels.rows import rows_for
from remuda.kernels.slots import PAD_SLOT

# Rows 0..W-1 are the taps (D,), oldest first; row W is the bias. Float32.
PackedConv = Tensor

_PAD_SLOT = tl.constexpr(PAD_SLOT)
_LOG2_E = tl.constexpr(1.4426950408889634)


class Tiling(NamedTuple):
    """A program's tokens (at least W-1, except for a step), channels, and warps."""

    block_t: int
    block_d: int
    num_warps: int


_STEP = Tiling(1, 512, 2)
_PREFILL = Tiling(16, 128, 1)


@triton.jit
def _convolve(window, taps, b_bias, W: tl.constexpr):
    """window, taps: tuples of W rows (BLOCK_D,), float32, oldest first."""
    b_y = b_bias
    for w in tl.static_range(W):
        b_y = tl.fma(taps[w], window[w], b_y)
    # The square of an approximate root costs less than a division, and is right where the exponential overflows.
    b_root = tl.rsqrt(1.0 + tl.exp2(b_y * -_LOG2_E))
    return b_y * b_root * b_root


@triton.jit
def _move_state(
    p_x, p_state, i_start, i_length, b_src, b_dst, m_d, m_fresh, o_d, stride_x, stride_slot,
    D: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Write the last W-1 inputs of one sequence; those before its first token come from the source slot.

    A thread reads and writes the same channels, so that source and destination may be one slot.
    """
    rows = ()
    for w in tl.static_range(W - 1):
        i_row = i_length + w
        m_now = i_row >= W - 1
        p_now = p_x + (i_start + i_row - (W - 1)) * stride_x + o_d
        p_past = p_state + b_src * stride_slot + i_row * D + o_d
        b_now = tl.load(p_now, mask=m_d & m_now, other=0.0).to(p_state.dtype.element_ty)
        b_past = tl.load(p_past, mask=m_d & (~m_now) & (~m_fresh), other=0.0)
        rows = rows + (tl.where(m_now, b_now, b_past),)
    for w in tl.static_range(W - 1):
        tl.store(p_state + b_dst * stride_slot + w * D + o_d, rows[w], mask=m_d)


@triton.jit
def _conv_tile(
    p_x, p_packed, p_state, p_out, i_start, i_length, i_first, b_src, b_dst, m_fresh, o_d, stride_x, stride_slot,
    D: tl.constexpr, W: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Outputs at BLOCK_T positions of a sequence from i_first on. The first tile also moves the state.

    i_first is 0 or at least W-1, so that the first tile alone reads the state, and may write it.
    """
    m_out = o_d < D
    m_d = m_out & (b_dst != _PAD_SLOT)
    is_first = i_first == 0
    p_tile = p_x + (i_start + i_first) * stride_x + o_d
    rows = ()
    for i in tl.static_range(BLOCK_T):
        m_row = m_d & (i_first + i < i_length)
        rows = rows + (tl.load(p_tile + i * stride_x, mask=m_row, other=0.0),)
    window, taps = (), ()
    for w in tl.static_range(W - 1):
        b_now = tl.load(p_tile + (w - (W - 1)) * stride_x, mask=m_d & (~is_first), other=0.0).to(tl.float32)
        p_past = p_state + b_src * stride_slot + w * D + o_d
        b_past = tl.load(p_past, mask=m_d & is_first & (~m_fresh), other=0.0).to(tl.float32)
        window = window + (tl.where(is_first, b_past, b_now),)
    for w in tl.static_range(W):
        taps = taps + (tl.load(p_packed + w * D + o_d, mask=m_d, other=0.0),)
    b_bias = tl.load(p_packed + W * D + o_d, mask=m_d, other=0.0)
    for i in tl.static_range(BLOCK_T):
        window = window + (rows[i].to(tl.float32),)
        b_y = _convolve(window, taps, b_bias, W)
        window = window[1:]
        p_row = p_out + (i_start + i_first + i) * D + o_d
        tl.store(p_row, b_y.to(p_out.dtype.element_ty), mask=m_out & (i_first + i < i_length))
    if is_first:
        _move_state(p_x, p_state, i_start, i_length, b_src, b_dst, m_d, m_fresh, o_d, stride_x, stride_slot, D, W)


@triton.jit(do_not_specialize_on_alignment=["p_src", "p_dst", "p_fresh"])
def _conv_step_kernel(
    p_x, p_packed, p_state, p_src, p_dst, p_fresh, p_out, stride_x, stride_slot,
    D: tl.constexpr, W: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_b = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    b_src = tl.load(p_src + i_b).to(tl.int64)
    b_dst = tl.load(p_dst + i_b).to(tl.int64)
    m_fresh = tl.load(p_fresh + i_b).to(tl.int1)
    # A sequence of one token.
    _conv_tile(
        p_x, p_packed, p_state, p_out, i_b, 1, 0, b_src, b_dst, m_fresh, o_d, stride_x, stride_slot, D, W, 1
    )


@triton.jit(
    do_not_specialize=["num_seqs", "num_halvings"],
    do_not_specialize_on_alignment=["p_cu_seqlens", "p_src", "p_dst", "p_fresh"],
)
def _conv_prefill_kernel(
    p_x, p_packed, p_state, p_cu_seqlens, p_src, p_dst, p_fresh, p_out, stride_x, stride_slot,
    num_seqs, num_halvings,
    D: tl.constexpr, W: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # Sequence s owns the tiles from cu_seqlens[s] // BLOCK_T + s on: never too few, and found by bisection.
    i_tile = tl.program_id(0)
    i_s = 0
    i_end = num_seqs
    for _ in range(num_halvings):
        i_mid = (i_s + i_end) // 2
        m_right = tl.load(p_cu_seqlens + i_mid) // BLOCK_T + i_mid <= i_tile
        i_s = tl.where(m_right, i_mid, i_s)
        i_end = tl.where(m_right, i_end, i_mid)
    i_start = tl.load(p_cu_seqlens + i_s).to(tl.int64)
    i_length = tl.load(p_cu_seqlens + i_s + 1).to(tl.int64) - i_start
    b_src = tl.load(p_src + i_s).to(tl.int64)
    b_dst = tl.load(p_dst + i_s).to(tl.int64)
    m_fresh = tl.load(p_fresh + i_s).to(tl.int1)
    i_first = (i_tile - i_s - i_start // BLOCK_T) * BLOCK_T
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    if i_first < i_length:
        _conv_tile(
            p_x, p_packed, p_state, p_out, i_start, i_length, i_first, b_src, b_dst, m_fresh, o_d,
            stride_x, stride_slot, D, W, BLOCK_T,
        )  # fmt: skip


def pack(weight: Tensor, bias: Tensor | None) -> PackedConv:
    """weight: (D, 1, W) as in `torch.nn.Conv1d`; bias: (D,) or None for zero. Returns (W+1, D)."""
    taps = weight[:, 0].float()
    last = torch.zeros_like(taps[:, 0]) if bias is None else bias.float()
    return torch.cat([taps.T, last[None]]).contiguous()


def state_shape(D: int, W: int) -> tuple[int, ...]:
    """Shape of one slot of one layer: the last W-1 inputs, oldest first."""
    return (W - 1, D)


def to_canonical(state: Tensor, D: int) -> Tensor:
    """(..., *state_shape) -> (..., D, W-1), a copy."""
    return state.mT.clone(memory_format=torch.contiguous_format)


def from_canonical(state: Tensor) -> Tensor:
    """(..., D, W-1) -> (..., *state_shape), a copy."""
    return state.mT.clone(memory_format=torch.contiguous_format)


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
    """One token a row, x: (B, D), rows of any stride -> (B, D); otherwise `prefill`."""
    D, W = _check(x, packed, conv_state, src_slots, dst_slots, fresh)
    out = rows_for(x, out)
    _conv_step_kernel[(len(x), triton.cdiv(D, _STEP.block_d))](
        x, packed, conv_state, src_slots, dst_slots, fresh, out, x.stride(0), conv_state.stride(0),
        D=D, W=W, BLOCK_D=_STEP.block_d, num_warps=_STEP.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
    return out


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
    tiling: Tiling = _PREFILL,
) -> Tensor:
    """silu(bias + sum_w taps[w] * the last W inputs) for S packed sequences, each of at least one token.

    Sequences at the end may be pads, empty and of no slot, as prompt graphs have them; T may then be over
    the last of cu_seqlens, and what is returned past that means nothing.

    x: (T, D), rows of any stride; conv_state: (num_slots, W-1, D), updated in place; cu_seqlens: (S+1,)
    int32, from 0 to T; src_slots, dst_slots: (S,) int32; fresh: (S,) bool. Returns (T, D) of x's dtype,
    written to `out` if it is given, bit for bit what T calls of `step` return. No sequence may write a slot
    that another reads.
    """
    D, W = _check(x, packed, conv_state, src_slots, dst_slots, fresh)
    num_tokens, num_seqs = len(x), len(src_slots)
    assert cu_seqlens.shape == (num_seqs + 1,)
    assert tiling.block_t >= W - 1
    out = rows_for(x, out)
    grid = (num_tokens // tiling.block_t + num_seqs, triton.cdiv(D, tiling.block_d))
    _conv_prefill_kernel[grid](
        x, packed, conv_state, cu_seqlens, src_slots, dst_slots, fresh, out,
        x.stride(0), conv_state.stride(0), num_seqs, num_seqs.bit_length(),
        D=D, W=W, BLOCK_T=tiling.block_t, BLOCK_D=tiling.block_d,
        num_warps=tiling.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def _check(
    x: Tensor, packed: PackedConv, conv_state: Tensor, src_slots: Tensor, dst_slots: Tensor, fresh: Tensor
) -> tuple[int, int]:
    """Assert what the kernels rely on; returns D and W."""
    W, D = packed.shape[0] - 1, packed.shape[1]
    assert x.shape[1] == D
    assert x.stride(1) == 1
    assert conv_state.shape[1:] == (W - 1, D)
    assert conv_state[0].is_contiguous()
    assert src_slots.shape == dst_slots.shape == fresh.shape
    assert fresh.dtype == torch.bool
    return D, W
