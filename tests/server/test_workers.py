"""Several API workers: connections spread, a dead one is replaced and its requests end, the others go on."""

import asyncio
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import openai
import psutil
import pytest

from benchmarks.faults.probe import EngineProbe
from remuda.engine.checkpoint.find import find_checkpoint
from remuda.engine.errors import ConfigError
from remuda.server import worker_process
from remuda.server.control import Launch
from remuda.server.link import EngineLink
from remuda.server.listener import bind, bind_all
from remuda.server.options import ServeOptions
from remuda.server.restart_budget import MAX_CRASHES
from remuda.server.worker_process import WorkerSupervisor
from tests.server.conftest import serving
from tests.server.fakes import eventually
from tests.server.test_lifecycle import ENDLESS

NUM_SLOTS = 16


def num_connections(worker: psutil.Process) -> int:
    return sum(found.status == psutil.CONN_ESTABLISHED for found in worker.net_connections("tcp"))


def is_ready(answer: httpx2.Response) -> bool:
    return bool(answer.json()["status"] == "ready")


class Reader(threading.Thread):
    """Reads an endless stream over a connection of its own; `end` is the error that ended it."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        self.num_chunks = 0
        self.end: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            with self.client, self.client.completions.create(**ENDLESS) as stream:  # type: ignore[call-overload]
                for _ in stream:
                    self.num_chunks += 1
        except (openai.APIError, httpx2.HTTPError) as error:
            self.end = error


@pytest.mark.e2e
def test_one_worker_dies_and_the_others_go_on() -> None:
    with serving("demo", "--num-slots", str(NUM_SLOTS), "--api-workers", "2") as server:
        readers: list[Reader] = []
        # The kernel spreads connections by a hash of their ports: until both workers have one.
        while min(map(num_connections, server.workers)) == 0:
            assert len(readers) < NUM_SLOTS
            readers.append(Reader(server.url))
            assert eventually(lambda: readers[-1].num_chunks > 0)
        killed, other = server.workers
        num_killed, num_other = num_connections(killed), num_connections(other)
        assert num_killed + num_other == len(readers)
        with EngineProbe(server.engine) as probe:
            stats = probe.stats()
            assert stats is not None
            assert stats.num_running == len(readers)
            killed.kill()
            assert eventually(lambda: sum(reader.end is not None for reader in readers) == num_killed)
            assert eventually(lambda: probe.stats().num_free_slots == NUM_SLOTS - num_other)  # type: ignore[union-attr]
        counts = {reader: reader.num_chunks for reader in readers if reader.end is None}
        assert len(counts) == num_other
        assert eventually(lambda: all(reader.num_chunks > count for reader, count in counts.items()))
        assert eventually(lambda: len(server.workers) == 2)
        assert other in server.workers
        with server.http() as http:
            new = {"connection": "close"}
            assert eventually(lambda: all(is_ready(http.get("/health", headers=new)) for _ in range(8)))
        server.stop()
        for reader in readers:
            reader.join(30)


@pytest.mark.e2e
def test_a_response_in_the_background_outlives_sigterm() -> None:
    with serving("demo", "--num-slots", "4", "--api-workers", "2", "--drain-timeout", "60") as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=9) as client:
            run = client.responses.create(
                model="demo", input="Hi!", background=True, max_output_tokens=500, extra_body={"ignore_eos": True}
            )
            server.process.send_signal(signal.SIGTERM)
            assert eventually(
                lambda: client.responses.retrieve(run.id).status not in ("queued", "in_progress"), 50
            )
            assert client.responses.retrieve(run.id).status == "incomplete"
        assert server.process.wait(30) == 0


@pytest.mark.e2e
def test_worker_that_hangs_is_replaced() -> None:
    with serving("demo", "--num-slots", "4", "--api-workers", "2") as server:
        hung, other = server.workers
        hung.send_signal(signal.SIGSTOP)
        assert eventually(lambda: hung not in server.workers and len(server.workers) == 2, within_s=30)
        assert other in server.workers
        assert "ended (hung), crash 1" in server.log
        # The new one starts: who has come to its socket waits for it, and is not told that nothing is ready.
        with server.http() as http:
            new = {"connection": "close"}
            assert [http.get("/ready", headers=new).status_code for _ in range(20)] == [200] * 20


@pytest.mark.e2e
def test_a_worker_that_keeps_dying_ends_the_server() -> None:
    """The other's end, before that, does not count."""
    with serving("demo", "--num-slots", "4", "--api-workers", "2") as server:
        other, victim = server.workers
        other.kill()
        assert eventually(lambda: other not in server.workers and len(server.workers) == 2)
        (other,) = set(server.workers) - {victim}
        for num_killed in range(1, MAX_CRASHES + 1):
            (victim,) = set(server.workers) - {other}
            victim.kill()
            if num_killed < MAX_CRASHES:
                num_ended = num_killed + 1
                assert eventually(
                    lambda number=num_ended: server.log.count(", crash ") == number and len(server.workers) == 2  # type: ignore[misc]
                )
        assert server.process.wait(30) == 1
        assert f"an API worker ended {MAX_CRASHES} times within 60 s, last by SIGKILL" in server.log


# Tells in a file what its parent says, up to the order to drain.
SCRIBE = """
import os, socket, sys
with socket.socket(fileno=int(sys.argv[2])) as control, open(sys.argv[1], "wb") as file:
    while b'"drain"' not in (line := control.recv(65536)):
        file.write(line)
    file.write(line)
"""


def test_a_worker_that_is_started_late_hears_that_the_server_has_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"
    monkeypatch.setattr(worker_process, "WORKER_COMMAND", (sys.executable, "-c", SCRIBE, str(said)))
    launch = Launch("", ServeOptions(), find_checkpoint("demo"), None, tmp_path / "store.sock")

    async def main() -> None:
        link = EngineLink()
        with bind("127.0.0.1", 0) as listener:
            supervisor = WorkerSupervisor(
                launch, [listener], link, lambda: None, lambda reason, *, is_usage: None, {}
            )
            supervisor.drain(has_given_up=True)
            worker = await supervisor._spawn(0, "late")
            assert await worker.process.wait() == 0
            worker.channel.close()
            link.close()

    asyncio.run(main())
    assert msgspec.json.decode(said.read_bytes().splitlines()[-1]) == {"type": "drain", "has_given_up": True}


def test_all_listeners_share_one_address_with_nobody_else() -> None:
    listeners = bind_all("127.0.0.1", 0, 3)
    host, port = listeners[0].getsockname()
    try:
        assert {listener.getsockname() for listener in listeners} == {(host, port)}
        with pytest.raises(ConfigError, match="cannot listen"):
            bind_all(host, port, 3)
        with pytest.raises(ConfigError, match="cannot listen"):
            bind(host, port)
    finally:
        for listener in listeners:
            listener.close()


def test_connections_spread_evenly() -> None:
    """By the kernel's hash of 400 ports; a share of less than a third would be six standard deviations off."""
    listeners = bind_all("127.0.0.1", 0, 2)
    connections: list[socket.socket] = []
    counts: dict[Any, int] = dict.fromkeys(listeners, 0)
    try:
        for _ in range(400):
            connections.append(socket.create_connection(listeners[0].getsockname(), timeout=5))
        for listener in listeners:
            listener.setblocking(False)
            while True:
                try:
                    connections.append(listener.accept()[0])
                except BlockingIOError:
                    break
                counts[listener] += 1
    finally:
        for found in (*listeners, *connections):
            found.close()
    assert sum(counts.values()) == 400
    assert min(counts.values()) > 400 / 3


@pytest.mark.e2e
def test_any_worker_finds_what_another_has_kept() -> None:
    with serving("demo", "--num-slots", "4", "--api-workers", "2") as server:
        # A connection for each request, so that either worker gets some.
        new = {"connection": "close"}
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", default_headers=new) as client:
            answer = client.responses.create(model="demo", input="Hi!", max_output_tokens=4)
            assert all(client.responses.retrieve(answer.id) == answer for _ in range(12))
            for _ in range(6):
                answer = client.responses.create(
                    model="demo", input="More", previous_response_id=answer.id, max_output_tokens=4
                )
            endless: dict[str, Any] = {"max_output_tokens": 10**9, "extra_body": {"ignore_eos": True}}
            run = client.responses.create(model="demo", input="Hi!", background=True, **endless)
            assert client.responses.cancel(run.id).status == "cancelled"
            # Whoever runs it dies: it is kept as failed, by a store that outlives every worker.
            run = client.responses.create(model="demo", input="Hi!", background=True, **endless)
            assert eventually(lambda: client.responses.retrieve(run.id).status == "in_progress")
            for worker in server.workers:
                worker.kill()
            retrying = client.with_options(max_retries=20)
            assert eventually(lambda: retrying.responses.retrieve(run.id).status == "failed")
            assert retrying.responses.retrieve(answer.id) == answer
