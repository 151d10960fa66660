"""Linear layers on the GPU whose every output row has the same bits in any batch. One Triton kernel, no cuBLAS.

A row's result is fixed by the order in which its K products are added and by the instruction that adds them.
Here both follow from the weight's dtype alone: no split of K, no tuning at run time, one tile width and depth.
`gpu.py` is faster: cuBLAS chooses another kernel, and so another rounding, for another number of rows.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

# Weight (N, K) and bias (N,) or None, in the model's dtype.
PackedLinear = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Rows:
    """What is free to follow the number of rows: it decides which rows share a program, never a row's bits."""

    block_m: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Tiling:
    """block_n, block_k: width and depth of the tiles of a dtype, which the matrix instruction follows.

    few: for up to `few.block_m` rows, where the weight is streamed once; many: for more.
    """

    block_n: int
    block_k: int
    few: Rows
    many: Rows


# Measured on an H200, the weights of 1.3B: 1.3 times cuBLAS's time for 16384 rows, 1.8 for one. Tiles 64 wide
# take 1.8 and 1.4 times.
_HALF: Final = Tiling(
    block_n=128, block_k=64, few=Rows(64, num_warps=4, num_stages=6), many=Rows(128, num_warps=8, num_stages=4)
)
TILINGS: dict[torch.dtype, Tiling] = {
    torch.bfloat16: _HALF,
    torch.float16: _HALF,
    torch.float32: Tiling(
        block_n=64, block_k=16, few=Rows(16, num_warps=4, num_stages=5), many=Rows(64, num_warps=4, num_stages=3)
    ),
}
# Tile rows that run together, so that the tiles of x and of the weight that they share stay in the L2 cache.
_GROUP: Final = 8
# Rows of x start on a multiple of this many elements, whatever the view, so that one compiled kernel serves all.
_ALIGNMENT: Final = 16


@triton.jit(do_not_specialize=["T"])
def _linear_kernel(
    p_x, p_weight, p_bias, p_out, T, stride_x,
    N: tl.constexpr, K: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    i_tile = tl.program_id(0)
    num_m, num_n = tl.cdiv(T, BLOCK_M), tl.cdiv(N, BLOCK_N)
    i_first = i_tile // (GROUP * num_n) * GROUP
    height = tl.minimum(num_m - i_first, GROUP)
    i_m = (i_first + i_tile % (GROUP * num_n) % height).to(tl.int64) * BLOCK_M
    i_n = (i_tile % (GROUP * num_n) // height).to(tl.int64) * BLOCK_N
    o_m, o_n, o_k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    m_m, m_n = o_m < T - i_m, o_n < N - i_n
    # The tile's corner is a 64-bit address; inside the tile 32 bits suffice.
    p_x += i_m * stride_x + (o_m[:, None] * stride_x + o_k[None, :])
    p_weight += i_n * K + (o_n[None, :] * K + o_k[:, None])
    b_out = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for i_k in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            b_x = tl.load(p_x + i_k, mask=m_m[:, None], other=0.0)
            b_weight = tl.load(p_weight + i_k, mask=m_n[None, :], other=0.0)
        else:
            m_k = o_k < K - i_k
            b_x = tl.load(p_x + i_k, mask=m_m[:, None] & m_k[None, :], other=0.0)
            b_weight = tl.load(p_weight + i_k, mask=m_n[None, :] & m_k[:, None], other=0.0)
        b_out = tl.dot(b_x, b_weight, b_out, input_precision="ieee")
    if HAS_BIAS:
        b_out += tl.load(p_bias + i_n + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    p_out += i_m * N + i_n + (o_m[:, None] * N + o_n[None, :])
    tl.store(p_out, b_out.to(p_out.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])


def pack(weight: Tensor, bias: Tensor | None) -> PackedLinear:
    """weight: (N, K) as in `torch.nn.Linear`; bias: (N,) or None. Both are kept as they are."""
    assert weight.is_contiguous()
    assert bias is None or (bias.dtype == weight.dtype and bias.is_contiguous())
    return weight, bias


def linear(x: Tensor, packed: PackedLinear) -> Tensor:
    """x @ weight.T + bias, x: (T, K) of the weights' dtype, rows of any stride -> (T, N).

    Sums are float32, in the order of k. Row t of the result depends on row t of x alone, bit for bit.
    """
    out = torch.empty((len(x), len(packed[0])), dtype=x.dtype, device=x.device)
    return _launch(x, packed, out)


def linear_float32(x: Tensor, packed: PackedLinear, out: Tensor | None = None) -> Tensor:
    """`linear` whose sums stay float32, (T, N), in `out` where it is given."""
    if out is None:
        out = torch.empty((len(x), len(packed[0])), dtype=torch.float32, device=x.device)
    return _launch(x, packed, out)


def _launch(x: Tensor, packed: PackedLinear, out: Tensor) -> Tensor:
    weight, bias = packed
    (T, K), N = x.shape, len(weight)
    assert x.dtype == weight.dtype
    assert weight.shape[1] == K
    assert out.shape == (T, N)
    assert out.is_contiguous()
    if T == 0:
        return out
    x = _aligned(x)
    tiling = TILINGS[x.dtype]
    rows = tiling.few if tiling.few.block_m >= T and _has_short_tiles(x.device) else tiling.many
    _linear_kernel[(triton.cdiv(T, rows.block_m) * triton.cdiv(N, tiling.block_n),)](
        x, weight, weight if bias is None else bias, out, T, x.stride(0),
        N=N, K=K, HAS_BIAS=bias is not None,
        BLOCK_M=rows.block_m, BLOCK_N=tiling.block_n, BLOCK_K=tiling.block_k, GROUP=_GROUP,
        num_warps=rows.num_warps, num_stages=_num_stages(rows, tiling, x),
    )  # fmt: skip
    return out


def _num_stages(rows: Rows, tiling: Tiling, x: Tensor) -> int:
    """Pipeline stages, fewer where the device's shared memory holds fewer; no bit depends on them."""
    stage_bytes = (rows.block_m + tiling.block_n) * tiling.block_k * x.itemsize
    return min(rows.num_stages, _shared_memory(x.device) // stage_bytes)


@lru_cache
def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program can have."""
    if device.type == "cpu":
        return 1 << 20
    index = torch.cuda.current_device() if device.index is None else device.index
    return int(triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"])


def _aligned(x: Tensor) -> Tensor:
    """`x` (T, K), or a copy of it whose rows lie as the kernel that is compiled for aligned rows wants them."""
    if x.stride(1) == 1 and x.stride(0) % _ALIGNMENT == 0 and x.data_ptr() % _ALIGNMENT == 0:
        return x
    T, K = x.shape
    copy = x.new_empty((T, triton.cdiv(K, _ALIGNMENT) * _ALIGNMENT))[:, :K]
    copy.copy_(x)
    return copy


@lru_cache
def _has_short_tiles(device: torch.device) -> bool:
    """Whether short and tall tiles are computed by the same matrix instruction.

    Up to Hopper it spans at most 64 rows. Datacentre Blackwell's is as tall as the tile.
    """
    return device.type == "cpu" or torch.cuda.get_device_capability(device)[0] not in (10, 11)
