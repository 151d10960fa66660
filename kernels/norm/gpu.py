"""Residual add and normalisation as one Triton kernel, a program per row; reads and writes each row once."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS_PER_WARP = 512
_MAX_WARPS = 16


def num_warps(block_m: int) -> int:
    """Warps of a program that holds a whole row of `block_m` elements."""
    return min(max(block_m // _ELEMENTS_PER_WARP, 1), _MAX_WARPS)


@triton.jit
def _add_norm_kernel(
    p_hidden, p_residual, p_weight, p_bias, p_out,
    stride_hidden, stride_residual, eps,
    M: tl.constexpr, BLOCK_M: tl.constexpr,
    HAS_HIDDEN: tl.constexpr, HAS_BIAS: tl.constexpr, IS_RMS: tl.constexpr,
):  # fmt: skip
    i_t = tl.program_id(0).to(tl.int64)
    o_m = tl.arange(0, BLOCK_M)
    m_m = o_m < M
    p_row = p_residual + i_t * stride_residual + o_m
    b_value = tl.load(p_row, mask=m_m, other=0.0).to(tl.float32)
    if HAS_HIDDEN:
        b_hidden = tl.load(p_hidden + i_t * stride_hidden + o_m, mask=m_m, other=0.0).to(tl.float32)
        b_sum = (b_value + b_hidden).to(p_residual.dtype.element_ty)
        tl.store(p_row, b_sum, mask=m_m)
        # The norm sees what is stored, so that it does not matter who reads the residual next.
        b_value = b_sum.to(tl.float32)
    if not IS_RMS:
        b_value = tl.where(m_m, b_value - tl.sum(b_value, 0) / M, 0.0)
    b_scale = tl.rsqrt(tl.sum(b_value * b_value, 0) / M + eps)
    b_weight = tl.load(p_weight + o_m, mask=m_m, other=0.0).to(tl.float32)
    b_out = b_value * b_scale * b_weight
    if HAS_BIAS:
        b_out += tl.load(p_bias + o_m, mask=m_m, other=0.0).to(tl.float32)
    tl.store(p_out + i_t * M + o_m, b_out.to(p_out.dtype.element_ty), mask=m_m)


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

    hidden, residual: (T, M), rows of any stride; weight, bias: (M,). Returns (T, M) of `out_dtype`.
    Statistics are float32. Equal to `reference.add_norm`, which has the sources.
    """
    T, M = residual.shape
    assert residual.stride(1) == 1
    assert hidden is None or (hidden.shape == residual.shape and hidden.stride(1) == 1)
    assert weight.shape == (M,)
    assert bias is None or bias.shape == (M,)
    out = torch.empty((T, M), dtype=out_dtype, device=residual.device)
    block_m = triton.next_power_of_2(M)
    _add_norm_kernel[(T,)](
        residual if hidden is None else hidden,
        residual,
        weight,
        weight if bias is None else bias,
        out,
        0 if hidden is None else hidden.stride(0),
        residual.stride(0),
        eps,
        M=M,
        BLOCK_M=block_m,
        HAS_HIDDEN=hidden is not None,
        HAS_BIAS=bias is not None,
        IS_RMS=is_rms,
        num_warps=num_warps(block_m),
    )
    return out
