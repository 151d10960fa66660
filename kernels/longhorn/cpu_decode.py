"""All layers of a Longhorn decode step for a few rows in one compiled call: Python is left once a step, not once
a kernel. The maths is that of the kernels it calls; engine/models/longhorn.py is the data flow it repeats.
"""

import time
from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from remuda.kernels import cpu_jit
from remuda.kernels.conv.cpu import convolve
from remuda.kernels.cpu_jit import serial
from remuda.kernels.cpu_threads import ThreadChooser
from remuda.kernels.linear.cpu import MAX_GEMM_ROWS, PackedLinear, gemm
from remuda.kernels.longhorn.cpu import scan
from remuda.kernels.norm.cpu import add_norm, add_norm_rows_serial

_MAX_ROWS: Final = MAX_GEMM_ROWS


def can_fuse(dtype: torch.dtype) -> bool:
    """Weights of this dtype are served."""
    return dtype == torch.float32


def max_rows(state_dtype: torch.dtype) -> int:
    """The largest batch that is served; states are float32."""
    return _MAX_ROWS


@dataclass(frozen=True)
class DecodeLayer:
    """The packed weights of one layer, as the kernels' `pack` made them."""

    norm_weight: Tensor
    norm_bias: Tensor | None
    in_proj: PackedLinear
    conv: Tensor
    x_proj: PackedLinear
    dt_head: PackedLinear
    skip: Tensor
    out_proj: PackedLinear


class FusedDecode:
    """Runs the layers over at most `max_rows` rows. Holds addresses: `layers` and the pool must outlive it."""

    def __init__(
        self,
        layers: list[DecodeLayer],
        embedding: Tensor,
        final_norm: tuple[Tensor, Tensor | None],
        *,
        width: int,
        eps: float,
        is_rms: bool,
        residual_dtype: torch.dtype,
    ) -> None:
        assert residual_dtype == torch.float32
        first = layers[0]
        self._layers, self._embedding, self._final_norm = layers, embedding, final_norm
        self._weights = np.array([_addresses(layer) for layer in layers], dtype=np.int64)
        D, M, R = len(first.skip), len(first.norm_weight), first.dt_head.weight.shape[1]
        N = (len(first.x_proj.weight) - R) // 2
        self._sizes = (D, M, width, N, R)
        self._norm = (eps, is_rms)
        columns = (M, 2 * D, D, R + 2 * N, D, D)
        self._scratch = [torch.zeros((_MAX_ROWS, size)) for size in columns]
        self._buffers = np.array([buffer.data_ptr() for buffer in self._scratch], dtype=np.int64)
        self._bounds = torch.arange(_MAX_ROWS + 1, dtype=torch.int32)
        self._max_threads = numba.get_num_threads()
        # One for each power of two of rows: the more work in a step, the less a barrier weighs.
        self._choosers = [ThreadChooser(self._max_threads) for _ in range(_MAX_ROWS.bit_length() + 1)]
        self._state: list[dict[str, Tensor]] | None = None
        self._states = np.zeros((len(layers), 4), dtype=np.int64)

    def __call__(
        self,
        token_ids: Tensor,
        state: list[dict[str, Tensor]],
        src_slots: Tensor,
        dst_slots: Tensor,
        fresh: Tensor,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """One token a row. token_ids: (B,); state: the pool's views of each layer, float32, which needs no seeds.

        Returns what the last norm gives, (B, M).
        """
        assert seeds is None
        if self._state is not state:
            rows = [[*cpu_jit.slots(layer["conv"]), *cpu_jit.slots(layer["h"])] for layer in state]
            self._state, self._states = state, np.array(rows, dtype=np.int64)
        residual = self._embedding[token_ids]
        B = len(residual)
        hidden = torch.empty_like(residual)
        chooser = self._choosers[B.bit_length()]
        num_threads = chooser.choose()
        numba.set_num_threads(num_threads)
        began = time.perf_counter()
        _decode(
            self._weights,
            self._states,
            self._buffers,
            self._sizes,
            *self._norm,
            cpu_jit.address(residual, torch.float32),
            self._bounds.data_ptr(),
            cpu_jit.address(src_slots, torch.int32),
            cpu_jit.address(dst_slots, torch.int32),
            cpu_jit.address(fresh, torch.bool),
            B,
            hidden.data_ptr(),
        )
        chooser.record(time.perf_counter() - began)
        numba.set_num_threads(self._max_threads)
        eps, is_rms = self._norm
        normed: Tensor = add_norm(hidden, residual, *self._final_norm, eps, is_rms=is_rms, out_dtype=torch.float32)
        return normed


def _addresses(layer: DecodeLayer) -> list[int]:
    linears = (layer.in_proj, layer.x_proj, layer.dt_head, layer.out_proj)
    return [
        layer.norm_weight.data_ptr(),
        0 if layer.norm_bias is None else layer.norm_bias.data_ptr(),
        layer.conv.data_ptr(),
        layer.skip.data_ptr(),
        *(linear.weight.data_ptr() for linear in linears),
        *(linear.bias.data_ptr() for linear in linears),
    ]


@serial
def _decode(
    weights: npt.NDArray[np.int64],
    states: npt.NDArray[np.int64],
    buffers: npt.NDArray[np.int64],
    sizes: tuple[int, int, int, int, int],
    eps: float,
    is_rms: bool,
    residual: int,
    bounds: int,
    src_slots: int,
    dst_slots: int,
    fresh: int,
    B: int,
    hidden: int,
) -> None:
    D, M, W, N, R = sizes
    P = R + 2 * N
    u, xz, x, projected, dt, y = buffers
    for i in range(len(weights)):
        norm_weight, norm_bias, conv, skip, in_w, x_w, dt_w, out_w, in_b, x_b, dt_b, out_b = weights[i]
        conv_state, conv_stride, h, h_stride = states[i]
        previous = 0 if i == 0 else hidden
        add_norm_rows_serial(previous, M, residual, M, norm_weight, norm_bias, eps, is_rms, B, M, u)
        gemm(u, M, in_w, in_b, B, 2 * D, M, xz)
        convolve(xz, 2 * D, conv, conv_state, conv_stride, bounds, src_slots, dst_slots, fresh, B, D, W, x)
        gemm(x, D, x_w, x_b, B, P, D, projected)
        gemm(projected, P, dt_w, dt_b, B, D, R, dt)
        scan(
            x, D, dt, D, projected + 4 * R, P, projected + 4 * (R + N), P, xz + 4 * D, 2 * D, skip, h, h_stride,
            bounds, src_slots, dst_slots, fresh, B, D, N, y,
        )  # fmt: skip
        gemm(y, D, out_w, out_b, B, M, D, hidden)
