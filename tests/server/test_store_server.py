"""One store for several API workers, over its socket: the same answers, and what becomes of who goes away."""

import asyncio
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import openai
import pytest
import uvloop

from remuda.engine.errors import InvalidRequestError, QueueFullError
from remuda.engine.wire import AddRequest, SequenceOutput
from remuda.server import store_client
from remuda.server.errors import ServerUnavailableError
from remuda.server.response_store import MemoryResponseStore, OnEnd, StoredResponse
from remuda.server.store_client import RemoteResponseStore
from remuda.server.store_server import StoreServer
from tests.server.fakes import AppServer, FakeEngine, eventually, says

Test = Callable[[MemoryResponseStore, RemoteResponseStore, RemoteResponseStore], Awaitable[None]]


def make(name: str, status: str = "in_progress", size: int = 0, previous: str | None = None) -> StoredResponse:
    body = msgspec.json.encode({"id": name, "status": status, "error": None, "padding": "x" * size})
    return StoredResponse(name, status, body, b"[]", previous, is_background=True)


def run(path: Path, test: Test, **limits: int) -> None:
    """`test` with a store, and two workers' views of it."""

    async def main() -> None:
        store = MemoryResponseStore(**limits)
        server = StoreServer(store)
        await server.start(path)
        first, second = (RemoteResponseStore(path, is_enabled=True) for _ in range(2))
        await test(store, first, second)
        await first.close()
        await second.close()
        await server.stop()

    uvloop.run(main())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sock"


def test_what_one_keeps_another_finds(path: Path) -> None:
    async def test(store: MemoryResponseStore, first: RemoteResponseStore, second: RemoteResponseStore) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await first.create(make("a"))
        assert await second.get("a") == make("a")
        assert await second.get("b") is None
        assert await first.update(make("a", "completed", 3_000_000))
        assert not await first.update(make("a", "failed"))
        assert await second.get("a") == make("a", "completed", 3_000_000)
        await second.create(make("b", previous="a"))
        found = await second.conversation("b", 10**9)
        assert [turn.id for turn in found.turns] == ["a", "b"]
        assert (await first.conversation("b", 10**6)).is_too_long
        assert await first.delete("a")
        assert not await second.delete("a")
        assert (await first.conversation("b", 10**9)).missing_id == "a"

    run(path, test)


def test_the_one_who_runs_it_hears_of_its_end(path: Path) -> None:
    async def test(store: MemoryResponseStore, first: RemoteResponseStore, second: RemoteResponseStore) -> None:
        for how in ("update", "delete"):
            ended = asyncio.Event()
            await first.create(make("a"), ended.set)
            assert await (second.update(make("a", "cancelled")) if how == "update" else second.delete("a"))
            await ended.wait()
            await second.delete("a")

    run(path, test)


def test_refusals_have_their_types(path: Path) -> None:
    async def test(store: MemoryResponseStore, first: RemoteResponseStore, second: RemoteResponseStore) -> None:
        with pytest.raises(InvalidRequestError, match="more than the limit of 3000") as caught:
            await first.create(make("a", size=5000))
        assert caught.value.param == "store"
        await first.create(make("a"))
        with pytest.raises(QueueFullError):
            await second.create(make("b"), lambda: pytest.fail("it was never kept"))
        assert await second.get("b") is None

    run(path, test, max_responses=1, max_bytes=3000)


def test_many_calls_at_once(path: Path) -> None:
    async def one(store: RemoteResponseStore, name: str) -> None:
        await store.create(make(name))
        assert await store.update(make(name, "completed", 100))
        assert await store.get(name) == make(name, "completed", 100)

    async def test(store: MemoryResponseStore, first: RemoteResponseStore, second: RemoteResponseStore) -> None:
        await asyncio.gather(*(one((first, second)[i % 2], f"r{i}") for i in range(200)))
        assert store.num_responses == 200

    run(path, test)


def test_a_worker_that_goes_away_fails_what_it_ran(path: Path) -> None:
    async def test(store: MemoryResponseStore, first: RemoteResponseStore, second: RemoteResponseStore) -> None:
        await first.create(make("runs"))
        await first.create(make("done"))
        assert await first.update(make("done", "completed"))
        await second.create(make("other"))
        await first.close()
        while (found := await second.get("runs")) is not None and found.is_running:
            await asyncio.sleep(0.005)
        assert found is not None
        assert (found.status, msgspec.json.decode(found.body)["status"]) == ("failed", "failed")
        assert msgspec.json.decode(found.body)["error"]["code"] == "server_error"
        assert await second.get("done") == make("done", "completed")
        assert await second.get("other") == make("other")
        # Its successor, or itself, connects anew.
        assert await first.get("done") == make("done", "completed")

    run(path, test)


def test_a_parent_that_goes_away(path: Path) -> None:
    async def main() -> None:
        client = RemoteResponseStore(path, is_enabled=True)
        with pytest.raises(ServerUnavailableError):
            await client.get("a")
        server = StoreServer(MemoryResponseStore())
        await server.start(path)
        ended = asyncio.Event()
        await client.create(make("a"), ended.set)
        await server.stop()
        await ended.wait()
        with pytest.raises(ServerUnavailableError):
            await client.get("a")
        await client.close()

    uvloop.run(main())


def test_a_parent_that_is_stuck(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_client, "CALL_TIMEOUT_S", 0.05)

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def main() -> None:
        async with await asyncio.start_unix_server(say_nothing, path):
            client = RemoteResponseStore(path, is_enabled=True)
            with pytest.raises(ServerUnavailableError):
                await client.get("a")
            assert not client._calls
            await client.close()

    uvloop.run(main())


def test_what_a_stuck_parent_keeps_in_the_end_is_taken_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_client, "CALL_TIMEOUT_S", 0.05)
    go_on = asyncio.Event()
    store = MemoryResponseStore()
    create = store.create

    async def create_late(response: StoredResponse, on_end: OnEnd | None = None) -> None:
        await go_on.wait()
        await create(response, on_end)

    monkeypatch.setattr(store, "create", create_late)

    async def main() -> None:
        server, client = StoreServer(store), RemoteResponseStore(path, is_enabled=True)
        await server.start(path)
        with pytest.raises(ServerUnavailableError):
            await client.create(make("a"))
        go_on.set()
        # One connection's calls are answered in their order.
        monkeypatch.setattr(store_client, "CALL_TIMEOUT_S", 30.0)
        assert await client.get("a") is None
        await client.create(make("b"))
        assert await client.get("b") == make("b")
        await client.close()
        await server.stop()

    uvloop.run(main())


@pytest.fixture
def shared(path: Path) -> Iterator[Path]:
    """A store server in a thread of its own."""
    loop, up, end = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def main() -> None:
        server = StoreServer(MemoryResponseStore())
        await server.start(path)
        up.set()
        await end.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    assert up.wait(10)
    yield path
    loop.call_soon_threadsafe(end.set)
    thread.join()
    loop.close()


@pytest.fixture
def urls(shared: Path) -> Iterator[list[str]]:
    """Two workers over one store, each with its engine."""
    engines = [FakeEngine() for _ in range(2)]
    for engine in engines:
        engine.step_s = 0.01
    servers = [AppServer(engine) for engine in engines]
    for server in servers:
        server.state.response_store = RemoteResponseStore(shared, is_enabled=True)
    yield [server.url for server in servers]
    for server in servers:
        store = server.state.response_store
        assert isinstance(store, RemoteResponseStore)
        asyncio.run_coroutine_threadsafe(store.close(), server.loop).result(10)
        server.stop()
    for engine in engines:
        engine.stop()
    assert all(server.link.num_requests == 0 for server in servers)


def test_workers_are_one_server_to_clients(urls: list[str]) -> None:
    first, second = (openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) for url in urls)
    with first, second:
        answer = first.responses.create(model="fake", input="Hi")
        assert second.responses.retrieve(answer.id) == answer
        follow_up = second.responses.create(model="fake", input="More", previous_response_id=answer.id)
        assert follow_up.usage is not None
        assert follow_up.usage.input_tokens > 20
        assert [item.type for item in second.responses.input_items.list(answer.id)] == ["message"]
        run = first.responses.create(model="fake", input="Hi", background=True)
        assert second.responses.cancel(run.id).status == "cancelled"
        done = second.responses.create(model="fake", input="Hi", background=True)
        assert eventually(lambda: first.responses.retrieve(done.id).status == "completed")
        *_, last = first.responses.create(model="fake", input="Hi", stream=True)
        assert second.responses.retrieve(last.response.id).output_text == "Hello there"  # type: ignore[union-attr]
        second.responses.delete(answer.id)
        with pytest.raises(openai.NotFoundError):
            first.responses.retrieve(answer.id)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_store_that_is_lost_under_way_does_not_cost_the_answer(
    shared: Path, engine: FakeEngine, server: AppServer, is_stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = server.state.response_store = RemoteResponseStore(shared, is_enabled=True)
    create, is_kept = store.create, threading.Event()

    async def watched(response: StoredResponse, on_end: OnEnd | None = None) -> None:
        await create(response, on_end)
        is_kept.set()

    monkeypatch.setattr(store, "create", watched)

    async def forget() -> None:
        await store.close()
        store._path = Path("/nonexistent")

    def script(request: AddRequest) -> Iterator[list[SequenceOutput]]:
        assert is_kept.wait(10)
        asyncio.run_coroutine_threadsafe(forget(), server.loop).result(10)
        yield from says("Yes")(request)

    engine.script = script
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        answer: Any = client.responses.create(model="fake", input="Hi", stream=is_stream)
        answer = list(answer)[-1].response if is_stream else answer
        assert (answer.status, answer.output_text) == ("completed", "Yes")


def test_without_the_store_only_what_needs_it_fails(path: Path, engine: FakeEngine, server: AppServer) -> None:
    server.state.response_store = RemoteResponseStore(path, is_enabled=True)
    engine.script = says("Yes")
    with httpx2.Client(base_url=server.url) as http:
        body = {"model": "fake", "input": "Hi"}
        refused = http.post("/v1/responses", json=body)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert http.get("/v1/responses/resp_1").status_code == 503
        assert http.post("/v1/responses", json={**body, "store": False}).status_code == 200
