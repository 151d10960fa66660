"""Copies between host and device that nobody waits for: pinned memory, one copy for many arrays."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

# A start that any kernel accepts without being compiled anew for lesser alignment.
_ALIGNMENT: Final = 256

_DTYPES: Final = {
    np.dtype(np.int64): torch.int64,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.bool_): torch.bool,
}


def upload(arrays: list[npt.NDArray[Any]], device: torch.device) -> list[torch.Tensor]:
    """The arrays, int64, int32 or bool, as tensors on the device, by one copy."""
    starts = [0]
    for array in arrays:
        starts.append(starts[-1] + -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT)
    # torch keeps a pinned block from being used again before the copy out of it has ended.
    staged = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    view = staged.numpy()
    for array, start in zip(arrays, starts, strict=False):
        view[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    moved = staged.to(device, non_blocking=True)
    return [
        moved[start : start + array.nbytes].view(_DTYPES[array.dtype]).view(array.shape)
        for array, start in zip(arrays, starts, strict=False)
    ]


def download(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the host, filled once the device has come this far."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def send(array: npt.NDArray[Any], into: torch.Tensor) -> None:
    """Copy an array into the beginning of a flat tensor of its dtype on the device."""
    staged = torch.empty(len(array), dtype=into.dtype, pin_memory=into.is_cuda)
    staged.numpy()[:] = array
    into[: len(array)].copy_(staged, non_blocking=True)
