"""Fixtures: both kinds of client, the app over a scripted engine, a real server, and servers that misbehave."""

from collections.abc import Callable, Iterator

import pytest

from tests.clients.kinds import Kind
from tests.clients.raw_server import RawServer, Script
from tests.server.conftest import demo, engine, server

__all__ = ["demo", "engine", "server"]


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """`Client`, then `AsyncClient`."""
    return Kind(is_async=request.param == "async")


@pytest.fixture
def raw() -> Iterator[Callable[..., RawServer]]:
    """Makes servers that play a script to each connection."""
    servers: list[RawServer] = []

    def make(*scripts: Script) -> RawServer:
        servers.append(RawServer(*scripts))
        return servers[-1]

    yield make
    for one in servers:
        one.stop()
