"""A link to a scripted engine, for the length of a test's coroutine."""

import asyncio
from collections.abc import Awaitable, Callable

from remuda.engine.sampling_params import SamplingParams
from remuda.engine.wire import SequenceOutput
from remuda.server.link import EngineLink
from remuda.server.request_handle import RequestHandle
from tests.server.fakes import FakeEngine

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
