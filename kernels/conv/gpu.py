"""Causal depthwise convolution + SiLU in Triton: one token a row, and packed prefill parallel over time.

State of one slot: [W-1, D], so that the loads of a tap are contiguous. Outputs depend on W inputs only,
so prefill needs no scan; a second launch, which alone writes the state, keeps readers and writers apart.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from remuda.kernels.slots import PAD_SLOT

# Rows 0..W-1 are the taps (D,), oldest first; row W is the bias. Float32.
PackedConv = Tensor

_PAD_SLOT = tl.constexpr(PAD_SLOT)
_BLOCK_D = 128
_BLOCK_T = 16
_STEP_WARPS = 2
_PREFILL_WARPS = 4


@triton.jit
def _conv_tile(
    p_x, p_packed, p_state, i_start, o_position, b_src, m_live, m_fresh, o_d, m_d, stride_x, stride_slot,
    D: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Outputs (BLOCK_T, BLOCK_D) at the positions (BLOCK_T, 1) of the sequence that starts at i_start."""
    m_tile = m_live & m_d
    b_y = tl.load(p_packed + W * D + o_d, mask=m_tile, other=0.0)
    for w in tl.static_range(W):
        # The input under tap w: a packed token, or a row of the state where that lies before the sequence.
        o_row = o_position + w
        m_now = o_row >= W - 1
        m_past = (o_row < W - 1) & (~m_fresh)
        p_now = p_x + (i_start + o_row - (W - 1)) * stride_x + o_d
        p_past = p_state + b_src * stride_slot + o_row * D + o_d
        b_now = tl.load(p_now, mask=m_tile & m_now, other=0.0).to(tl.float32)
        b_past = tl.load(p_past, mask=m_tile & m_past, other=0.0).to(tl.float32)
        b_tap = tl.load(p_packed + w * D + o_d, mask=m_tile, other=0.0)
        b_y = tl.fma(b_tap, tl.where(m_now, b_now, b_past), b_y)
    return b_y / (1.0 + tl.exp(-b_y))


@triton.jit
def _move_state(
    p_x, p_state, i_start, i_length, b_src, b_dst, m_live, m_fresh, o_d, m_d, stride_x, stride_slot,
    D: tl.constexpr, W: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Write the last W-1 inputs of one sequence; those before its first token come from the source slot."""
    o_w = tl.arange(0, BLOCK_W)[:, None]
    b_row = i_length + o_w
    m_tile = (o_w < W - 1) & m_d & m_live
    m_now = b_row >= W - 1
    m_past = (b_row < W - 1) & (~m_fresh)
    p_now = p_x + (i_start + b_row - (W - 1)) * stride_x + o_d
    p_past = p_state + b_src * stride_slot + b_row * D + o_d
    b_now = tl.load(p_now, mask=m_tile & m_now, other=0.0).to(tl.float32)
    b_past = tl.load(p_past, mask=m_tile & m_past, other=0.0).to(tl.float32)
    b_state = tl.where(m_now, b_now, b_past).to(p_state.dtype.element_ty)
    # Where source and destination are one slot, a row is read by one thread and written by another.
    tl.debug_barrier()
    tl.store(p_state + b_dst * stride_slot + o_w * D + o_d, b_state, mask=m_tile)


@triton.jit(do_not_specialize_on_alignment=["p_src", "p_dst", "p_fresh"])
def _conv_step_kernel(
    p_x, p_packed, p_state, p_src, p_dst, p_fresh, p_out, stride_x, stride_slot,
    D: tl.constexpr, W: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    i_b = tl.program_id(0).to(tl.int64)
    o_d = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D))[None, :]
    m_d = o_d < D
    b_src = tl.load(p_src + i_b).to(tl.int64)
    b_dst = tl.load(p_dst + i_b).to(tl.int64)
    m_fresh = tl.load(p_fresh + i_b).to(tl.int1)
    m_live = b_dst != _PAD_SLOT
    # A sequence of one token.
    b_y = _conv_tile(
        p_x, p_packed, p_state, i_b, tl.arange(0, 1)[:, None], b_src, m_live, m_fresh, o_d, m_d,
        stride_x, stride_slot, D, W,
    )  # fmt: skip
    _move_state(
        p_x, p_state, i_b, 1, b_src, b_dst, m_live, m_fresh, o_d, m_d, stride_x, stride_slot, D, W, BLOCK_W
    )
    tl.store(p_out + i_b * D + o_d, b_y.to(p_out.dtype.element_ty), mask=m_d)


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
    m_live = tl.load(p_dst + i_s) != _PAD_SLOT
    m_fresh = tl.load(p_fresh + i_s).to(tl.int1)
    i_first = (i_tile - i_s - i_start // BLOCK_T) * BLOCK_T
    o_position = (i_first + tl.arange(0, BLOCK_T))[:, None]
    m_position = o_position < i_length
    o_d = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D))[None, :]
    m_d = o_d < D
    if i_first < i_length:
        b_y = _conv_tile(
            p_x, p_packed, p_state, i_start, o_position, b_src, m_live & m_position, m_fresh, o_d, m_d,
            stride_x, stride_slot, D, W,
        )  # fmt: skip
        p_tile = p_out + (i_start + o_position) * D + o_d
        tl.store(p_tile, b_y.to(p_out.dtype.element_ty), mask=m_position & m_d)


@triton.jit(do_not_specialize_on_alignment=["p_cu_seqlens", "p_src", "p_dst", "p_fresh"])
def _conv_prefill_state_kernel(
    p_x, p_state, p_cu_seqlens, p_src, p_dst, p_fresh, stride_x, stride_slot,
    D: tl.constexpr, W: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    i_s = tl.program_id(0).to(tl.int64)
    o_d = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D))[None, :]
    m_d = o_d < D
    i_start = tl.load(p_cu_seqlens + i_s).to(tl.int64)
    i_length = tl.load(p_cu_seqlens + i_s + 1).to(tl.int64) - i_start
    b_src = tl.load(p_src + i_s).to(tl.int64)
    b_dst = tl.load(p_dst + i_s).to(tl.int64)
    m_fresh = tl.load(p_fresh + i_s).to(tl.int1)
    _move_state(
        p_x, p_state, i_start, i_length, b_src, b_dst, b_dst != _PAD_SLOT, m_fresh, o_d, m_d,
        stride_x, stride_slot, D, W, BLOCK_W,
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
    x: Tensor, packed: PackedConv, conv_state: Tensor, src_slots: Tensor, dst_slots: Tensor, fresh: Tensor
) -> Tensor:
    """One token a row, x: (B, D), rows of any stride -> (B, D); otherwise `prefill`."""
    D, W, block_w = _check(x, packed, conv_state, src_slots, dst_slots, fresh)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _conv_step_kernel[(len(x), triton.cdiv(D, _BLOCK_D))](
        x, packed, conv_state, src_slots, dst_slots, fresh, out, x.stride(0), conv_state.stride(0),
        D=D, W=W, BLOCK_D=_BLOCK_D, BLOCK_W=block_w, num_warps=_STEP_WARPS, enable_fp_fusion=False,
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
) -> Tensor:
    """silu(bias + sum_w taps[w] * the last W inputs) for S packed sequences, each of at least one token.

    x: (T, D), rows of any stride; conv_state: (num_slots, W-1, D), updated in place; cu_seqlens: (S+1,)
    int32, from 0 to T; src_slots, dst_slots: (S,) int32; fresh: (S,) bool. Returns (T, D) of x's dtype,
    bit for bit what T calls of `step` return. No sequence may write a slot that another reads.
    """
    D, W, block_w = _check(x, packed, conv_state, src_slots, dst_slots, fresh)
    num_tokens, num_seqs = len(x), len(src_slots)
    assert cu_seqlens.shape == (num_seqs + 1,)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    num_blocks = triton.cdiv(D, _BLOCK_D)
    _conv_prefill_kernel[(num_tokens // _BLOCK_T + num_seqs, num_blocks)](
        x, packed, conv_state, cu_seqlens, src_slots, dst_slots, fresh, out,
        x.stride(0), conv_state.stride(0), num_seqs, num_seqs.bit_length(),
        D=D, W=W, BLOCK_T=_BLOCK_T, BLOCK_D=_BLOCK_D, num_warps=_PREFILL_WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    _conv_prefill_state_kernel[(num_seqs, num_blocks)](
        x, conv_state, cu_seqlens, src_slots, dst_slots, fresh, x.stride(0), conv_state.stride(0),
        D=D, W=W, BLOCK_D=_BLOCK_D, BLOCK_W=block_w, num_warps=_STEP_WARPS,
    )  # fmt: skip
    return out


def _check(
    x: Tensor, packed: PackedConv, conv_state: Tensor, src_slots: Tensor, dst_slots: Tensor, fresh: Tensor
) -> tuple[int, int, int]:
    """Assert what the kernels rely on; returns D, W and the power of two that holds W-1."""
    W, D = packed.shape[0] - 1, packed.shape[1]
    assert x.shape[1] == D
    assert x.stride(1) == 1
    assert conv_state.shape[1:] == (W - 1, D)
    assert conv_state[0].is_contiguous()
    assert src_slots.shape == dst_slots.shape == fresh.shape
    assert fresh.dtype == torch.bool
    return D, W, triton.next_power_of_2(max(W - 1, 1))
