"""A scripted server in another process, and runs of the load test against it."""

import io
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import uvloop
from rich.console import Console

from remuda.clients.load.lengths import Lengths
from remuda.clients.load.options import (
    LoadOptions,
    LongContextOptions,
    OutputOptions,
    PromptOptions,
    RunOptions,
    ServerOptions,
)
from remuda.clients.load.run import Ended, run_load
from tests.clients.load.fake_server import Fake, start
from tests.clients.load.virtual_time import VirtualLoop


class FakeServer:
    """The process; `log` gives what it wrote since the last call."""

    def __init__(self, owner: str) -> None:
        command = [sys.executable, "-m", "tests.clients.load.fake_server", owner]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    def log(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/log", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="session")
def fake_process() -> Iterator[FakeServer]:
    """A server that says it is Remuda's kind: it knows `ignore_eos`."""
    found = FakeServer("remuda")
    yield found
    found.stop()


@pytest.fixture
def fake(fake_process: FakeServer) -> FakeServer:
    """The same, with nothing written down yet."""
    fake_process.log()
    return fake_process


class VirtualServer:
    """The scripted server on the loop of the run itself, whose clock jumps; `log` as of FakeServer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._fake = Fake()
        self._patch = monkeypatch
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        monkeypatch.setattr(uvloop, "new_event_loop", self._new_loop)

    def log(self) -> dict[str, Any]:
        return self._fake.take_log()

    def stop(self) -> None:
        self._listener.close()

    def _new_loop(self) -> VirtualLoop:
        loop = VirtualLoop()
        self._patch.setattr(time, "perf_counter", loop.time)
        loop.create_task(start(self._listener, self._fake))
        return loop


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualServer]:
    """For figures that must be exact however busy the machine is."""
    found = VirtualServer(monkeypatch)
    yield found
    found.stop()


def fixed(length: int) -> Lengths:
    return Lengths("fixed", length, length)


def run(
    url: str,
    load: LoadOptions,
    *,
    script: dict[str, Any] | None = None,
    prompts: PromptOptions | None = None,
    long_context: LongContextOptions | None = None,
    tokens: int = 8,
    **server: Any,
) -> Ended:
    """A run without a ceiling or a warm-up; `script` is what each request asks of the fake server."""
    prompts = prompts or PromptOptions(fixed(5), fixed(tokens), vocab_size=100)
    options = RunOptions(
        server=ServerOptions(url, **server),
        prompts=replace(prompts, extra={"script": script or {}}),
        load=replace(load, has_ceiling=False, warmup=0),
        output=OutputOptions(),
        long_context=long_context,
    )
    return run_load(options, Console(file=io.StringIO()))
