"""Fixtures: the app over a scripted engine, a real server process on the demo model, and clients for both."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import httpx2
import openai
import psutil
import pytest

from benchmarks.faults.server import children_running
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


class ServerProcess:
    """`remuda serve` as a process, on a free port. Ready once constructed; `stop` ends it and its engine."""

    def __init__(self, *arguments: str, start_s: float = 300, environment: dict[str, str] | None = None) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [sys.executable, "-c", "from remuda.server.cli import main; main()", "serve", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *arguments],
            stderr=self._log,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )
        deadline = time.monotonic() + start_s
        while (found := re.search(r"ready at (https?://[\w.:\[\]]+)", self.log)) is None:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)
        self.url = found[1]

    @property
    def log(self) -> str:
        """What it has written to stderr."""
        self._log.seek(0)
        return self._log.read()

    @property
    def engine(self) -> psutil.Process:
        """The engine process."""
        (found,) = children_running(self.process.pid, "remuda.engine.process")
        return found

    @property
    def workers(self) -> list[psutil.Process]:
        """The API workers."""
        return children_running(self.process.pid, "remuda.server.worker")

    @property
    def http_processes(self) -> list[psutil.Process]:
        """All processes of the server but the engine."""
        root, engine = psutil.Process(self.process.pid), self.engine
        return [root, *(process for process in root.children(recursive=True) if process != engine)]

    def openai(self) -> openai.OpenAI:
        """The official client, to be closed."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def http(self) -> httpx2.Client:
        """A plain HTTP client, to be closed."""
        return httpx2.Client(base_url=self.url, timeout=60)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; returns the exit code."""
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        try:
            return self.process.wait(60)
        finally:
            self._log.close()


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
