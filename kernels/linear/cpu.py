"""Linear layers in float32 on the CPU: a numba GEMM for the rows of a decode step, torch's for longer batches."""

from dataclasses import dataclass
from typing import Final

import torch
from numba import prange
from torch import Tensor

from remuda.kernels import cpu_jit
from remuda.kernels.cpu_jit import any_order, floats, parallel
from remuda.kernels.cpu_math import ZERO

# Measured on 2 cores at the layers of models of width 256 and 768: up to here `gemm` is level with torch's GEMM
# or ahead, by 1.9 times at 50304 outputs and 64 rows; at 128 rows neither is ahead.
MAX_GEMM_ROWS: Final = 64


@dataclass(frozen=True)
class PackedLinear:
    """weight: (N, K) float32 contiguous; bias: (N,), zeros where there is none."""

    weight: Tensor
    bias: Tensor


def pack(weight: Tensor, bias: Tensor | None) -> PackedLinear:
    """weight: (N, K) as in `torch.nn.Linear`; bias: (N,) or None."""
    weight = weight.float().contiguous()
    return PackedLinear(weight, weight.new_zeros(len(weight)) if bias is None else bias.float().contiguous())


def linear(x: Tensor, packed: PackedLinear) -> Tensor:
    """x @ weight.T + bias, x: (T, K), rows may be views of wider ones. Returns (T, N)."""
    T = len(x)
    if T > MAX_GEMM_ROWS:
        return torch.nn.functional.linear(x, packed.weight, packed.bias)
    N, K = packed.weight.shape
    out = torch.empty((T, N))
    gemm(*cpu_jit.rows(x), packed.weight.data_ptr(), packed.bias.data_ptr(), T, N, K, out.data_ptr())
    return out


def linear_float32(x: Tensor, packed: PackedLinear, out: Tensor | None = None) -> Tensor:
    """`linear` in float32, (T, N), in `out` where it is given."""
    product = linear(x.float(), packed)
    return product if out is None else out.copy_(product)


@parallel
def gemm(x: int, x_stride: int, weight: int, bias: int, T: int, N: int, K: int, out: int) -> None:
    """`linear` on addresses, for compiled callers too, in tiles of two rows of x and four of the weight.

    The weight is read once, and x from the cache. A last tile overlaps the one before, an odd last row is
    paired with itself: so every dot product is taken by the same code, and a row's result does not depend
    on T or on its place.
    """
    for tile in prange((N + 3) // 4):
        n = min(4 * tile, max(N - 4, 0))
        for t in range(0, T, 2):
            other = min(t + 1, T - 1)
            first_out, second_out = out + 4 * (t * N + n), out + 4 * (other * N + n)
            if N >= 4:
                _dot_4_by_2(
                    x + 4 * t * x_stride, x + 4 * other * x_stride, weight, bias, n, K, first_out, second_out
                )
            else:
                _dot_few(x + 4 * t * x_stride, weight, bias, N, K, first_out)
                _dot_few(x + 4 * other * x_stride, weight, bias, N, K, second_out)


@any_order
def _dot_4_by_2(x: int, y: int, weight: int, bias: int, n: int, K: int, x_out: int, y_out: int) -> None:
    """Outputs n to n + 3 of two rows: eight sums, which keep the processor's multipliers busy."""
    first, second, shift = floats(x, 0, K), floats(y, 0, K), floats(bias, n, 4)
    w0, w1 = floats(weight, n * K, K), floats(weight, (n + 1) * K, K)
    w2, w3 = floats(weight, (n + 2) * K, K), floats(weight, (n + 3) * K, K)
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = ZERO
    for i in range(K):
        a, b = first[i], second[i]
        a0 += w0[i] * a
        a1 += w1[i] * a
        a2 += w2[i] * a
        a3 += w3[i] * a
        b0 += w0[i] * b
        b1 += w1[i] * b
        b2 += w2[i] * b
        b3 += w3[i] * b
    first_out, second_out = floats(x_out, 0, 4), floats(y_out, 0, 4)
    first_out[0], first_out[1] = a0 + shift[0], a1 + shift[1]
    first_out[2], first_out[3] = a2 + shift[2], a3 + shift[3]
    second_out[0], second_out[1] = b0 + shift[0], b1 + shift[1]
    second_out[2], second_out[3] = b2 + shift[2], b3 + shift[3]


@any_order
def _dot_few(x: int, weight: int, bias: int, N: int, K: int, out: int) -> None:
    """All outputs of one row, where they are fewer than a tile's."""
    row, shift, result = floats(x, 0, K), floats(bias, 0, N), floats(out, 0, N)
    for n in range(N):
        gain, total = floats(weight, n * K, K), ZERO
        for i in range(K):
            total += row[i] * gain[i]
        result[n] = total + shift[n]
