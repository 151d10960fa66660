"""Gives freed memory back to the system, where the C library can (glibc's `malloc_trim`). No torch.

Long prompts pass through a process as megabytes that are freed again; the heap would keep them for the next ones,
and a server's memory would grow with the contexts that it has seen.
"""

import ctypes
from collections.abc import Callable
from typing import Final

# Tokens of prompts after which the heap is trimmed: a few megabytes, and seldom enough to cost nothing.
TRIM_AFTER_TOKENS: Final = 32_768

_C_LIBRARY: Final = ctypes.CDLL(None)


def trim_heap() -> None:
    """Milliseconds; does nothing where the C library has no such call."""
    trim = getattr(_C_LIBRARY, "malloc_trim", None)
    if trim is not None:
        trim(0)


class TokensLetGo:
    """Counts the tokens of prompts that a process has let go, and calls `trim` each time that they are enough."""

    def __init__(self, trim: Callable[[], None] = trim_heap) -> None:
        self._trim = trim
        self._num_tokens = 0
        self._is_at_rest = True

    def note(self, num_tokens: int) -> None:
        """So many more."""
        self._num_tokens += num_tokens
        self._is_at_rest = False
        if self._num_tokens >= TRIM_AFTER_TOKENS:
            self._num_tokens = 0
            self._trim()

    def rest(self) -> None:
        """No other prompt is about to take the memory again: trim, if there was any since the last time.

        Also after a trim for many tokens, since what the last prompt needed to be read was still in use then.
        """
        if not self._is_at_rest:
            self._num_tokens, self._is_at_rest = 0, True
            self._trim()
