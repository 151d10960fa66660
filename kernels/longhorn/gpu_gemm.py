"""Skinny GEMM for decode on Hopper: weights stream through the bulk copy engine, from before the rows are ready.

Under programmatic dependent launch the first weight tiles are on their way while the kernel before still runs.
Computes the transpose, so that few rows fill the short side of the warp group's matrix instruction.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from remuda.kernels.longhorn.gpu_decode_configs import Gemm

# Its name in Triton 3.7, and in 3.6.
barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier


@gluon.jit
def gdc_wait():
    gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def gdc_launch_dependents():
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit(do_not_specialize=["num_rows"])
def gemm_kernel(
    d_w, d_a, p_bias, p_out, num_rows, N: gl.constexpr, NUM_TILES: gl.constexpr, NUM_STAGES: gl.constexpr,
    HAS_BIAS: gl.constexpr, IS_PDL: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """out[s] (B, N) = a (B, K) @ w (N, K)^T over NUM_TILES tiles of K from the s-th part on; bias to part 0."""
    BLOCK_N: gl.constexpr = d_w.block_type.shape[0]
    BLOCK_K: gl.constexpr = d_w.block_type.shape[1]
    BLOCK_B: gl.constexpr = d_a.block_type.shape[0]
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BLOCK_B, 16])
    OUT: gl.constexpr = gl.BlockedLayout([4, 1], [16, 2], [1, num_warps], [0, 1])
    NUM_FIRST: gl.constexpr = NUM_STAGES if NUM_STAGES < NUM_TILES else NUM_TILES
    BYTES: gl.constexpr = d_w.block_type.nbytes + d_a.block_type.nbytes
    if IS_PDL:
        gdc_launch_dependents()
    i_b, i_n, i_s = gl.program_id(0), gl.program_id(1), gl.program_id(2)
    i_k = i_s * (NUM_TILES * BLOCK_K)
    s_w = gl.allocate_shared_memory(d_w.dtype, [NUM_STAGES, BLOCK_N, BLOCK_K], d_w.layout)
    s_a = gl.allocate_shared_memory(d_a.dtype, [NUM_STAGES, BLOCK_B, BLOCK_K], d_a.layout)
    bars = gl.allocate_shared_memory(gl.int64, [NUM_STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(NUM_STAGES):
        mbarrier.init(bars.index(i), count=1)
    for i in gl.static_range(NUM_FIRST):
        mbarrier.expect(bars.index(i), BYTES)
        tma.async_copy_global_to_shared(d_w, [i_n * BLOCK_N, i_k + i * BLOCK_K], bars.index(i), s_w.index(i))
    if IS_PDL:
        gdc_wait()
    for i in gl.static_range(NUM_FIRST):
        tma.async_copy_global_to_shared(d_a, [i_b * BLOCK_B, i_k + i * BLOCK_K], bars.index(i), s_a.index(i))
    acc = gl.zeros([BLOCK_N, BLOCK_B], gl.float32, ACC)
    for i_t in range(NUM_TILES):
        s = i_t % NUM_STAGES
        mbarrier.wait(bars.index(s), (i_t // NUM_STAGES) & 1)
        acc = warpgroup_mma(s_w.index(s), s_a.index(s).permute((1, 0)), acc, is_async=True)
        # The product before this one is done: its stage takes the tile that comes a round later.
        acc = warpgroup_mma_wait(1, deps=(acc,))
        i_next = i_t - 1 + NUM_STAGES
        if (i_t > 0) & (i_next < NUM_TILES):
            r = i_next % NUM_STAGES
            barrier()
            mbarrier.expect(bars.index(r), BYTES)
            tma.async_copy_global_to_shared(
                d_w, [i_n * BLOCK_N, i_k + i_next * BLOCK_K], bars.index(r), s_w.index(r)
            )
            tma.async_copy_global_to_shared(
                d_a, [i_b * BLOCK_B, i_k + i_next * BLOCK_K], bars.index(r), s_a.index(r)
            )
    acc = warpgroup_mma_wait(0, deps=(acc,))
    for i in gl.static_range(NUM_STAGES):
        mbarrier.invalidate(bars.index(i))
    out = gl.convert_layout(acc, OUT)
    o_n = i_n * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(1, OUT))
    o_b = i_b * BLOCK_B + gl.arange(0, BLOCK_B, gl.SliceLayout(0, OUT))
    if HAS_BIAS and i_s == 0:
        out += gl.load(p_bias + o_n, mask=o_n < N, other=0.0).to(gl.float32)[:, None]
    o_row = (i_s * num_rows + o_b).to(gl.int64)
    mask = (o_n < N)[:, None] & (o_b < num_rows)[None, :]
    gl.store(p_out + o_row[None, :] * N + o_n[:, None], out.to(p_out.dtype.element_ty), mask=mask)


_DTYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}


def descriptor(matrix: Tensor, block_rows: int, block_k: int) -> Any:
    """How the copy engine reads tiles (block_rows, block_k) of a 16-bit matrix, zeros beyond its edges."""
    layout = gl.NVMMASharedLayout.get_default_for([block_rows, block_k], _DTYPES[matrix.dtype])
    return TensorDescriptor.from_tensor(matrix, [block_rows, block_k], layout)


def gemm(a: Tensor, weight: Tensor, bias: Tensor | None, tiles: Gemm, *, is_final: bool, is_pdl: bool) -> Tensor:
    """a (B, K) @ weight (N, K)^T + bias in parts to be summed: (split_k, B, N), of a's dtype where it `is_final`.

    float32 parts otherwise. K must be a multiple of 8, and rows start at multiples of 16 bytes.
    """
    (B, K), N = a.shape, len(weight)
    num_tiles = triton.cdiv(K, tiles.block_k * tiles.split_k)
    out = torch.empty((tiles.split_k, B, N), dtype=a.dtype if is_final else torch.float32, device=a.device)
    gemm_kernel[(triton.cdiv(B, tiles.block_b), triton.cdiv(N, tiles.block_n), tiles.split_k)](
        descriptor(weight, tiles.block_n, tiles.block_k), descriptor(a, tiles.block_b, tiles.block_k),
        weight if bias is None else bias, out, B, N=N, NUM_TILES=num_tiles, NUM_STAGES=tiles.num_stages,
        HAS_BIAS=bias is not None, IS_PDL=is_pdl, num_warps=tiles.num_warps, launch_pdl=is_pdl,
    )  # fmt: skip
    return out
