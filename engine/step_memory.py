"""A step that runs out of memory ends those who were in it, and nobody else; every other failure ends the process.

The allocator refuses before anything is launched, so that the device and its context are as they were. After any
other error of a step (a device that has failed, a bug) nothing on it can be trusted: the process ends at once, its
clients are told, and its parent starts another.
"""

from typing import Final

import torch

OUT_OF_MEMORY: Final = (torch.OutOfMemoryError, MemoryError)


def settle() -> None:
    """Let the device end what was launched, and give back what is cached. Raises where it cannot go on."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
