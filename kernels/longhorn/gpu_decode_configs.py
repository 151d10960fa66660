"""Launch configurations of the fused decode step, by rows; measured offline, never tuned at run time.

From benchmarks/tune_decode.py on an NVIDIA H200 (d_model 2048, state size 16, bfloat16). Steps of more rows run
kernel by kernel with cuBLAS.
"""

from dataclasses import dataclass
from typing import Final

import torch


@dataclass(frozen=True)
class Gemm:
    """Tiles of a GEMM: rows, output columns, depth; parts of K; warps, pipeline stages."""

    block_b: int
    block_n: int
    block_k: int
    split_k: int = 1
    num_warps: int = 4
    num_stages: int = 4


@dataclass(frozen=True)
class DecodeConfig:
    """Launches of one layer for up to `max_rows` rows. A GEMM of None is left to cuBLAS.

    conv: rows and channels of a tile, channels of a program, warps; with one row a tile is a program. Where the
        channels of a program are 0, x_proj is left to cuBLAS.
    step: rows, channels, warps. is_norm_fused: on Hopper one kernel does the norm and in_proj of one row.
    """

    max_rows: int
    in_proj: Gemm | None
    out_proj: Gemm | None
    conv: tuple[int, int, int, int]
    step: tuple[int, int, int]
    is_norm_fused: bool = False


CONFIGS = (
    DecodeConfig(
        max_rows=1,
        in_proj=Gemm(16, 64, 256, num_warps=8, num_stages=5),
        out_proj=Gemm(16, 64, 256, split_k=2, num_stages=5),
        conv=(1, 64, 64, 4),
        step=(1, 64, 4),
        is_norm_fused=True,
    ),
    DecodeConfig(
        max_rows=2,
        in_proj=Gemm(16, 64, 128, num_stages=8),
        out_proj=Gemm(16, 64, 128, split_k=2, num_stages=8),
        conv=(1, 64, 64, 8),
        step=(1, 64, 4),
    ),
    DecodeConfig(
        max_rows=4,
        in_proj=Gemm(16, 64, 128, num_stages=8),
        out_proj=Gemm(16, 64, 128, split_k=2, num_stages=8),
        conv=(1, 128, 128, 8),
        step=(1, 64, 4),
    ),
    DecodeConfig(
        max_rows=8,
        in_proj=Gemm(16, 64, 128, num_stages=6),
        out_proj=Gemm(16, 64, 256, split_k=2, num_stages=5),
        conv=(16, 32, 64, 8),
        step=(16, 32, 4),
    ),
    DecodeConfig(
        max_rows=16,
        in_proj=Gemm(16, 64, 256, num_stages=3),
        out_proj=Gemm(16, 64, 128, split_k=2, num_stages=8),
        conv=(16, 64, 128, 4),
        step=(16, 32, 4),
    ),
    DecodeConfig(
        max_rows=32,
        in_proj=Gemm(32, 64, 128, num_stages=6),
        out_proj=Gemm(32, 64, 128, split_k=2, num_stages=6),
        conv=(16, 64, 128, 4),
        step=(16, 64, 8),
    ),
    DecodeConfig(
        max_rows=64,
        in_proj=Gemm(64, 64, 128, num_stages=6),
        out_proj=Gemm(64, 64, 128, split_k=4, num_stages=4),
        conv=(16, 64, 128, 4),
        step=(16, 64, 8),
    ),
    DecodeConfig(
        max_rows=128,
        in_proj=None,
        out_proj=Gemm(128, 64, 64, split_k=4, num_stages=6),
        conv=(16, 32, 128, 4),
        step=(16, 64, 8),
    ),
    DecodeConfig(
        max_rows=256,
        in_proj=None,
        out_proj=Gemm(128, 64, 128, split_k=2),
        conv=(1, 512, 0, 4),
        step=(16, 64, 8),
    ),
    DecodeConfig(
        max_rows=512,
        in_proj=None,
        out_proj=Gemm(128, 64, 128),
        conv=(1, 512, 0, 4),
        step=(8, 64, 4),
    ),
)
# With 16-bit states, whose rounding is arithmetic, tiles of rows lose to a row a program from here on.
_MAX_ROWS_16_BIT: Final = 128


def max_rows(state_dtype: torch.dtype) -> int:
    """The largest batch that is faster this way than kernel by kernel."""
    return CONFIGS[-1].max_rows if state_dtype == torch.float32 else _MAX_ROWS_16_BIT


def choose(num_rows: int) -> DecodeConfig:
    """The configuration for a batch of at most `max_rows`."""
    return next(config for config in CONFIGS if num_rows <= config.max_rows)
