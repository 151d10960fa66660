"""EngineLink against a scripted engine on a real socket."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from remuda.engine.errors import EngineDeadError, InvalidRequestError, QueueFullError
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.wire import (
    AbortRequest,
    AddRequest,
    EngineFailed,
    EngineLoading,
    EngineReady,
    RequestRejected,
    SequenceOutput,
)
from remuda.server.errors import ServerUnavailableError, SlowClientError
from remuda.server.link import EngineLink, EngineStatus, RequestHandle
from tests.server.fake_info import INFO
from tests.server.fakes import FakeEngine, Script, eventually, ids, says

PARAMS = SamplingParams(max_tokens=100)


def with_link(engine: FakeEngine, body: Callable[[EngineLink], Awaitable[None]]) -> None:
    """Run `body` with a link that is ready."""

    async def main() -> None:
        link = EngineLink()
        ready = asyncio.Event()
        link.listeners.append(ready.set)
        link.connect(engine.address)
        await asyncio.wait_for(ready.wait(), 10)
        try:
            await body(link)
        finally:
            link.close()

    asyncio.run(main())


async def take_all(handle: RequestHandle, num_choices: int = 1) -> list[SequenceOutput]:
    outputs: list[SequenceOutput] = []
    while sum(output.finish_reason is not None for output in outputs) < num_choices:
        outputs += await handle.take(10)
    handle.close()
    return outputs


def test_ready_and_outputs(engine: FakeEngine) -> None:
    async def body(link: EngineLink) -> None:
        assert link.status is EngineStatus.READY
        assert link.info == INFO
        outputs = await take_all(link.submit("r", [[5, 6]], PARAMS))
        assert [output.token_ids[0] for output in outputs[:-1]] == ids("Hello there")
        assert engine.requests == [AddRequest("r-0", [5, 6], PARAMS)]
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


def test_one_wake_up_takes_all_that_came(engine: FakeEngine) -> None:
    """Outputs that arrived while the taker was busy come in one go, in order."""
    text = "x" * 500

    async def body(link: EngineLink) -> None:
        engine.script = says(text)
        handle = link.submit("r", [[5]], SamplingParams(max_tokens=1000))
        assert eventually(lambda: engine.requests != [] and engine.num_active == 0)
        outputs: list[SequenceOutput] = []
        num_takes = 0
        while not outputs or outputs[-1].finish_reason is None:
            outputs += await handle.take(10)
            num_takes += 1
        assert len(outputs) == len(text) + 1
        assert num_takes < 50
        handle.close()

    with_link(engine, body)


def test_idle_take_returns_nothing(engine: FakeEngine) -> None:
    async def body(link: EngineLink) -> None:
        engine.running.clear()
        handle = link.submit("r", [[5]], PARAMS)
        assert await handle.take(0.02) == []
        engine.running.set()
        assert len(await take_all(handle)) == 12

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


def test_close_aborts_what_runs(engine: FakeEngine) -> None:
    engine.running.clear()

    async def body(link: EngineLink) -> None:
        handle = link.submit("r", [[5], [6]], PARAMS)
        handle.close()
        handle.close()
        assert link.num_requests == 0
        while len(engine.aborts) < 2:
            await asyncio.sleep(0.005)

    with_link(engine, body)
    assert [(abort.request_id, abort.index) for abort in engine.aborts] == [("r-0", None), ("r-1", None)]


def test_abort_of_one_choice(engine: FakeEngine) -> None:
    engine.running.clear()

    async def body(link: EngineLink) -> None:
        handle = link.submit("r", [[5], [6]], SamplingParams(n=2))
        handle.abort_choice(3)
        while not engine.aborts:
            await asyncio.sleep(0.005)
        handle.close()

    with_link(engine, body)
    assert (engine.aborts[0].request_id, engine.aborts[0].index) == ("r-1", 1)


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


def burst(num_outputs: int) -> Script:
    """One output per step and one token each, without an end."""

    def script(request: AddRequest) -> list[list[SequenceOutput]]:
        return [[SequenceOutput(request.request_id, 0, [10])] for _ in range(num_outputs)]

    return script


def test_reader_that_stops_is_ended_at_a_bound(engine: FakeEngine) -> None:
    engine.script = burst(3000)

    async def body(link: EngineLink) -> None:
        handle = link.submit("r", [[5]], PARAMS)
        assert await handle.take(10) != []
        # Now it is "stuck in sending", while the engine goes on.
        while link.num_requests:
            await asyncio.sleep(0.005)
        with pytest.raises(SlowClientError):
            await handle.take(10)
        while not engine.aborts:
            await asyncio.sleep(0.005)

    with_link(engine, body)


def test_what_waits_is_put_together(engine: FakeEngine) -> None:
    num_steps = 300

    def script(request: AddRequest) -> list[list[SequenceOutput]]:
        steps = [
            [SequenceOutput(request.request_id, s, [100 * s + i % 90]) for s in (0, 1)] for i in range(num_steps)
        ]
        return [*steps, [SequenceOutput(request.request_id, s, [7], finish_reason="length") for s in (0, 1)]]

    engine.script = script

    async def body(link: EngineLink) -> None:
        handle = link.submit("r", [[5]], SamplingParams(n=2))
        while handle._num_unfinished:
            await asyncio.sleep(0.005)
        outputs = await handle.take(10)
        assert len(outputs) < 100
        for s in (0, 1):
            tokens = [token for output in outputs if output.index == s for token in output.token_ids]
            assert tokens == [*(100 * s + i % 90 for i in range(num_steps)), 7]
        handle.close()

    with_link(engine, body)


def test_stalled_event_loop_is_not_a_slow_reader(engine: FakeEngine) -> None:
    engine.script = burst(3000)

    async def body(link: EngineLink) -> None:
        handle = link.submit("r", [[5]], PARAMS)
        # The loop is blocked here until the engine has sent everything.
        assert eventually(lambda: engine.requests != [] and engine.num_active == 0)
        num_outputs = 0
        while num_outputs < 3000:
            num_outputs += len(await handle.take(10))
        handle.close()

    with_link(engine, body)


def test_a_sink_takes_what_comes_until_it_wants_no_more(engine: FakeEngine) -> None:
    """All choices of a step in one call; what comes after the last call waits for `take`."""
    engine.running.clear()
    engine.script = says("abc")

    async def body(link: EngineLink) -> None:
        handle = link.submit("r", [[5]], SamplingParams(n=2))
        calls: list[list[int]] = []

        def sink(outputs: list[SequenceOutput]) -> bool:
            calls.append([output.index for output in outputs])
            return len(calls) < 3

        engine.running.set()
        assert await handle.pass_on(sink, 10)
        assert calls == [[0, 1]] * 3
        rest = await take_all(handle, 2)
        assert [output.index for output in rest] == [0, 1]
        assert handle.meter.first_at is not None
        assert sum(handle.meter.gap_counts) == 6

    with_link(engine, body)


def test_a_sink_gets_first_what_has_waited(engine: FakeEngine) -> None:
    """And what came before the end of the engine before that is raised."""

    async def body(link: EngineLink) -> None:
        handle = link.submit("r", [[5]], PARAMS)
        outputs = await handle.take(10)
        while handle._num_unfinished:
            await asyncio.sleep(0.005)
        handle.fail(EngineDeadError("it died"))

        def sink(more: list[SequenceOutput]) -> bool:
            outputs.extend(more)
            return True

        with pytest.raises(EngineDeadError):
            await handle.pass_on(sink, 10)
        assert [output.token_ids[0] for output in outputs[:-1]] == ids("Hello there")

    with_link(engine, body)


def test_a_sink_that_gets_nothing(engine: FakeEngine) -> None:
    """Silence is reported, by and by the end of the engine is raised."""
    engine.running.clear()

    async def body(link: EngineLink) -> None:
        handle = link.submit("r", [[5]], PARAMS)
        assert not await handle.pass_on(lambda outputs: True, 0.02)
        asyncio.get_running_loop().call_soon(link.disconnect, EngineDeadError("it died"))
        assert await handle.pass_on(lambda outputs: True, 10)
        with pytest.raises(EngineDeadError, match="it died"):
            await handle.pass_on(lambda outputs: True, 10)

    with_link(engine, body)


def test_a_sink_that_fails_fails_in_its_own_task(engine: FakeEngine) -> None:
    async def body(link: EngineLink) -> None:
        def failing(outputs: list[SequenceOutput]) -> bool:
            raise ZeroDivisionError

        engine.running.clear()
        broken, sound = (link.submit(name, [[5]], PARAMS) for name in "ab")
        waiting = asyncio.create_task(broken.pass_on(failing, 10))
        await asyncio.sleep(0)
        engine.running.set()
        assert len(await take_all(sound)) == 12
        with pytest.raises(ZeroDivisionError):
            await waiting
        broken.close()

    with_link(engine, body)
