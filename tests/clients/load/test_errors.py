"""Every failure of a request is a result with its kind, and the run goes on."""

import threading
import time

import pytest
from aiohttp import web

from remuda.clients.load.errors import LoadError
from remuda.clients.load.exchange import Wire
from remuda.clients.load.options import LoadOptions
from remuda.clients.load.target import is_same_server
from tests.clients.load.conftest import FakeServer, VirtualServer, run
from tests.clients.load.fake_server import Fake


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (429, "429"),
        (500, "500"),
        ("json", "not a stream"),
        ("error event", "error event"),
        ("bad event", "bad event"),
        ("broken stream", "broken stream"),
        ("no finish", "no finish"),
        ("hang", "timeout"),
    ],
)
def test_kinds(fake: FakeServer, fault: str | int, kind: str) -> None:
    script = {"fault": fault, "first": 0.01, "gap": 0.01}
    ended = run(fake.url, LoadOptions(concurrency=2, num_requests=4), script=script, timeout=1.0)
    (stage,) = ended.result.stages
    assert stage.errors == {kind: 4}
    assert (stage.num_requests, stage.num_failed, stage.ttft.count, stage.e2e.count) == (4, 4, 0, 0)
    assert {row.error for row in ended.result.requests} == {kind}
    assert ended.is_failed
    assert any(note.startswith(f"first failure of kind {kind}") for note in stage.notes)


def test_a_fault_before_the_first_event_is_no_latency(fake: FakeServer) -> None:
    script = {"fault": "broken stream", "at": 0}
    (stage,) = run(fake.url, LoadOptions(concurrency=1, num_requests=2), script=script).result.stages
    assert stage.errors == {"broken stream": 2}
    assert stage.output_tokens == 0


def test_a_server_that_goes_away_fails_requests_and_not_the_run() -> None:
    server = FakeServer("remuda")
    killer = threading.Thread(target=_kill_after_three, args=[server])
    try:
        killer.start()
        load = LoadOptions(rates=(20.0, 20.0), process="constant", num_requests=60)
        ended = run(server.url, load, script={"first": 0.01, "gap": 0.01}, tokens=2)
    finally:
        killer.join()
        server.stop()
    (stage,) = ended.result.stages
    assert stage.num_requests == 60
    assert 0 < stage.num_failed < 60
    assert set(stage.errors) <= {"connection", "broken stream", "disconnected"}
    assert stage.errors["connection"] > 0


def _kill_after_three(server: FakeServer) -> None:
    """When it has been asked three times, long before the load has ended."""
    num_asked, deadline = 0, time.monotonic() + 60
    while num_asked < 3 and time.monotonic() < deadline:
        num_asked += len(server.log()["bodies"])
        time.sleep(0.02)
    server.process.kill()


def test_no_server_is_one_line() -> None:
    with pytest.raises(LoadError, match=r"cannot reach http://127\.0\.0\.1:1: "):
        run("http://127.0.0.1:1", LoadOptions(concurrency=1, num_requests=1))


def test_the_key_is_sent_and_written_nowhere(fake: FakeServer) -> None:
    ended = run(fake.url, LoadOptions(concurrency=1, num_requests=1), key="sk-secret")
    assert fake.log()["bodies"][0]["authorization"] == "Bearer sk-secret"
    assert "secret" not in repr(ended)
    assert "secret" in Wire("", 1.0, "sk-secret").key  # type: ignore[operator]


def test_the_key_is_not_sent_to_a_foreign_host_of_metrics(fake: FakeServer) -> None:
    other, load = FakeServer("somebody"), LoadOptions(concurrency=1, num_requests=1)
    try:
        for metrics_url in (None, f"{other.url}/metrics"):
            run(fake.url, load, script={"first": 0.01}, tokens=2, key="sk-secret", metrics_url=metrics_url)
        foreign = other.log()["metrics_keys"]
    finally:
        other.stop()
    assert set(fake.log()["metrics_keys"]) == {"Bearer sk-secret"}
    # Asked before the load, and during it.
    assert len(foreign) > 1
    assert set(foreign) == {None}


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        ("http://a:1/metrics", True),
        ("https://a:1/metrics", False),
        ("http://a:2/metrics", False),
        ("http://b:1/metrics", False),
    ],
)
def test_what_is_the_same_server(other: str, is_same: bool) -> None:
    assert is_same_server("http://a:1/path", other) is is_same


def test_what_is_no_utf_8_ends_no_run(virtual: VirtualServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(_: Fake, request: web.Request) -> web.Response:
        return web.Response(body=b"# TYPE \xff", content_type="text/plain", charset="utf-8")

    monkeypatch.setattr(Fake, "metrics", answer)
    monkeypatch.setattr(Fake, "models", answer)
    load = LoadOptions(concurrency=1, num_requests=1)
    (stage,) = run(virtual.url, load, script={"first": 0.01}, model="m").result.stages
    assert (stage.num_failed, stage.samples) == (0, [])
    with pytest.raises(LoadError, match="is not a list of models"):
        run(virtual.url, load)
