"""The client's own ceiling: every event is counted. How fast is a question for benchmarks/load_client.py."""

import asyncio

from remuda.clients.load.ceiling import NUM_STREAMS, measure_ceiling
from remuda.clients.load.watch import ClientWatch


def test_every_event_is_counted() -> None:
    ceiling, num_read = asyncio.run(measure_ceiling(num_events=100))
    assert num_read == NUM_STREAMS * 100
    assert ceiling.events_per_s > 0


def test_a_client_at_its_limit_is_told() -> None:
    watch = ClientWatch(num_events=600, busy_share=0.9, wall=1.0, lags=[0.03] * 100)
    assert [note.split(":")[0] for note in watch.warnings(1000.0)] == [
        "the client read 600 events/s, of 1,000 that it can",
        "the client took 90% of a core",
        "the client's loop woke up 30 ms late (p99)",
    ]


def test_a_client_at_ease_is_not() -> None:
    watch = ClientWatch(num_events=400, busy_share=0.1, wall=1.0, lags=[0.001] * 100)
    assert watch.warnings(1000.0) == []
    assert watch.warnings(None) == []
