"""The listening sockets: one for each API worker, all at one address, among which the kernel spreads connections.

With one socket for all, whichever worker wakes first takes every connection that has come: uvloop accepts until
there is none left. The parent keeps its copies open, so what has queued for a worker that dies waits for the
next one, and nobody is refused.
"""

import socket
import sys
from typing import Final

from remuda.engine.errors import ConfigError

BACKLOG: Final = 2048
# The kernel keeps no more than this for a peer that does not take it; by itself it would keep megabytes.
_MAX_UNSENT_BYTES: Final = 64 * 1024
# Who has acknowledged nothing, or had no room, for so long is gone: the kernel ends the connection.
_STALL_TIMEOUT_MS: Final = 25_000


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises ConfigError where the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host!r}: {error.strerror or error}") from error
    try:
        _prepare(listener)
        listener.bind(address)
        # Two listeners may bind one port before either listens; the second learns of it here.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return listener


def _prepare(listener: socket.socket) -> None:
    """Options that each connection inherits."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sys.platform == "linux":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MAX_UNSENT_BYTES)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STALL_TIMEOUT_MS)


def bind_all(host: str, port: int, num_sockets: int) -> list[socket.socket]:
    """So many listening sockets at one address. Raises ConfigError where it cannot be had."""
    listeners = [bind(host, port)]
    # Only after the first is bound: no other server can have joined in, nor can one of this user's later start
    # at this port by mistake, since it binds its first one alone, too.
    if num_sockets > 1:
        listeners[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    for _ in range(1, num_sockets):
        other = socket.socket(listeners[0].family, socket.SOCK_STREAM)
        _prepare(other)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(listeners[0].getsockname())
        other.listen(BACKLOG)
        listeners.append(other)
    return listeners
