"""Longhorn's recurrence, the convolution and the norm in float64 torch, for sequences of equal length.

Written for checking large shapes on a GPU in seconds; shares nothing with the kernels.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

# Elements of the state history that is held at once.
_MAX_HISTORY = 1 << 26


def longhorn(
    x: Tensor, dt: Tensor, k: Tensor, q: Tensor, z: Tensor, skip: Tensor, h: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Yield (times, y (S, t, D)) block by block, and leave the last state in h.

    x, dt, z: (S, T, D), dt before its sigmoid; k, q: (S, T, N); skip: (D,); h: (S, D, N) float64, updated.
    Source: arXiv 2407.14207, section 4.
    """
    S, T, D = x.shape
    block = max(1, min(T, _MAX_HISTORY // (S * D * k.shape[2])))
    for first in range(0, T, block):
        times = slice(first, first + block)
        bx, bdt, bk, bq, bz = (tensor[:, times].double() for tensor in (x, dt, k, q, z))
        beta = torch.sigmoid(bdt)
        delta = beta / (1 + beta * bk.square().sum(dim=2, keepdim=True))
        keep = 1 - delta[..., None] * bk.square()[:, :, None]
        history = (delta * bx)[..., None] * bk[:, :, None]
        # One operation a token: what is new of each state stands in its place already.
        before = h
        for t in range(bx.shape[1]):
            before = torch.addcmul(history[:, t], keep[:, t], before, out=history[:, t])
        h.copy_(before)
        y = (history * bq[:, :, None]).sum(dim=3) + skip.double() * bx
        yield times, y * functional.silu(bz)


def conv(x: Tensor, weight: Tensor, bias: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (S, T, D) and the last inputs (S, D, W-1). x: (S, T, D); weight: (D, 1, W); past: (S, D, W-1)."""
    W, T = weight.shape[2], x.shape[1]
    inputs = torch.cat([past.double().mT, x.double()], dim=1)
    taps = weight[:, 0].double()
    total = bias.double() + sum(inputs[:, w : w + T] * taps[:, w] for w in range(W))
    return functional.silu(total), inputs[:, T:].mT


def add_rms_norm(hidden: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normalised sum and the sum. hidden, residual: (T, M); weight: (M,)."""
    total = residual.double() + hidden.double()
    scale = torch.rsqrt(total.square().mean(dim=1, keepdim=True) + eps)
    return total * scale * weight.double(), total
