"""uvicorn's HTTP protocol with a bound on readers that have stopped: their connection is cut."""

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

STALL_TIMEOUT_S: Final = 30.0
# What may wait here for one peer, besides what the kernel holds (see listener.py).
_MAX_UNSENT_BYTES: Final = 16 * 1024


class StallGuardProtocol(HttpToolsProtocol):
    """Aborts a connection whose peer has read nothing for STALL_TIMEOUT_S while data waits for it."""

    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection begins."""
        transport.set_write_buffer_limits(_MAX_UNSENT_BYTES)
        super().connection_made(transport)

    def pause_writing(self) -> None:
        """The transport's buffer is full: the peer has until the timeout to read on."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(STALL_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._cancel_stall_timer()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._cancel_stall_timer()
        super().connection_lost(exc)

    def _cancel_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
