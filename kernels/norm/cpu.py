"""Residual add and normalisation in numba, parallel over rows. float32 throughout."""

import numpy as np
import torch
from numba import prange
from torch import Tensor

from remuda.kernels import cpu_jit
from remuda.kernels.cpu_jit import floats, parallel, serial, stack
from remuda.kernels.cpu_math import ONE, ZERO, fma

# Partial sums of a row: a fixed order of addition that still vectorises.
LANES = 32
# Below this many elements one thread is done before others have started.
MIN_PARALLEL = 8192


def add_norm(
    hidden: Tensor | None,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    *,
    is_rms: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    """Add `hidden` to `residual` in place (None: skip the add) and return the normalised residual.

    hidden, residual: (T, M), rows may be views of wider ones; weight, bias: (M,). RMSNorm (Zhang &
    Sennrich 2019, eq. 4) or LayerNorm (Ba et al. 2016, eq. 3, biased variance). Returns (T, M).
    """
    assert out_dtype is torch.float32
    T, M = residual.shape
    assert hidden is None or hidden.shape == (T, M)
    assert weight.shape == (M,)
    assert bias is None or bias.shape == (M,)
    out = torch.empty((T, M))
    kernel = add_norm_rows if T * M >= MIN_PARALLEL else add_norm_rows_serial
    kernel(
        *((0, 0) if hidden is None else cpu_jit.rows(hidden)),
        *cpu_jit.rows(residual),
        cpu_jit.address(weight, torch.float32),
        0 if bias is None else cpu_jit.address(bias, torch.float32),
        eps,
        is_rms,
        T,
        M,
        out.data_ptr(),
    )
    return out


@parallel
def add_norm_rows(
    hidden: int,
    hidden_stride: int,
    residual: int,
    residual_stride: int,
    weight: int,
    bias: int,
    eps: float,
    is_rms: bool,
    T: int,
    M: int,
    out: int,
) -> None:
    """`add_norm` on addresses, for compiled callers too; 0 stands for a hidden or bias of None."""
    for t in prange(T):
        row = residual + 4 * t * residual_stride
        if hidden != 0:
            _add(row, hidden + 4 * t * hidden_stride, M)
        _norm(row, weight, bias, eps, is_rms, M, out + 4 * t * M)


@serial
def add_norm_rows_serial(
    hidden: int,
    hidden_stride: int,
    residual: int,
    residual_stride: int,
    weight: int,
    bias: int,
    eps: float,
    is_rms: bool,
    T: int,
    M: int,
    out: int,
) -> None:
    """`add_norm_rows` in one thread, the same bits."""
    for t in range(T):
        row = residual + 4 * t * residual_stride
        if hidden != 0:
            _add(row, hidden + 4 * t * hidden_stride, M)
        _norm(row, weight, bias, eps, is_rms, M, out + 4 * t * M)


@serial
def _add(residual: int, hidden: int, M: int) -> None:
    total, value = floats(residual, 0, M), floats(hidden, 0, M)
    for i in range(M):
        total[i] += value[i]


@serial
def _norm(residual: int, weight: int, bias: int, eps: float, is_rms: bool, M: int, out: int) -> None:
    count = np.float32(M)
    mean = ZERO if is_rms else _sum(residual, M) / count
    scale = ONE / np.sqrt(_sum_of_squares(residual, mean, M) / count + np.float32(eps))
    value, gain, result = floats(residual, 0, M), floats(weight, 0, M), floats(out, 0, M)
    for i in range(M):
        result[i] = (value[i] - mean) * scale * gain[i]
    if bias != 0:
        _add(out, bias, M)


@serial
def _sum(row: int, M: int) -> np.float32:
    lanes = stack(LANES)
    lanes[:] = ZERO
    for i in range(0, M, LANES):
        width = min(LANES, M - i)
        value = floats(row, i, width)
        for c in range(width):
            lanes[c] += value[c]
    return _sum_of_lanes(lanes)


@serial
def _sum_of_squares(row: int, mean: np.float32, M: int) -> np.float32:
    lanes = stack(LANES)
    lanes[:] = ZERO
    for i in range(0, M, LANES):
        width = min(LANES, M - i)
        value = floats(row, i, width)
        for c in range(width):
            centred = value[c] - mean
            lanes[c] = fma(centred, centred, lanes[c])
    return _sum_of_lanes(lanes)


@serial
def _sum_of_lanes(lanes: cpu_jit.Floats) -> np.float32:
    width = LANES // 2
    while width > 0:
        for c in range(width):
            lanes[c] += lanes[c + width]
        width //= 2
    total: np.float32 = lanes[0]
    return total
