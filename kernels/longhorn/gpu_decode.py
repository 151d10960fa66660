"""All layers of a Longhorn decode step on a GPU: four to six kernels a layer, from the embedding to the last norm.

The maths is that of the kernels beside it; engine/models/longhorn.py is the data flow it repeats.
"""

from typing import Any, Final, NamedTuple

import torch
import triton
from torch import Tensor

from remuda.kernels.linear.gpu import PackedLinear
from remuda.kernels.longhorn import gpu_decode_kernels as kernels
from remuda.kernels.longhorn import gpu_gemm, gpu_norm_gemv
from remuda.kernels.longhorn.gpu_decode_configs import DecodeConfig, Gemm, choose, max_rows
from remuda.kernels.norm.gpu import num_warps

__all__ = ["DecodeLayer", "FusedDecode", "can_fuse", "max_rows"]

_EMBED_BLOCK: Final = 1024
_REDUCE_BLOCK: Final = 128
# Tiles of a GEMM without the copy engine, which fit the shared memory of any GPU from Ampere on.
_PORTABLE_K: Final = 64
_PORTABLE_STAGES: Final = 3


def can_fuse(dtype: torch.dtype) -> bool:
    """Weights of this dtype are served; float32 ones would not fit the tiles."""
    return dtype in (torch.bfloat16, torch.float16)


class DecodeLayer(NamedTuple):
    """The packed weights of one layer, as the kernels' `pack` made them."""

    norm_weight: Tensor
    norm_bias: Tensor | None
    in_proj: PackedLinear
    conv: Tensor
    x_proj: PackedLinear
    dt_head: PackedLinear
    skip: Tensor
    out_proj: PackedLinear


class Rows(NamedTuple):
    """Source and destination slots and fresh flags of the rows, (B,), and seeds (B,) or None."""

    src: Tensor
    dst: Tensor
    fresh: Tensor
    seeds: Tensor | None


class FusedDecode:
    """Runs all layers over rows of one token each, up to `max_rows`, or as `config` says, which is for tuning."""

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
        config: DecodeConfig | None = None,
    ) -> None:
        first = layers[0]
        self._layers, self._embedding, self._final_norm = layers, embedding, final_norm
        self._eps, self._is_rms, self._residual_dtype = eps, is_rms, residual_dtype
        self._D, self._M, self._W = len(first.skip), len(first.norm_weight), width
        self._R = first.dt_head[0].shape[1]
        self._N = (len(first.x_proj[0]) - self._R) // 2
        self._config = config
        major = torch.cuda.get_device_capability(embedding.device)[0] if embedding.is_cuda else 0
        self._pdl: dict[str, Any] = {"IS_PDL": True, "launch_pdl": True} if major >= 9 else {"IS_PDL": False}
        # Warp group instructions are Hopper's alone; the copy engine wants rows at multiples of 16 bytes.
        self._has_copy_engine = major == 9 and embedding.itemsize == 2 and self._M % 8 == self._D % 8 == 0

    def __call__(
        self,
        token_ids: Tensor,
        state: list[dict[str, Tensor]],
        src_slots: Tensor,
        dst_slots: Tensor,
        fresh: Tensor,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """One token a row. token_ids: (B,); state: the pool's views of each layer; seeds: of a 16-bit state.

        Returns what the last norm gives, (B, M).
        """
        B = len(token_ids)
        config = self._config or choose(B)
        residual = self._embed(token_ids)
        rows = Rows(src_slots, dst_slots, fresh, seeds)
        partial: Tensor | None = None
        for index, (layer, views) in enumerate(zip(self._layers, state, strict=True)):
            residual, xz = self._enter(partial, residual, layer, config)
            x, projected = self._convolve(layer, xz, views["conv"], rows, config)
            y = self._step(layer, index, x, xz, projected, views["h"], rows, config)
            partial = self._gemm(y, layer.out_proj, config.out_proj, is_final=False)
        return self._reduce_norm(partial, residual, *self._final_norm)

    def _embed(self, token_ids: Tensor) -> Tensor:
        B, M = len(token_ids), self._M
        residual = torch.empty((B, M), dtype=self._residual_dtype, device=token_ids.device)
        block_m = min(triton.next_power_of_2(M), _EMBED_BLOCK)
        kernels.embed_kernel[(B, triton.cdiv(M, block_m))](
            token_ids, self._embedding, residual, B, M=M, BLOCK_M=block_m, num_warps=2
        )
        return residual

    def _enter(
        self, partial: Tensor | None, residual: Tensor, layer: DecodeLayer, config: DecodeConfig
    ) -> tuple[Tensor, Tensor]:
        """The residual with the parts added, (B, M), and in_proj of its norm, (B, 2D)."""
        if config.is_norm_fused and config.in_proj is not None and self._has_copy_engine and len(residual) == 1:
            return gpu_norm_gemv.norm_gemv(
                partial, residual, (layer.norm_weight, layer.norm_bias), self._eps, layer.in_proj, config.in_proj,
                is_rms=self._is_rms, is_pdl=self._pdl["IS_PDL"],
            )  # fmt: skip
        u = self._reduce_norm(partial, residual, layer.norm_weight, layer.norm_bias)
        return residual, self._gemm(u, layer.in_proj, config.in_proj, is_final=True)[0]

    def _reduce_norm(
        self, partial: Tensor | None, residual: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        B, M = residual.shape
        out = torch.empty((B, M), dtype=weight.dtype, device=residual.device)
        block_m = triton.next_power_of_2(M)
        kernels.reduce_norm_kernel[(B,)](
            residual if partial is None else partial, residual, weight, weight if bias is None else bias, out,
            B, self._eps, M=M, BLOCK_M=block_m, NUM_PARTS=0 if partial is None else len(partial),
            HAS_BIAS=bias is not None, IS_RMS=self._is_rms,
            num_warps=num_warps(block_m), **self._pdl,
        )  # fmt: skip
        return out

    def _gemm(self, a: Tensor, packed: PackedLinear, tiles: Gemm | None, *, is_final: bool) -> Tensor:
        """a (B, K) @ weight.T + bias, as parts to be summed: (split_k, B, N); one part where it `is_final`."""
        weight, bias = packed
        (B, K), N = a.shape, len(weight)
        if tiles is None:
            return torch.nn.functional.linear(a, weight, bias)[None]
        assert not is_final or tiles.split_k == 1
        if self._has_copy_engine:
            return gpu_gemm.gemm(a, weight, bias, tiles, is_final=is_final, is_pdl=self._pdl["IS_PDL"])
        out = torch.empty((tiles.split_k, B, N), dtype=a.dtype if is_final else torch.float32, device=a.device)
        kernels.gemm_kernel[(triton.cdiv(B, tiles.block_b), triton.cdiv(N, tiles.block_n), tiles.split_k)](
            a, weight, weight if bias is None else bias, out, B,
            N=N, K=K, BLOCK_B=tiles.block_b, BLOCK_N=tiles.block_n, BLOCK_K=_PORTABLE_K, SPLIT_K=tiles.split_k,
            HAS_BIAS=bias is not None, num_warps=tiles.num_warps, num_stages=_PORTABLE_STAGES, **self._pdl,
        )  # fmt: skip
        return out

    def _convolve(
        self, layer: DecodeLayer, xz: Tensor, conv_state: Tensor, rows: Rows, config: DecodeConfig
    ) -> tuple[Tensor, Tensor]:
        """xz: (B, 2D). Returns x (B, D), and x_proj of it in parts to be summed, (parts, B, R + 2N)."""
        if config.conv[2] == 0:
            x = self._convolve_alone(layer, xz, conv_state, rows, config)
            return x, torch.nn.functional.linear(x, layer.x_proj[0])[None]
        B, D, P = len(xz), self._D, self._R + 2 * self._N
        x = torch.empty((B, D), dtype=xz.dtype, device=xz.device)
        block_b, block_c, part_c, num_warps = config.conv
        num_parts = triton.cdiv(D, part_c)
        partial = torch.empty((num_parts, B, P), dtype=torch.float32, device=xz.device)
        block_p = max(triton.next_power_of_2(P), 16)
        slots = (rows.src, rows.dst, rows.fresh)
        if block_b == 1:
            kernels.conv_project_row_kernel[(num_parts, B)](
                xz, layer.conv, conv_state, *slots, layer.x_proj[0], x, partial, B,
                conv_state.stride(0), D=D, W=self._W, P=P, BLOCK_P=block_p, BLOCK_C=block_c,
                num_warps=num_warps, **self._pdl,
            )  # fmt: skip
            return x, partial
        kernels.conv_project_kernel[(num_parts, triton.cdiv(B, block_b))](
            xz, layer.conv, conv_state, *slots, layer.x_proj[0], x, partial, B, conv_state.stride(0),
            D=D, W=self._W, P=P, BLOCK_B=block_b, BLOCK_C=block_c, BLOCK_P=block_p, PART_C=part_c,
            num_warps=num_warps, **self._pdl,
        )  # fmt: skip
        if num_parts == 1:
            return x, partial
        projected = torch.empty((1, B, P), dtype=torch.float32, device=xz.device)
        kernels.reduce_kernel[(triton.cdiv(B * P, _REDUCE_BLOCK),)](
            partial, projected, B * P, NUM_PARTS=num_parts, BLOCK_PARTS=triton.next_power_of_2(num_parts),
            BLOCK=_REDUCE_BLOCK, num_warps=4, **self._pdl,
        )  # fmt: skip
        return x, projected

    def _convolve_alone(
        self, layer: DecodeLayer, xz: Tensor, conv_state: Tensor, rows: Rows, config: DecodeConfig
    ) -> Tensor:
        """The x of `_convolve`."""
        B, D = len(xz), self._D
        x = torch.empty((B, D), dtype=xz.dtype, device=xz.device)
        _, block_c, _, num_warps = config.conv
        kernels.conv_project_row_kernel[(triton.cdiv(D, block_c), B)](
            xz, layer.conv, conv_state, rows.src, rows.dst, rows.fresh, layer.x_proj[0], x, x, B,
            conv_state.stride(0), D=D, W=self._W, P=0, BLOCK_P=1, BLOCK_C=block_c,
            num_warps=num_warps, **self._pdl,
        )  # fmt: skip
        return x

    def _step(
        self,
        layer: DecodeLayer,
        index: int,
        x: Tensor,
        xz: Tensor,
        projected: Tensor,
        h: Tensor,
        rows: Rows,
        config: DecodeConfig,
    ) -> Tensor:
        """dt_head, recurrence, skip and gate, (B, D)."""
        B, D, N, R = len(xz), self._D, self._N, self._R
        y = torch.empty((B, D), dtype=xz.dtype, device=xz.device)
        block_b, block_d, num_warps = config.step
        assert block_b == 1 or len(projected) == 1
        weight, bias = layer.dt_head
        kernels.dt_step_kernel[(triton.cdiv(D, block_d), triton.cdiv(B, block_b))](
            projected, weight, bias, x, xz, layer.skip, h, *rows, y, B, h.stride(0), index,
            D=D, N=N, R=R, NUM_PARTS=len(projected), BLOCK_PARTS=triton.next_power_of_2(len(projected)),
            BLOCK_B=block_b, BLOCK_D=block_d, BLOCK_N=triton.next_power_of_2(N),
            BLOCK_R=max(triton.next_power_of_2(R), 16),
            num_warps=num_warps, enable_fp_fusion=False, **self._pdl,
        )  # fmt: skip
        return y
