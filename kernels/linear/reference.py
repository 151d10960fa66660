"""Linear layers in plain torch, float32: the definition."""

import torch
from torch import Tensor

# Weight (N, K) and bias (N,) or None, float32.
PackedLinear = tuple[Tensor, Tensor | None]


def pack(weight: Tensor, bias: Tensor | None) -> PackedLinear:
    """weight: (N, K) as in `torch.nn.Linear`; bias: (N,) or None."""
    return weight.float(), None if bias is None else bias.float()


def linear(x: Tensor, packed: PackedLinear) -> Tensor:
    """x @ weight.T + bias in float32, x: (T, K) -> (T, N) of x's dtype."""
    weight, bias = packed
    return torch.nn.functional.linear(x.float(), weight, bias).to(x.dtype)


def linear_float32(x: Tensor, packed: PackedLinear, out: Tensor | None = None) -> Tensor:
    """`linear` in float32, (T, N), in `out` where it is given."""
    product = linear(x.float(), packed)
    return product if out is None else out.copy_(product)
