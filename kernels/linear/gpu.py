"""Linear layers on the GPU: torch, that is cuBLAS, in the dtype of the weights. Not a Triton kernel."""

import torch
from torch import Tensor

# Weight (N, K) and bias (N,) or None, in the model's dtype.
PackedLinear = tuple[Tensor, Tensor | None]


def pack(weight: Tensor, bias: Tensor | None) -> PackedLinear:
    """weight: (N, K) as in `torch.nn.Linear`; bias: (N,) or None. Both are kept as they are."""
    assert bias is None or bias.dtype == weight.dtype
    return weight, bias


def linear(x: Tensor, packed: PackedLinear) -> Tensor:
    """x @ weight.T + bias, x: (T, K) of the weights' dtype -> (T, N)."""
    weight, bias = packed
    return torch.nn.functional.linear(x, weight, bias)


def linear_float32(x: Tensor, packed: PackedLinear, out: Tensor | None = None) -> Tensor:
    """x @ weight.T, (T, N), in `out` where it is given: sums are not rounded to the weights' dtype. No bias."""
    weight, bias = packed
    assert bias is None
    if x.is_cuda and x.dtype != torch.float32:
        return torch.mm(x, weight.T, out_dtype=torch.float32, out=out)
    product = torch.nn.functional.linear(x.float(), weight.float())
    return product if out is None else out.copy_(product)
