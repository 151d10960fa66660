"""Longhorn's recurrence, skip and gate in Triton: one token a row, and packed prefill in order of time.

State of one slot: [N, D], so that channels are contiguous and the sums over n stay in few threads.
Both kernels here advance a tile by `_advance`. It names its fused multiply-adds, and they are compiled without
others, so that a prompt gives the same bits wherever it is split. `prefill` takes the faster `gpu_scan` on Hopper,
where that serves the rows; its bits are the same wherever a prompt is split, but not those of `step`.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from remuda.kernels.longhorn import gpu_scan
from remuda.kernels.longhorn.gpu_rounding import round_state, rounding_key
from remuda.kernels.rows import rows_for
from remuda.kernels.slots import PAD_SLOT

_PAD_SLOT = tl.constexpr(PAD_SLOT)
# Elements of h in a program, and its warps. The same for step and prefill: the order of the sums over n
# follows from the tile's layout, which h alone decides. Never fewer elements than threads, so that each
# element is read and written by one thread, and source and destination slot may be equal.
_TILE = 2048
_MIN_BLOCK_D, _MAX_BLOCK_D = 8, 128
_NUM_WARPS = 1


@triton.jit
def _advance(
    b_h, p_x, p_dt, p_k, p_q, p_z, b_skip, i_t, o_d, m_d, o_n, m_n,
    stride_x, stride_dt, stride_k, stride_q, stride_z,
):  # fmt: skip
    """One token: state (BLOCK_N, BLOCK_D) -> new state, output (BLOCK_D,)."""
    b_x = tl.load(p_x + i_t * stride_x + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_dt = tl.load(p_dt + i_t * stride_dt + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_z = tl.load(p_z + i_t * stride_z + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_k = tl.load(p_k + i_t * stride_k + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_q = tl.load(p_q + i_t * stride_q + o_n, mask=m_n, other=0.0).to(tl.float32)
    # beta / (1 + beta * sum k^2) with beta = sigmoid(dt); 0 where the exponential overflows.
    b_delta = 1.0 / (1.0 + tl.sum(b_k * b_k, 0) + tl.exp(-b_dt))
    b_error = tl.fma(-b_k[:, None], b_h, b_x[None, :])
    b_h = tl.fma(b_delta[None, :] * b_k[:, None], b_error, b_h)
    b_y = tl.fma(b_skip, b_x, tl.sum(b_h * b_q[:, None], 0))
    return b_h, b_y * (b_z / (1.0 + tl.exp(-b_z)))


@triton.jit(
    do_not_specialize=["salt"],
    do_not_specialize_on_alignment=["p_k", "p_q", "p_cu_seqlens", "p_src", "p_dst", "p_fresh", "p_seeds"],
)
def _longhorn_kernel(
    p_x, p_dt, p_k, p_q, p_z, p_skip, p_h, p_cu_seqlens, p_src, p_dst, p_fresh, p_seeds, p_out, salt,
    stride_x, stride_dt, stride_k, stride_q, stride_z, stride_slot,
    D: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, IS_STEP: tl.constexpr,
):  # fmt: skip
    i_s = tl.program_id(0).to(tl.int64)
    b_src = tl.load(p_src + i_s).to(tl.int64)
    b_dst = tl.load(p_dst + i_s).to(tl.int64)
    m_fresh = tl.load(p_fresh + i_s).to(tl.int1)
    m_live = b_dst != _PAD_SLOT
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    o_n = tl.arange(0, BLOCK_N)
    m_out = o_d < D
    m_d = m_out & m_live
    m_n = (o_n < N) & m_live
    m_tile = m_n[:, None] & m_d[None, :]
    o_tile = o_n[:, None] * D + o_d[None, :]
    b_skip = tl.load(p_skip + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_h = tl.load(p_h + b_src * stride_slot + o_tile, mask=m_tile & (~m_fresh), other=0.0).to(tl.float32)
    if IS_STEP:
        b_h, b_y = _advance(
            b_h, p_x, p_dt, p_k, p_q, p_z, b_skip, i_s, o_d, m_d, o_n, m_n,
            stride_x, stride_dt, stride_k, stride_q, stride_z,
        )  # fmt: skip
        tl.store(p_out + i_s * D + o_d, b_y.to(p_out.dtype.element_ty), mask=m_out)
    else:
        i_start = tl.load(p_cu_seqlens + i_s).to(tl.int64)
        i_end = tl.load(p_cu_seqlens + i_s + 1).to(tl.int64)
        for i_t in range(i_start, i_end):
            b_h, b_y = _advance(
                b_h, p_x, p_dt, p_k, p_q, p_z, b_skip, i_t, o_d, m_d, o_n, m_n,
                stride_x, stride_dt, stride_k, stride_q, stride_z,
            )  # fmt: skip
            tl.store(p_out + i_t * D + o_d, b_y.to(p_out.dtype.element_ty), mask=m_out)
    if p_seeds is None:
        b_new = b_h.to(p_h.dtype.element_ty)
    else:
        b_key = rounding_key(tl.load(p_seeds + i_s), salt)
        b_new = round_state(b_h, b_key, o_d[None, :], o_n[:, None], N, p_h.dtype.element_ty)
    tl.store(p_h + b_dst * stride_slot + o_tile, b_new, mask=m_tile)


def state_shape(D: int, N: int) -> tuple[int, ...]:
    """Shape of one slot of one layer."""
    return (N, D)


def to_canonical(state: Tensor, D: int) -> Tensor:
    """(..., *state_shape) -> (..., D, N), a copy."""
    return state.mT.clone(memory_format=torch.contiguous_format)


def from_canonical(state: Tensor) -> Tensor:
    """(..., D, N) -> (..., *state_shape), a copy."""
    return state.mT.clone(memory_format=torch.contiguous_format)


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
    assert len(src_slots) == len(x)
    _check(x, dt, k, q, z, skip, h, src_slots, dst_slots, fresh, seeds)
    return _launch(x, dt, k, q, z, skip, h, None, src_slots, dst_slots, fresh, seeds, salt, out)


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
    exact_order: bool = False,
) -> Tensor:
    """Recurrence, skip and gate for S packed sequences, each of at least one token.

    Sequences at the end may be pads, empty and of no slot, as prompt graphs have them; T may then be over
    the last of cu_seqlens, and what is returned past that means nothing.

    x, z, dt: (T, D), dt before its sigmoid; k, q: (T, N); rows of any stride; skip: (D,); h: (num_slots,
    N, D), updated in place, float32 between its reads and writes; cu_seqlens: (S+1,) int32, from 0 to T;
    src_slots, dst_slots: (S,) int32; fresh: (S,) bool. No sequence may write a slot that another reads.
    seeds: (S,) int64 or None: a 16-bit state is rounded stochastically by (seed, salt, d, n), or to
    nearest. exact_order: bit for bit what T calls of `step` give, if slower.
    Returns (sum_n h*q + skip*x) * silu(z): (T, D) of x's dtype, written to `out` if it is given.
    `reference.prefill` has the sources; here
    delta = beta / (1 + beta*sum k^2) = 1 / (1 + sum k^2 + exp(-dt)) and h += delta*k*(x - k*h).
    """
    assert cu_seqlens.shape == (len(src_slots) + 1,)
    _check(x, dt, k, q, z, skip, h, src_slots, dst_slots, fresh, seeds)
    if not exact_order and gpu_scan.is_served(x, dt, k, q, z):
        return gpu_scan.prefill(
            x, dt, k, q, z, skip, h, cu_seqlens, src_slots, dst_slots, fresh, seeds=seeds, salt=salt, out=out
        )
    return _launch(x, dt, k, q, z, skip, h, cu_seqlens, src_slots, dst_slots, fresh, seeds, salt, out)


def _launch(
    x: Tensor,
    dt: Tensor,
    k: Tensor,
    q: Tensor,
    z: Tensor,
    skip: Tensor,
    h: Tensor,
    cu_seqlens: Tensor | None,
    src_slots: Tensor,
    dst_slots: Tensor,
    fresh: Tensor,
    seeds: Tensor | None,
    salt: int,
    out: Tensor | None,
) -> Tensor:
    """Run the kernel for rows (cu_seqlens None) or sequences."""
    D, N = x.shape[1], k.shape[1]
    out = rows_for(x, out)
    block_n = triton.next_power_of_2(N)
    block_d = min(max(_TILE // block_n, _MIN_BLOCK_D), _MAX_BLOCK_D)
    _longhorn_kernel[(len(src_slots), triton.cdiv(D, block_d))](
        x, dt, k, q, z, skip, h, src_slots if cu_seqlens is None else cu_seqlens,
        src_slots, dst_slots, fresh, seeds, out, salt,
        x.stride(0), dt.stride(0), k.stride(0), q.stride(0), z.stride(0), h.stride(0),
        D=D, N=N, BLOCK_D=block_d, BLOCK_N=block_n, IS_STEP=cu_seqlens is None,
        num_warps=_NUM_WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def _check(
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
    seeds: Tensor | None,
) -> None:
    """Assert what the kernels rely on."""
    (T, D), N = x.shape, k.shape[1]
    assert dt.shape == z.shape == (T, D)
    assert k.shape == q.shape == (T, N)
    assert skip.shape == (D,)
    assert all(t.stride(1) == 1 for t in (x, dt, k, q, z))
    assert h.shape[1:] == (N, D)
    assert h[0].is_contiguous()
    assert src_slots.shape == dst_slots.shape == fresh.shape
    assert fresh.dtype == torch.bool
    assert seeds is None or (seeds.shape == src_slots.shape and seeds.dtype == torch.int64)
    assert seeds is None or h.dtype in (torch.bfloat16, torch.float16)
