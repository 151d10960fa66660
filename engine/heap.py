"""Gives freed memory back to the system, where the C library can (glibc's `malloc_trim`). No torch.

A long prompt passes through a process as megabytes that are freed again; the heap would keep them for the next
one, and a server's memory would grow with the contexts that it has seen.
"""

import ctypes
from typing import Final

# Below, a prompt is lost among what one step needs.
LONG_PROMPT_TOKENS: Final = 8192

_C_LIBRARY: Final = ctypes.CDLL(None)


def trim_heap() -> None:
    """Milliseconds; does nothing where the C library has no such call."""
    trim = getattr(_C_LIBRARY, "malloc_trim", None)
    if trim is not None:
        trim(0)


class LongPrompts:
    """The long prompts that a process holds; the heap is trimmed when one is let go."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def hold(self, name: str, num_tokens: int) -> None:
        """A prompt has come."""
        if num_tokens >= LONG_PROMPT_TOKENS:
            self._names.add(name)

    def let_go(self, name: str) -> None:
        """It is read, or its request has ended. Cheap for all that were not long."""
        if name in self._names:
            self._names.discard(name)
            trim_heap()
