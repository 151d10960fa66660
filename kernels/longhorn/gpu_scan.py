"""Longhorn's prefill for Hopper: 16 state values a channel, 16-bit rows, in order of time.

A program takes 32 channels of one sequence, in tiles of 32 tokens. Four warps hold the state, 8 channels times 16
values each, and do nothing but advance it; four more prepare tiles for them (delta, float32 copies, transposed)
and finish what they leave (skip, gate). The recurrence is that of `gpu`, in float32, if not bit for bit.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from typing import Final

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from remuda.kernels.longhorn import gpu_rounding
from remuda.kernels.longhorn.gpu_scan_tile import (
    IN,
    KEYS,
    OUT,
    PAIRS,
    PLAIN,
    ROWS,
    STATE,
    TILE_D,
    TILE_T,
    finish,
    prepare,
    scan_tile,
)
from remuda.kernels.rows import rows_for
from remuda.kernels.slots import PAD_SLOT

STATE_SIZE = 16
BLOCK_D = TILE_D.value
# Tiles in shared memory; registers of a thread, so that two programs share a multiprocessor, and of one that
# prepares and finishes.
_STAGES: Final = 4
_MAX_REGS: Final = 128
_NUM_REGS: Final = 128
_PAD_SLOT = gl.constexpr(PAD_SLOT)
# Its name in Triton 3.7, and in 3.6.
_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
_rounding_key = gluon.jit(gpu_rounding.rounding_key.fn)
_round_state = gluon.jit(gpu_rounding.round_state.fn)


@gluon.jit
def _scan_part(
    p_h, p_fresh, p_seeds, salt, i_s, i_c, i_src, i_dst, num_tiles, stride_slot,
    s_x, s_delta, s_k, s_q, s_y, full, done, D: gl.constexpr, STAGES: gl.constexpr, dtype: gl.constexpr,
):  # fmt: skip
    o_c = gl.arange(0, TILE_D, gl.SliceLayout(1, STATE))[:, None]
    o_d = i_c + o_c % 16 * 2 + o_c // 16
    o_n = gl.arange(0, 4, gl.SliceLayout(0, STATE))[None, :] * 4
    o_h = o_n * D + o_d
    m_h = (o_h >= 0) & (gl.load(p_fresh + i_s) == 0)
    p_from = p_h + i_src * stride_slot
    h0 = gl.load(p_from + o_h, mask=m_h, other=0.0).to(gl.float32)
    h1 = gl.load(p_from + D + o_h, mask=m_h, other=0.0).to(gl.float32)
    h2 = gl.load(p_from + 2 * D + o_h, mask=m_h, other=0.0).to(gl.float32)
    h3 = gl.load(p_from + 3 * D + o_h, mask=m_h, other=0.0).to(gl.float32)
    for i in range(num_tiles):
        b = i % STAGES
        mbarrier.wait(full.index(b), i // STAGES & 1)
        h0, h1, h2, h3 = scan_tile(
            h0, h1, h2, h3, s_x.index(b), s_delta.index(b), s_k.index(b), s_q.index(b), s_y.index(b), dtype
        )
        _barrier()
        mbarrier.arrive(done.index(b), count=1)
    p_to = p_h + i_dst * stride_slot
    h_dtype: gl.constexpr = p_h.dtype.element_ty
    if p_seeds is None:
        gl.store(p_to + o_h, h0.to(h_dtype))
        gl.store(p_to + D + o_h, h1.to(h_dtype))
        gl.store(p_to + 2 * D + o_h, h2.to(h_dtype))
        gl.store(p_to + 3 * D + o_h, h3.to(h_dtype))
    else:
        b_key = _rounding_key(gl.load(p_seeds + i_s), salt)
        gl.store(p_to + o_h, _round_state(h0, b_key, o_d, o_n, 16, h_dtype))
        gl.store(p_to + D + o_h, _round_state(h1, b_key, o_d, o_n + 1, 16, h_dtype))
        gl.store(p_to + 2 * D + o_h, _round_state(h2, b_key, o_d, o_n + 2, 16, h_dtype))
        gl.store(p_to + 3 * D + o_h, _round_state(h3, b_key, o_d, o_n + 3, 16, h_dtype))


@gluon.jit
def _tile_part(
    p_x, p_dt, p_k, p_q, p_z, p_skip, p_out, i_c, num_tokens, num_tiles,
    stride_x, stride_dt, stride_k, stride_q, stride_z,
    s_x, s_delta, s_k, s_q, s_y, full, done, D: gl.constexpr, STAGES: gl.constexpr, dtype: gl.constexpr,
):  # fmt: skip
    """Pointers are to words, at the sequence's first token and the program's first channel; so are strides."""
    o_t = gl.arange(0, TILE_T, gl.SliceLayout(1, ROWS))[:, None]
    o_w = gl.arange(0, 16, gl.SliceLayout(0, ROWS))[None, :]
    o_tk = gl.arange(0, TILE_T, gl.SliceLayout(1, KEYS))[:, None]
    o_n = gl.arange(0, 8, gl.SliceLayout(0, KEYS))[None, :]
    o_x, o_dt, o_z = o_t * stride_x + o_w, o_t * stride_dt + o_w, o_t * stride_z + o_w
    o_k, o_q, o_out = o_tk * stride_k + o_n, o_tk * stride_q + o_n, o_t * (D // 2) + o_w
    p_skip += i_c + gl.arange(0, 16, gl.SliceLayout(0, ROWS)) * 2
    skip_low, skip_high = gl.load(p_skip).to(gl.float32)[None, :], gl.load(p_skip + 1).to(gl.float32)[None, :]
    b_x = gl.load(p_x + o_x, mask=o_t < num_tokens, other=0)
    b_dt = gl.load(p_dt + o_dt, mask=o_t < num_tokens, other=0)
    b_k = gl.load(p_k + o_k, mask=o_tk < num_tokens, other=0)
    b_q = gl.load(p_q + o_q, mask=o_tk < num_tokens, other=0)
    done_x, done_z = gl.full([TILE_T, 16], 0, gl.int32, ROWS), gl.full([TILE_T, 16], 0, gl.int32, ROWS)
    # Round i finishes tile i - STAGES and prepares tile i; what either needs is loaded a round before.
    p_x_done, p_z_done = p_x - stride_x * (TILE_T * STAGES), p_z - stride_z * (TILE_T * STAGES)
    p_out -= D // 2 * TILE_T * STAGES
    for i in range(num_tiles + STAGES):
        b = i % STAGES
        left, left_done = num_tokens - (i + 1) * TILE_T, num_tokens - (i + 1 - STAGES) * TILE_T
        p_x, p_dt, p_k, p_q = (
            p_x + stride_x * TILE_T,
            p_dt + stride_dt * TILE_T,
            p_k + stride_k * TILE_T,
            p_q + stride_q * TILE_T,
        )
        p_x_done, p_z_done = p_x_done + stride_x * TILE_T, p_z_done + stride_z * TILE_T
        next_x = gl.load(p_x + o_x, mask=o_t < left, other=0)
        next_dt = gl.load(p_dt + o_dt, mask=o_t < left, other=0)
        next_k = gl.load(p_k + o_k, mask=o_tk < left, other=0)
        next_q = gl.load(p_q + o_q, mask=o_tk < left, other=0)
        finish_x, finish_z = done_x, done_z
        m_t = (o_t < left_done) & (i + 1 >= STAGES)
        done_x = gl.load(p_x_done + o_x, mask=m_t, other=0)
        done_z = gl.load(p_z_done + o_z, mask=m_t, other=0)
        if i >= STAGES:
            mbarrier.wait(done.index(b), (i // STAGES - 1) & 1)
            m_t = o_t < left_done + TILE_T
            finish(s_y.index(b), finish_x, finish_z, skip_low, skip_high, p_out + o_out, m_t, dtype)
        p_out += D // 2 * TILE_T
        if i < num_tiles:
            prepare(b_x, b_dt, b_k, b_q, s_x.index(b), s_delta.index(b), s_k.index(b), s_q.index(b), dtype)
            _barrier()
            mbarrier.arrive(full.index(b), count=1)
        b_x, b_dt, b_k, b_q = next_x, next_dt, next_k, next_q


@gluon.jit
def _to_words(p, offset):
    return (p + offset).to(gl.pointer_type(gl.int32), bitcast=True)


@gluon.jit(
    do_not_specialize=["salt"],
    do_not_specialize_on_alignment=["p_cu_seqlens", "p_src", "p_dst", "p_fresh", "p_seeds"],
)
def _scan_kernel(
    p_x, p_dt, p_k, p_q, p_z, p_skip, p_h, p_cu_seqlens, p_src, p_dst, p_fresh, p_seeds, p_out, salt,
    stride_x, stride_dt, stride_k, stride_q, stride_z, stride_slot,
    D: gl.constexpr, STAGES: gl.constexpr, NUM_REGS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = p_x.dtype.element_ty
    i_c = gl.program_id(0) * TILE_D
    i_s = gl.program_id(1).to(gl.int64)
    i_start = gl.load(p_cu_seqlens + i_s).to(gl.int64)
    num_tokens = (gl.load(p_cu_seqlens + i_s + 1) - i_start).to(gl.int32)
    num_tiles = (num_tokens + TILE_T - 1) // TILE_T
    i_src = gl.load(p_src + i_s).to(gl.int64)
    i_dst = gl.load(p_dst + i_s).to(gl.int64)
    p_out = _to_words(p_out, i_start * D + i_c)
    if i_dst == _PAD_SLOT:
        o_t = gl.arange(0, TILE_T, gl.SliceLayout(1, ROWS))[:, None]
        o_w = gl.arange(0, 16, gl.SliceLayout(0, ROWS))[None, :]
        b_zero = gl.full([TILE_T, 16], 0, gl.int32, ROWS)
        p_tile = p_out
        for i in range(num_tiles):
            gl.store(p_tile + (o_t * (D // 2) + o_w), b_zero, mask=o_t < num_tokens - i * TILE_T)
            p_tile += D // 2 * TILE_T
    s_x = gl.allocate_shared_memory(gl.float32, [STAGES, TILE_D, TILE_T], IN)
    s_delta = gl.allocate_shared_memory(gl.float32, [STAGES, TILE_D, TILE_T], IN)
    s_k = gl.allocate_shared_memory(gl.int32, [STAGES, TILE_T, 8], PAIRS)
    s_q = gl.allocate_shared_memory(gl.int32, [STAGES, TILE_T, 8], PLAIN)
    s_y = gl.allocate_shared_memory(gl.float32, [STAGES, TILE_T, TILE_D], OUT)
    # full: a tile is prepared, and the tile before in its place is finished; done: it has been scanned.
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    done = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for b in gl.static_range(STAGES):
        mbarrier.init(full.index(b), count=1)
        mbarrier.init(done.index(b), count=1)
    _barrier()
    if i_dst != _PAD_SLOT:
        # Rows are 16-byte aligned, which the compiler learns from words in fours.
        stride_x, stride_dt, stride_z = stride_x // 8 * 4, stride_dt // 8 * 4, stride_z // 8 * 4
        stride_k, stride_q = stride_k // 8 * 4, stride_q // 8 * 4
        gl.warp_specialize(
            [
                (_scan_part, (
                    p_h, p_fresh, p_seeds, salt, i_s, i_c, i_src, i_dst, num_tiles, stride_slot,
                    s_x, s_delta, s_k, s_q, s_y, full, done, D, STAGES, dtype,
                )),
                (_tile_part, (
                    _to_words(p_x, i_c) + i_start * stride_x, _to_words(p_dt, i_c) + i_start * stride_dt,
                    _to_words(p_k, 0) + i_start * stride_k, _to_words(p_q, 0) + i_start * stride_q,
                    _to_words(p_z, i_c) + i_start * stride_z, p_skip, p_out, i_c, num_tokens, num_tiles,
                    stride_x, stride_dt, stride_k, stride_q, stride_z,
                    s_x, s_delta, s_k, s_q, s_y, full, done, D, STAGES, dtype,
                )),
            ],
            [4],
            [NUM_REGS],
        )  # fmt: skip


def is_served(x: Tensor, dt: Tensor, k: Tensor, q: Tensor, z: Tensor) -> bool:
    """Whether `prefill` can take these rows: on Hopper, 16-bit, N = 16, D of whole blocks, 16-byte aligned."""
    rows = (x, dt, k, q, z)
    return (
        x.is_cuda
        and not triton.knobs.runtime.interpret
        and torch.cuda.get_device_capability(x.device)[0] == 9
        and k.shape[1] == STATE_SIZE
        and x.shape[1] % BLOCK_D == 0
        and x.dtype in (torch.bfloat16, torch.float16)
        and all(row.dtype == x.dtype and row.stride(0) % 8 == 0 and row.data_ptr() % 16 == 0 for row in rows)
    )


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
    """`gpu.prefill` where `is_served`; the caller has checked the arguments."""
    D = x.shape[1]
    out = rows_for(x, out)
    _scan_kernel[(D // BLOCK_D, len(src_slots))](
        x, dt, k, q, z, skip, h, cu_seqlens, src_slots, dst_slots, fresh, seeds, out, salt,
        x.stride(0), dt.stride(0), k.stride(0), q.stride(0), z.stride(0), h.stride(0),
        D=D, STAGES=_STAGES, NUM_REGS=_NUM_REGS, num_warps=4, maxnreg=_MAX_REGS,
    )  # fmt: skip
    return out
