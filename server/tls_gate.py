"""A connection from accept to the end of its TLS handshake: already it counts towards its server's limit.

uvloop by itself tells a protocol of a connection only after the handshake, and of a failed one nothing.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final

import uvloop
from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]

from remuda.server.protocol import StallGuardProtocol
from remuda.server.refusals import note_refusal, too_many_connections
from remuda.server.request_record import new_request_id

HANDSHAKE_TIMEOUT_S: Final = 10.0


class TlsGate(asyncio.Protocol):
    """Shakes hands within the timeout, then hands over to the protocol that `factory` makes; beyond the
    connections that this may have, it closes at once."""

    def __init__(self, factory: Callable[[], StallGuardProtocol], context: ssl.SSLContext) -> None:
        self._protocol = factory()
        self._context = context

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A peer has connected, and has said nothing yet."""
        self._transport = transport
        connections, limit = self._protocol.connections, self._protocol.max_connections
        if limit is not None and len(connections) >= limit:
            client = transport.get_extra_info("peername")
            transport.abort()
            note_refusal(503, too_many_connections(limit), new_request_id(), client, self._protocol.on_refusal)
            return
        connections.add(self)  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        ended.add_done_callback(self._on_end)
        # As uvloop itself does where it accepts for TLS.
        tls = SSLProtocol(
            loop, _Opening(self), self._context, ended, server_side=True, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
        )
        transport.set_protocol(tls)
        tls.connection_made(transport)

    def shutdown(self) -> None:
        """The server's side: it stops."""
        self._transport.abort()

    def open(self, transport: asyncio.Transport) -> None:
        """The handshake has succeeded; transport: what lies above TLS."""
        self._leave()
        transport.set_protocol(self._protocol)
        self._protocol.connection_made(transport)

    def _on_end(self, ended: asyncio.Future[None]) -> None:
        self._leave()
        if not ended.cancelled() and ended.exception() is not None:
            self._transport.abort()

    def _leave(self) -> None:
        self._protocol.connections.discard(self)


class _Opening(asyncio.Protocol):
    """Learns of the end of the handshake, before anything else comes."""

    def __init__(self, gate: TlsGate) -> None:
        self._gate = gate

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """TLS stands."""
        self._gate.open(transport)


class ServerLoop(uvloop.Loop):
    """uvloop's loop, but that a connection counts, and has little time, from before its TLS handshake."""

    async def create_server(self, protocol_factory: Any, *args: Any, ssl: Any = None, **kwargs: Any) -> Any:
        """As in asyncio; with `ssl`, protocol_factory makes StallGuardProtocols."""
        if ssl is None:
            return await super().create_server(protocol_factory, *args, **kwargs)
        return await super().create_server(lambda: TlsGate(protocol_factory, ssl), *args, **kwargs)
