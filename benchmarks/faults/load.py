"""Loads: requests of which a fifth leaves in every phase, more of them than fit, and a long mixed one."""

import asyncio
import random
import time
from collections import Counter

from benchmarks.faults.client import Answer, Connection, Gone, story
from benchmarks.faults.probe import EngineProbe
from benchmarks.faults.server import Server
from benchmarks.faults.table import Row, at_most, at_rest, is_none

# Read in several chunks.
_LONG_PROMPT = [5 + i % 2000 for i in range(800)]
_RETRY_S = 1.0


async def _leave(connection: Connection, rng: random.Random) -> str:
    """Send a request and leave it in some phase; returns which."""
    phase = rng.choice(("queue", "prefill", "decode", "last token", "whole answer"))
    if phase == "queue":
        await connection.send(story(20, stream=rng.random() < 0.5))
        await asyncio.sleep(rng.random() * 0.005)
    elif phase == "prefill":
        await connection.send(story(5, stream=rng.random() < 0.5, prompt=_LONG_PROMPT))
        await asyncio.sleep(rng.random() * 0.2)
    elif phase == "whole answer":
        await connection.send(story(10, stream=False))
        await asyncio.sleep(rng.random() * 0.5)
    else:
        num_tokens = rng.randrange(2, 30)
        await connection.send(story(num_tokens))
        answer = await connection.start()
        async for piece in connection.pieces(answer):
            is_last = b'"finish_reason":"length"' in piece
            if is_last or (phase == "decode" and rng.random() < 0.2):
                break
    connection.close()
    return f"left in {phase}"


async def _client(server: Server, rng: random.Random, num_requests: int, outcomes: Counter[str]) -> None:
    async with Connection(server.host, server.port) as connection:
        for _ in range(num_requests):
            try:
                if rng.random() < 0.2:
                    outcomes[await _leave(connection, rng)] += 1
                    continue
                answer = await connection.ask(story(rng.randrange(1, 16), stream=rng.random() < 0.5))
            except Gone:
                outcomes["cut off"] += 1
                continue
            if answer.status == 200:
                outcomes["whole" if answer.is_whole else "not whole"] += 1
            else:
                outcomes[str(answer.status)] += 1


async def _wave(server: Server, num_connections: int, num_each: int, seed: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    await asyncio.gather(
        *(_client(server, random.Random(f"{seed}-{i}"), num_each, outcomes) for i in range(num_connections))
    )
    return outcomes


def disconnects(num_requests: int, num_connections: int = 200, num_waves: int = 10) -> list[Row]:
    """Waves of requests; after each, how long until every slot is free."""
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    num_each = max(1, num_requests // (num_connections * num_waves))
    with Server(32, "--api-workers", "2", "--max-queue", "512") as server:
        # Everything that is made on first use is made, in every worker.
        asyncio.run(_wave(server, num_connections, 1, seed=-1))
        server.wait_until_ready(10)
        time.sleep(1)
        server.note_rest()
        with EngineProbe(server.engine) as probe:
            for seed in range(num_waves):
                outcomes += asyncio.run(_wave(server, num_connections, num_each, seed))
                slowest = max(slowest, probe.until_free(32, 30) or 30.0)
        unrest = server.unrest()
    num_done = sum(outcomes.values())
    num_left = sum(count for outcome, count in outcomes.items() if outcome.startswith("left"))
    bad = sum(
        count for outcome, count in outcomes.items() if outcome not in ("whole", "429") and "left" not in outcome
    )
    test = f"{num_done:,} requests, {num_connections} connections"
    print(f"{test}: {dict(outcomes)}")
    return [
        Row(f"{test}: left early", f"{num_left / num_done:.0%}", "≥ 18 %", num_left >= 0.18 * num_done),
        is_none(f"{test}: 5xx, cut or torn answers", bad, "answers"),
        at_most(f"{test}: all slots free after a wave", slowest, 1.0, "s"),
        at_rest(test, unrest),
    ]


async def _closed_loop(server: Server, num_clients: int, seconds: float) -> Counter[str]:
    """Clients that ask again as soon as they are answered, or after a second where there was no room."""
    outcomes: Counter[str] = Counter()
    until = time.monotonic() + seconds

    async def client() -> None:
        async with Connection(server.host, server.port) as connection:
            while time.monotonic() < until:
                try:
                    answer: Answer = await connection.ask(story(48))
                except Gone:
                    outcomes["cut off"] += 1
                    continue
                outcomes[str(answer.status)] += 1
                outcomes["tokens"] += 48 * answer.is_whole
                if answer.status == 429:
                    await asyncio.sleep(_RETRY_S)

    began = time.monotonic()
    await asyncio.gather(*(client() for _ in range(num_clients)))
    outcomes["rate"] = round(outcomes["tokens"] / (time.monotonic() - began))
    return outcomes


def overload(seconds: float) -> list[Row]:
    """Twice to ten times as many clients as slots, of which a queue holds as many again."""
    rows, num_slots = [], 32
    with Server(num_slots, "--max-queue", str(num_slots)) as server:
        asyncio.run(_closed_loop(server, num_slots, 2.0))
        peak = asyncio.run(_closed_loop(server, num_slots, seconds))["rate"]
        time.sleep(1)
        server.note_rest()
        for factor in (2, 5, 10):
            outcomes = asyncio.run(_closed_loop(server, factor * num_slots, seconds))
            test = f"{factor}× overload, {seconds:g} s"
            bad = {code: count for code, count in outcomes.items() if code not in ("200", "429", "tokens", "rate")}
            share = outcomes["rate"] / peak
            figure = f"{share:.0%} of {peak:,} tokens/s, {outcomes['429']} × 429"
            rows.append(Row(f"{test}: goodput", figure, "≥ 90 %", share >= 0.9))
            rows.append(is_none(f"{test}: neither 200 nor 429", sum(bad.values()), "answers"))
        rows.append(at_rest("overload", server.unrest()))
    return rows


def full_pool() -> list[Row]:
    """No slot, then no room in the queue: 429 for who comes then, nothing for the others."""

    async def main(server: Server) -> tuple[int, int, int]:
        connections = [Connection(server.host, server.port) for _ in range(9)]
        for connection in connections[:8]:
            await connection.send(story(4000))
            await asyncio.sleep(0.05)
        surplus = await connections[8].ask(story(1))
        too_many = await connections[8].ask(story(1, n=5))
        answers = [await connection.start() for connection in connections[:4]]
        for connection in connections:
            connection.close()
        return surplus.status, too_many.status, sum(answer.status == 200 for answer in answers)

    with Server(4, "--max-queue", "4") as server:
        server.note_rest()
        statuses = asyncio.run(main(server))
        figure = f"{statuses[0]}; {statuses[2]} of 4 stream on; n above the pool: {statuses[1]}"
        row = Row("pool and queue full", figure, "429; 4 of 4; 400", statuses == (429, 400, 4))
        return [row, at_rest("pool and queue full", server.unrest())]


def soak(warm_up_s: float, seconds: float) -> list[Row]:
    """Mixed load; what the memory does after it has settled."""
    with Server(32, "--api-workers", "2", "--max-queue", "512") as server:

        def resident() -> dict[str, int]:
            named = {"engine": server.engine} | {f"worker {i}": worker for i, worker in enumerate(server.workers)}
            return {name: int(process.memory_info().rss) for name, process in named.items()}

        _mix_for(warm_up_s, server)
        server.wait_until_ready(10)
        server.note_rest()
        before = resident()
        num_requests = _mix_for(seconds, server)
        after = resident()
        test = f"soak, {seconds:g} s, {num_requests:,} requests"
        rows = [
            at_most(f"{test}: growth of {name}", 100 * (after[name] / before[name] - 1), 1.0, "%")
            for name in before
        ]
        return [*rows, at_rest("soak", server.unrest())]


def _mix_for(seconds: float, server: Server) -> int:
    """Returns how many requests there were."""
    until, seed, num_requests = time.monotonic() + seconds, 0, 0
    while time.monotonic() < until:
        num_requests += asyncio.run(_wave(server, 64, 4, seed)).total()
        seed += 1
    return num_requests
