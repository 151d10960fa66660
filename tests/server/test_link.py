"""EngineLink against a scripted engine on a real socket."""

import asyncio

import pytest

from remuda.engine.errors import EngineDeadError, InvalidRequestError, QueueFullError
from remuda.engine.heap import TRIM_AFTER_TOKENS
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.wire import (
    AbortRequest,
    AddRequest,
    EngineFailed,
    EngineLoading,
    EngineReady,
    RequestRejected,
    pack_ids,
)
from remuda.server.errors import ServerUnavailableError
from remuda.server.link import EngineLink, EngineStatus
from tests.server.fake_info import INFO
from tests.server.fakes import FakeEngine, eventually, ids, says
from tests.server.linked import PARAMS, take_all, with_link


def test_ready_and_outputs(engine: FakeEngine) -> None:
    async def body(link: EngineLink) -> None:
        assert link.status is EngineStatus.READY
        assert link.info == INFO
        outputs = await take_all(link.submit("r", [[5, 6]], PARAMS))
        assert [output.token_ids[0] for output in outputs[:-1]] == ids("Hello there")
        assert engine.requests == [AddRequest("r-0", pack_ids([5, 6]), PARAMS)]
        assert link.num_requests == 0

    with_link(engine, body)
    assert engine.aborts == []


def test_choices_are_numbered_over_prompts(engine: FakeEngine) -> None:
    engine.script = says("")

    async def body(link: EngineLink) -> None:
        outputs = await take_all(link.submit("r", [[5], [6]], SamplingParams(n=2)), 4)
        assert sorted((output.request_id, output.index) for output in outputs) == [
            ("r-0", 0),
            ("r-0", 1),
            ("r-1", 2),
            ("r-1", 3),
        ]

    with_link(engine, body)


@pytest.mark.parametrize(
    ("num_tokens", "num_trims"),
    [(TRIM_AFTER_TOKENS // 2 - 1, 0), (TRIM_AFTER_TOKENS // 2, 1), (TRIM_AFTER_TOKENS, 1)],
)
def test_memory_of_prompts_is_given_back(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, num_tokens: int, num_trims: int
) -> None:
    """Soon after, once for all that have come."""
    trims: list[None] = []
    monkeypatch.setattr("remuda.server.link.trim_heap", lambda: trims.append(None))
    monkeypatch.setattr("remuda.server.link._TRIM_AFTER_S", 0.05)

    async def body(link: EngineLink) -> None:
        handles = [link.submit(name, [[5] * num_tokens], PARAMS) for name in ("a", "b")]
        for handle in handles:
            await take_all(handle)
        await asyncio.sleep(0.2)
        assert len(trims) == num_trims

    with_link(engine, body)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("InvalidRequestError", InvalidRequestError), ("QueueFullError", QueueFullError)],
)
def test_rejection_is_the_typed_error(engine: FakeEngine, kind: str, expected: type[Exception]) -> None:
    engine.script = lambda request: RequestRejected(request.request_id, kind, "no", "prompt")

    async def body(link: EngineLink) -> None:
        with pytest.raises(expected, match="no") as caught:
            await link.submit("r", [[5], [6]], PARAMS).take(10)
        if isinstance(caught.value, InvalidRequestError):
            assert caught.value.param == "prompt"
        assert link.num_requests == 0

    with_link(engine, body)


def test_death_reaches_everybody_after_what_came_before(engine: FakeEngine) -> None:
    async def body(link: EngineLink) -> None:
        engine.step_s = 0.002
        engine.script = says("x" * 5000)
        handles = [link.submit(f"r{i}", [[5]], SamplingParams(max_tokens=5000)) for i in range(8)]
        for handle in handles:
            assert await handle.take(10) != []
        link.disconnect(EngineDeadError("it died"))
        for handle in handles:
            # What came before is taken first.
            while handle._arrived:
                await handle.take(10)
            with pytest.raises(EngineDeadError, match="it died"):
                await handle.take(10)
        assert link.status is EngineStatus.DOWN
        with pytest.raises(ServerUnavailableError):
            link.submit("late", [[5]], PARAMS)

    with_link(engine, body)


def test_next_engine_after_death(engine: FakeEngine) -> None:
    async def body(link: EngineLink) -> None:
        link.disconnect(EngineDeadError("it died"))
        second = FakeEngine(says("ok"))
        try:
            link.connect(second.address)
            while link.status is not EngineStatus.READY:
                await asyncio.sleep(0.005)
            assert len(await take_all(link.submit("r", [[5]], PARAMS))) == 3
        finally:
            second.stop()

    with_link(engine, body)


def test_late_abort_does_not_reach_the_next_engine(engine: FakeEngine) -> None:
    """A stop string may match in what the dead engine had sent, while the next one loads or is ready."""

    async def body(link: EngineLink) -> None:
        handle = link.submit("r", [[5]], PARAMS)
        assert await handle.take(10) != []
        link.disconnect(EngineDeadError("it died"))
        second = FakeEngine()
        second.status = EngineLoading("starting", 0.0)
        try:
            link.connect(second.address)
            # Nothing at all is for an engine that loads.
            link.send(AbortRequest("r-0"))
            handle.abort_choice(0)
            assert await asyncio.to_thread(eventually, lambda: second.hellos > 0)
            assert link.status is EngineStatus.LOADING
            link.disconnect(EngineDeadError("it died again"))
            second.status = EngineReady(INFO)
            link.connect(second.address)
            while link.status is not EngineStatus.READY:
                await asyncio.sleep(0.005)
            handle.abort_choice(0)
            # What was sent before it would have come before it.
            await take_all(link.submit("r2", [[5]], PARAMS))
            assert second.aborts == []
        finally:
            second.stop()

    with_link(engine, body)


def test_loading_and_failure(engine: FakeEngine) -> None:
    engine.status = EngineLoading("reading weights", 0.5)

    async def body(link: EngineLink) -> None:
        assert link.status is EngineStatus.LOADING
        assert link.progress.stage == "reading weights"
        with pytest.raises(ServerUnavailableError, match="loading"):
            link.submit("r", [[5]], PARAMS)

    with_link(engine, body)
    engine.status = EngineFailed("CheckpointError", "no tensor x")

    async def after_failure(link: EngineLink) -> None:
        assert link.status is EngineStatus.DOWN
        assert link.failure == engine.status

    with_link(engine, after_failure)
