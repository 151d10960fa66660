"""A short name for what weights say: equal weights under any file form have the same, others do not."""

import hashlib
from collections.abc import Mapping
from typing import Final

import torch

# Of a larger tensor so many blocks are hashed, evenly spread with both ends: training changes them all.
_BLOCK_BYTES: Final = 2**16
_NUM_BLOCKS: Final = 16


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """Hexadecimal digest of names, dtypes, shapes and values; of tensors above 1 MiB, of a sample of the values.

    weights: contiguous tensors on the CPU.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().reshape(-1).view(torch.uint8).numpy()
        if len(values) <= _NUM_BLOCKS * _BLOCK_BYTES:
            digest.update(values.data)
            continue
        last = len(values) - _BLOCK_BYTES
        for i in range(_NUM_BLOCKS):
            start = last * i // (_NUM_BLOCKS - 1)
            digest.update(values[start : start + _BLOCK_BYTES].data)
    return digest.hexdigest()
