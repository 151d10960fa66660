"""An event loop whose clock stands still while there is work and jumps to the next timer when there is none.

Client and server on one such loop, over real sockets, see each other's delays exactly, however busy the
machine is.
"""

import asyncio
import selectors
from typing import Any, Final

# For what is on its way between two sockets of this process, before the clock jumps.
_GRACE_S: Final = 0.001


class _Selector(selectors.DefaultSelector):
    """Real events first; where none is due, time passes instead of being waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        """As usual; with a timeout in which nothing comes, the clock moves by it."""
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        events = super().select(_GRACE_S)
        if not events:
            self.now += timeout
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """Begins at time 1000."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Seconds that have passed for whoever runs on this loop."""
        return 1000.0 + self._virtual.now
