"""Residual add, norm and matrix-vector product in one kernel, for one row on Hopper: the weights hide the norm.

Every program normalises the row for itself, while its first weight tiles come through the copy engine.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from remuda.kernels.longhorn.gpu_decode_configs import Gemm
from remuda.kernels.longhorn.gpu_gemm import barrier, descriptor, gdc_launch_dependents, gdc_wait

# Columns of a weight row in one thread.
_VECTOR = gl.constexpr(8)


@gluon.jit
def _norm_gemv_kernel(
    d_w, p_partial, p_residual, p_new_residual, p_norm_weight, p_norm_bias, p_bias, p_out, eps,
    M: gl.constexpr, N: gl.constexpr, BLOCK_M: gl.constexpr, NUM_PARTS: gl.constexpr,
    NUM_STAGES: gl.constexpr, HAS_NORM_BIAS: gl.constexpr, HAS_BIAS: gl.constexpr, IS_RMS: gl.constexpr,
    IS_PDL: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """new_residual (M,) = residual + sum of the parts; out (N,) = w (N, M) @ norm(new_residual) + bias."""
    BLOCK_N: gl.constexpr = d_w.block_type.shape[0]
    BLOCK_K: gl.constexpr = d_w.block_type.shape[1]
    NUM_TILES: gl.constexpr = (M + BLOCK_K - 1) // BLOCK_K
    NUM_FIRST: gl.constexpr = NUM_STAGES if NUM_STAGES < NUM_TILES else NUM_TILES
    ROW: gl.constexpr = gl.BlockedLayout([_VECTOR], [32], [num_warps], [0])
    LANES: gl.constexpr = BLOCK_K // _VECTOR
    TILE: gl.constexpr = gl.BlockedLayout([1, _VECTOR], [32 // LANES, LANES], [num_warps, 1], [1, 0])
    DTYPE: gl.constexpr = d_w.dtype
    if IS_PDL:
        gdc_launch_dependents()
    i_n = gl.program_id(0)
    s_w = gl.allocate_shared_memory(DTYPE, [NUM_STAGES, BLOCK_N, BLOCK_K], d_w.layout)
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    s_u = gl.allocate_shared_memory(gl.float32, [BLOCK_M // BLOCK_K, BLOCK_K], FLAT)
    bars = gl.allocate_shared_memory(gl.int64, [NUM_STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(NUM_STAGES):
        mbarrier.init(bars.index(i), count=1)
    for i in gl.static_range(NUM_FIRST):
        mbarrier.expect(bars.index(i), d_w.block_type.nbytes)
        tma.async_copy_global_to_shared(d_w, [i_n * BLOCK_N, i * BLOCK_K], bars.index(i), s_w.index(i))
    o_m = gl.arange(0, BLOCK_M, ROW)
    m_m = o_m < M
    b_weight = gl.load(p_norm_weight + o_m, mask=m_m, other=0.0).to(gl.float32)
    if IS_PDL:
        gdc_wait()
    b_value = gl.load(p_residual + o_m, mask=m_m, other=0.0).to(gl.float32)
    for i_part in gl.static_range(NUM_PARTS):
        b_value += gl.load(p_partial + i_part * M + o_m, mask=m_m, other=0.0).to(gl.float32)
    b_stored = b_value.to(p_residual.dtype.element_ty)
    if i_n == 0:
        gl.store(p_new_residual + o_m, b_stored, mask=m_m)
    b_value = b_stored.to(gl.float32)
    if not IS_RMS:
        b_value = gl.where(m_m, b_value - gl.sum(b_value, 0) / M, 0.0)
    b_u = b_value * gl.rsqrt(gl.sum(b_value * b_value, 0) / M + eps) * b_weight
    if HAS_NORM_BIAS:
        b_u += gl.load(p_norm_bias + o_m, mask=m_m, other=0.0).to(gl.float32)
    # Rounded as a kernel of its own would pass it on.
    s_u._reinterpret(gl.float32, [1, BLOCK_M], FLAT).index(0).store(b_u.to(DTYPE).to(gl.float32))
    barrier()
    acc = gl.zeros([BLOCK_N, BLOCK_K], gl.float32, TILE)
    for i_t in range(NUM_TILES):
        s = i_t % NUM_STAGES
        mbarrier.wait(bars.index(s), (i_t // NUM_STAGES) & 1)
        b_w = s_w.index(s).load(TILE).to(gl.float32)
        # No warp may still read the stage when its next tile comes.
        barrier()
        if i_t + NUM_STAGES < NUM_TILES:
            mbarrier.expect(bars.index(s), d_w.block_type.nbytes)
            tma.async_copy_global_to_shared(
                d_w, [i_n * BLOCK_N, (i_t + NUM_STAGES) * BLOCK_K], bars.index(s), s_w.index(s)
            )
        acc += b_w * s_u.index(i_t).load(gl.SliceLayout(0, TILE))[None, :]
    for i in gl.static_range(NUM_STAGES):
        mbarrier.invalidate(bars.index(i))
    o_n = i_n * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(1, TILE))
    b_out = gl.sum(acc, 1)
    if HAS_BIAS:
        b_out += gl.load(p_bias + o_n, mask=o_n < N, other=0.0).to(gl.float32)
    gl.store(p_out + o_n, b_out.to(DTYPE), mask=o_n < N)


def norm_gemv(
    partial: Tensor | None,
    residual: Tensor,
    norm: tuple[Tensor, Tensor | None],
    eps: float,
    packed: tuple[Tensor, Tensor | None],
    tiles: Gemm,
    *,
    is_rms: bool,
    is_pdl: bool,
) -> tuple[Tensor, Tensor]:
    """The residual (1, M) with the parts (P, 1, M) added, and its norm @ weight.T + bias, (1, N).

    `tiles` gives columns, depth, warps and stages. The residual itself stays: other programs still read it.
    """
    (weight, bias), (norm_weight, norm_bias) = packed, norm
    N, M = weight.shape
    assert residual.shape == (1, M)
    new_residual = torch.empty_like(residual)
    out = torch.empty((1, N), dtype=weight.dtype, device=residual.device)
    _norm_gemv_kernel[(triton.cdiv(N, tiles.block_n),)](
        descriptor(weight, tiles.block_n, tiles.block_k), residual if partial is None else partial,
        residual, new_residual, norm_weight, norm_weight if norm_bias is None else norm_bias,
        weight if bias is None else bias, out, eps, M=M, N=N,
        BLOCK_M=max(triton.next_power_of_2(M), tiles.block_k), NUM_PARTS=0 if partial is None else len(partial),
        NUM_STAGES=tiles.num_stages, HAS_NORM_BIAS=norm_bias is not None, HAS_BIAS=bias is not None,
        IS_RMS=is_rms, IS_PDL=is_pdl, num_warps=tiles.num_warps, launch_pdl=is_pdl,
    )  # fmt: skip
    return new_residual, out
