"""The store by itself: its bounds, who goes first, and what others may do to a response that runs."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest

from remuda.engine.errors import InvalidRequestError, QueueFullError
from remuda.server.response_store import MemoryResponseStore, StoredResponse

OVERHEAD = 1024


def make(name: str, status: str = "in_progress", size: int = 0, previous: str | None = None) -> StoredResponse:
    return StoredResponse(name, status, b"x" * size, b"", previous, is_background=True)


async def keep(store: MemoryResponseStore, name: str, size: int = 0, previous: str | None = None) -> None:
    """A response that ran and has ended."""
    await store.create(make(name, size=size, previous=previous))
    assert await store.update(make(name, "completed", size, previous))


async def names(store: MemoryResponseStore, *asked: str) -> list[str]:
    """Those that are kept, of those asked for, without using them."""
    kept = [*store._running, *store._ended]
    return [name for name in asked if name in kept]


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_the_least_recently_used_goes_first() -> None:
    async def test() -> None:
        store = MemoryResponseStore(max_responses=3)
        for name in "abc":
            await keep(store, name)
        assert await store.get("a") is not None
        await keep(store, "d")
        assert await names(store, *"abcd") == ["a", "c", "d"]
        assert (await store.conversation("c", 10**6)).missing_id is None
        await keep(store, "e")
        assert await names(store, *"abcde") == ["c", "d", "e"]
        assert store.num_responses == 3

    run(test())


def test_the_bound_in_bytes() -> None:
    async def test() -> None:
        store = MemoryResponseStore(max_bytes=5000)
        await keep(store, "a", 1000)
        await keep(store, "b", 1000)
        assert store.num_bytes == 2 * (1000 + OVERHEAD)
        # It grows at its end, and the others make room.
        await store.create(make("c"))
        assert await store.update(make("c", "completed", 3900))
        assert await names(store, *"abc") == ["c"]
        assert store.num_bytes == 3900 + OVERHEAD
        # Beyond all bounds, it is not kept itself.
        await store.create(make("d"))
        assert await store.update(make("d", "completed", 4900))
        assert await store.get("d") is None
        assert (store.num_responses, store.num_bytes) == (0, 0)

    run(test())


def test_a_response_larger_than_the_store_is_refused() -> None:
    async def test() -> None:
        store = MemoryResponseStore(max_bytes=5000)
        await keep(store, "a")
        with pytest.raises(InvalidRequestError, match="6024 bytes, more than the limit of 5000"):
            await store.create(make("b", size=5000))
        assert await names(store, *"ab") == ["a"]

    run(test())


def test_what_runs_is_never_thrown_out() -> None:
    async def test() -> None:
        store = MemoryResponseStore(max_responses=2)
        await store.create(make("a"))
        await keep(store, "b")
        await store.create(make("c"))
        assert await names(store, *"abc") == ["a", "c"]
        num_bytes = store.num_bytes
        with pytest.raises(QueueFullError, match="the 2 responses"):
            await store.create(make("d"), lambda: pytest.fail("it was never kept"))
        assert store.num_bytes == num_bytes
        assert await names(store, *"abcd") == ["a", "c"]
        assert await store.update(make("a", "failed"))
        await store.create(make("d"))
        assert await names(store, *"abcd") == ["c", "d"]

    run(test())


@pytest.mark.parametrize("how", ["cancelled", "completed", "deleted"])
def test_the_owner_hears_of_the_end_once(how: str) -> None:
    async def test() -> None:
        store = MemoryResponseStore()
        heard: list[str] = []
        await store.create(make("a", "queued"), lambda: heard.append("a"))
        assert await store.update(make("a", "in_progress"))
        assert heard == []
        assert await (store.delete("a") if how == "deleted" else store.update(make("a", how)))
        assert heard == ["a"]
        # Whoever comes second changes nothing.
        assert not await store.update(make("a", "completed", 100))
        found = await store.get("a")
        assert (found is None) if how == "deleted" else (found is not None and found.status == how)
        assert await store.delete("a") is (how != "deleted")
        assert not await store.delete("a")
        assert (heard, store.num_bytes) == (["a"], 0)

    run(test())


def test_a_conversation_is_walked_to_its_root() -> None:
    async def test() -> None:
        store = MemoryResponseStore()
        await keep(store, "a", 10)
        await keep(store, "b", 10, previous="a")
        await keep(store, "c", 10, previous="b")
        found = await store.conversation("c", 10**6)
        assert [turn.id for turn in found.turns] == ["a", "b", "c"]
        assert (await store.conversation("c", 3000)).is_too_long
        await store.delete("a")
        assert (await store.conversation("c", 10**6)).missing_id == "a"
        assert (await store.conversation("x", 10**6)).missing_id == "x"

    run(test())


def test_a_circle_ends_at_the_bound() -> None:
    """No request can make one; a store that has one all the same does not hang."""

    async def test() -> None:
        store = MemoryResponseStore()
        await keep(store, "a", previous="b")
        await keep(store, "b", previous="a")
        assert (await store.conversation("b", 10**5)).is_too_long

    run(test())


def test_a_store_of_nothing() -> None:
    assert not MemoryResponseStore(max_responses=0).is_enabled
    assert MemoryResponseStore(max_responses=1).is_enabled


def test_what_it_keeps_can_be_sent() -> None:
    response = StoredResponse("a", "completed", b"{}", b"[]", "b", is_background=True)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(response), type=StoredResponse) == response
