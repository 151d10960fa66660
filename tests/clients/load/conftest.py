"""A scripted server in another process, and runs of the load test against it."""

import io
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
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
