"""Linear layers in float32 on the CPU: numba for a few rows, torch's GEMM for many, oneDNN for many rows of a
wide output such as the vocabulary, whose weight alone is held twice.
"""

from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
import torch
from numba import prange
from torch import Tensor

from remuda.kernels import cpu_jit
from remuda.kernels.cpu_jit import floats
from remuda.kernels.cpu_math import ZERO

# Measured on 2 cores at the layers of models of width 256 and 768: up to here `gemv` is level or ahead.
MAX_GEMV_ROWS: Final = 32
# Measured at 50304 outputs and 64 rows: 42 ms on a weight packed for oneDNN, 80 ms in torch's GEMM; level at 3072.
MIN_WIDE_OUTPUTS: Final = 16384
# oneDNN compiles and keeps half a megabyte for each number of rows that it meets: it meets multiples of this only.
_WIDE_ROWS: Final = 16
# Sums of products may be taken in any order, which vectorises them; NaN and infinity keep their meaning.
_ANY_ORDER: Final = {"contract", "reassoc", "nsz", "arcp"}


@dataclass(frozen=True)
class PackedLinear:
    """weight: (N, K) float32 contiguous; bias: (N,), zeros for none; wide: oneDNN's form of a wide weight."""

    weight: Tensor
    bias: Tensor
    wide: Tensor | None


def pack(weight: Tensor, bias: Tensor | None) -> PackedLinear:
    """weight: (N, K) as in `torch.nn.Linear`; bias: (N,) or None."""
    weight = weight.float().contiguous()
    bias = weight.new_zeros(len(weight)) if bias is None else bias.float().contiguous()
    wide = None
    if len(weight) >= MIN_WIDE_OUTPUTS and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        wide = torch.ops.mkldnn._reorder_linear_weight(weight, 64)
    return PackedLinear(weight, bias, wide)


def linear(x: Tensor, packed: PackedLinear) -> Tensor:
    """x @ weight.T + bias, x: (T, K), rows may be views of wider ones. Returns (T, N)."""
    T = len(x)
    if T > MAX_GEMV_ROWS:
        if packed.wide is None:
            return torch.nn.functional.linear(x, packed.weight, packed.bias)
        x = torch.nn.functional.pad(x, (0, 0, 0, -T % _WIDE_ROWS))
        padded: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed.wide, packed.bias, "none", [], "")
        return padded[:T]
    N, K = packed.weight.shape
    out = torch.empty((T, N))
    gemv(*cpu_jit.rows(x), packed.weight.data_ptr(), packed.bias.data_ptr(), T, N, K, out.data_ptr())
    return out


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def gemv(x: int, x_stride: int, weight: int, bias: int, T: int, N: int, K: int, out: int) -> None:
    """`linear` on addresses, for compiled callers too: four weight rows at a time meet all T rows of x.

    The order of summation within a dot product does not depend on T, so neither does a row's result.
    """
    for group in prange((N + 3) // 4):
        n = group * 4
        if n + 4 <= N:
            for t in range(T):
                _dot_four(x + 4 * t * x_stride, weight, bias, n, K, out + 4 * (t * N + n))
        else:
            for t in range(T):
                for last in range(n, N):
                    row, gain = floats(x, t * x_stride, K), floats(weight, last * K, K)
                    floats(out, t * N + last, 1)[0] = _dot(row, gain) + floats(bias, last, 1)[0]


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=_ANY_ORDER)
def _dot_four(x: int, weight: int, bias: int, n: int, K: int, out: int) -> None:
    """Outputs n to n + 3 of one row."""
    row, shift, result = floats(x, 0, K), floats(bias, n, 4), floats(out, 0, 4)
    w0, w1 = floats(weight, n * K, K), floats(weight, (n + 1) * K, K)
    w2, w3 = floats(weight, (n + 2) * K, K), floats(weight, (n + 3) * K, K)
    s0 = s1 = s2 = s3 = ZERO
    for i in range(K):
        value = row[i]
        s0 += w0[i] * value
        s1 += w1[i] * value
        s2 += w2[i] * value
        s3 += w3[i] * value
    result[0] = s0 + shift[0]
    result[1] = s1 + shift[1]
    result[2] = s2 + shift[2]
    result[3] = s3 + shift[3]


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=_ANY_ORDER)
def _dot(row: cpu_jit.Floats, gain: cpu_jit.Floats) -> np.float32:
    total = ZERO
    for i in range(len(row)):
        total += row[i] * gain[i]
    return total
