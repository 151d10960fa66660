"""The terminal while an answer is drawn: keys are not echoed into it, and wait for the next prompt."""

import contextlib
import sys
import termios
from collections.abc import Iterator
from typing import Final

_LOCAL_FLAGS: Final = 3


@contextlib.contextmanager
def without_echo() -> Iterator[None]:
    """Also the `^C` of Ctrl-C is not written, which would move what is drawn. Nothing without a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    quiet = [*before]
    quiet[_LOCAL_FLAGS] = before[_LOCAL_FLAGS] & ~termios.ECHO
    termios.tcsetattr(keyboard, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
