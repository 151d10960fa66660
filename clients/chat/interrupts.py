"""Ctrl-C during an answer: raised only where the program waits for the server, never in the middle of output."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupts:
    """Between `watching` and its end, SIGINT is remembered, and raised as KeyboardInterrupt by `waiting`."""

    def __init__(self) -> None:
        self._is_waiting = False
        self._is_pending = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Take over SIGINT; elsewhere than in the main thread it cannot come."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._is_pending = False
        before = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A stretch that an interrupt may end. Raises KeyboardInterrupt."""
        self._is_waiting = True
        try:
            if self._is_pending:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_waiting = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._is_pending = True
        if self._is_waiting:
            raise KeyboardInterrupt
