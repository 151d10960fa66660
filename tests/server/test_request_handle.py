"""RequestHandle beneath a link to a scripted engine: what is taken, passed on, bounded, ended."""

import asyncio

import pytest

from remuda.engine.errors import EngineDeadError
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.wire import AddRequest, SequenceOutput
from remuda.server.errors import SlowClientError
from remuda.server.link import EngineLink
from tests.server.fakes import FakeEngine, Script, eventually, ids, says
from tests.server.linked import PARAMS, take_all, with_link


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
