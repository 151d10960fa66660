"""Residual add and normalisation in plain torch: the definition that the other backends must agree with."""

import torch
from torch import Tensor


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

    hidden, residual: (T, M); weight, bias: (M,). Statistics are float32 and read the residual as stored,
    that is after rounding to its dtype. RMSNorm (Zhang & Sennrich 2019, eq. 4) or LayerNorm (Ba et al.
    2016, eq. 3, biased variance). Returns (T, M) of `out_dtype`.
    """
    if hidden is not None:
        residual += hidden
    value = residual.float()
    if not is_rms:
        value = value - value.mean(dim=-1, keepdim=True)
    value = value * torch.rsqrt(value.square().mean(dim=-1, keepdim=True) + eps) * weight.float()
    if bias is not None:
        value = value + bias.float()
    return value.to(out_dtype)
