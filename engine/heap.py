"""Gives freed memory back to the system, where the C library can (glibc's `malloc_trim`). No torch.

Long prompts pass through a process as megabytes that are freed again; the heap would keep them for the next ones,
and a server's memory would grow with the contexts that it has seen.
"""

import ctypes
from typing import Final

# Tokens of prompts after which the heap is trimmed: a few megabytes, and seldom enough to cost nothing.
TRIM_AFTER_TOKENS: Final = 32_768

_C_LIBRARY: Final = ctypes.CDLL(None)


def trim_heap() -> None:
    """Milliseconds; does nothing where the C library has no such call."""
    trim = getattr(_C_LIBRARY, "malloc_trim", None)
    if trim is not None:
        trim(0)


class HeldPrompts:
    """The prompts that a process holds. The heap is trimmed each time that enough of them have been let go."""

    def __init__(self) -> None:
        self._num_tokens: dict[str, int] = {}
        self._num_let_go = 0

    def hold(self, name: str, num_tokens: int) -> None:
        """A prompt has come."""
        self._num_tokens[name] = num_tokens

    def let_go(self, name: str) -> None:
        """It is read, or its request has ended. May be called again and again, and costs a look-up then."""
        num_tokens = self._num_tokens.pop(name, 0)
        if num_tokens == 0:
            return
        self._num_let_go += num_tokens
        if self._num_let_go >= TRIM_AFTER_TOKENS:
            self._num_let_go = 0
            trim_heap()
