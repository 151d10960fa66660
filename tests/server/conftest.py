"""Fixtures: the app over a scripted engine, a real server process on the demo model, and clients for both."""

import contextlib
from collections.abc import Iterator

import httpx2
import openai
import psutil
import pytest

from benchmarks.faults import server_process
from tests.server.fakes import AppServer, FakeEngine, eventually


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    """A scripted engine; set `engine.script` before sending a request."""
    fake = FakeEngine()
    yield fake
    fake.stop()


@pytest.fixture
def server(engine: FakeEngine) -> Iterator[AppServer]:
    """The HTTP application over `engine`. Afterwards no request may be left in it."""
    running = AppServer(engine)
    yield running
    engine.running.set()
    is_empty = eventually(lambda: running.link.num_requests == 0)
    running.stop()
    assert is_empty


@pytest.fixture
def http(server: AppServer) -> Iterator[httpx2.Client]:
    """A plain HTTP client."""
    with httpx2.Client(base_url=server.url, timeout=10) as client:
        yield client


@pytest.fixture
def client(server: AppServer) -> Iterator[openai.OpenAI]:
    """The official client."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=10) as found:
        yield found


class ServerProcess(server_process.ServerProcess):
    """A server as a process, and clients for it."""

    def openai(self) -> openai.OpenAI:
        """The official client, to be closed."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def http(self) -> httpx2.Client:
        """A plain HTTP client, to be closed."""
        return httpx2.Client(base_url=self.url, timeout=60)


@contextlib.contextmanager
def serving(*arguments: str, environment: dict[str, str] | None = None) -> Iterator[ServerProcess]:
    """A server process for the length of a block; nothing of it may be left."""
    server = ServerProcess(*arguments, environment=environment)
    children = [server.engine, *server.workers]
    try:
        yield server
    finally:
        children += psutil.Process(server.process.pid).children() if server.process.poll() is None else []
        server.stop()
        _, left = psutil.wait_procs(children, timeout=30)
        assert left == []


@pytest.fixture(scope="module")
def demo() -> Iterator[ServerProcess]:
    """A server on the demo model, with four slots."""
    with serving(
        "demo", "--num-slots", "4", "--served-model-name", "demo", "--served-model-name", "stories"
    ) as found:
        yield found
