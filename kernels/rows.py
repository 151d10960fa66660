"""Where an op writes its rows: into those of the caller, or into new ones."""

import torch
from torch import Tensor


def rows_for(x: Tensor, out: Tensor | None) -> Tensor:
    """`out`, which must be contiguous and of x's shape and dtype; new and uninitialised where it is None."""
    if out is None:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert out.is_contiguous()
    return out
