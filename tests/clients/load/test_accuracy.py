"""Figures equal what the server did: by its own record of when it wrote, within 1 ms or 2 %."""

from typing import Any

import numpy as np
import pytest

from remuda.clients.load.options import LoadOptions
from remuda.clients.load.results import Distribution, Stage
from tests.clients.load.conftest import FakeServer, run


def written(log: dict[str, Any]) -> tuple[list[float], list[float], list[float]]:
    """TTFT, gaps and end to end of all requests, as the server saw them."""
    rows = [(row["received"], np.array(row["writes"])) for row in log["log"]]
    gaps = [gap for _, writes in rows for gap in np.diff(writes)]
    return [w[0] - t for t, w in rows], gaps, [w[-1] - t for t, w in rows]


def differences(found: Distribution, expected: list[float]) -> list[str]:
    """Where mean or median are not within 1 ms or 2 %. Tails are the machine's that runs both."""
    assert found.count == len(expected)
    pairs = {"mean": (found.mean, np.mean(expected)), "p50": (found.percentiles["50"], np.median(expected))}
    return [f"{name}: {a}, {b}" for name, (a, b) in pairs.items() if a != pytest.approx(b, rel=0.02, abs=1e-3)]


@pytest.mark.parametrize(
    "script",
    [{}, {"first": 0.5, "gap": 0.02}, {"usage": "none"}, {"usage": "each"}, {"role": True}],
    ids=lambda script: "-".join(script) or "base",
)
def test_closed_loop(fake: FakeServer, script: dict[str, Any]) -> None:
    """A machine that is busy with other things may spoil a run, but not each of four."""
    for _ in range(4):
        (stage,) = run(fake.url, LoadOptions(concurrency=4, num_requests=8), script=script).result.stages
        assert (stage.num_requests, stage.num_failed, stage.output_tokens) == (8, 0, 64)
        assert stage.output_tokens_per_s == pytest.approx(64 / stage.duration)
        assert stage.requests_per_s == pytest.approx(8 / stage.duration)
        pairs = zip((stage.ttft, stage.itl, stage.e2e), written(fake.log()), strict=True)
        wrong = [line for found, expected in pairs for line in differences(found, expected)]
        if not wrong:
            return
    raise AssertionError(wrong)


def test_open_loop(fake: FakeServer) -> None:
    ended = run(fake.url, LoadOptions(rates=(20.0, 20.0), process="constant", num_requests=12))
    (stage,) = ended.result.stages
    assert differences(stage.itl, written(fake.log())[1]) == []
    assert stage.lateness.count == 12
    rows = sorted(ended.result.requests, key=lambda row: row.due)
    for i, row in enumerate(rows):
        assert row.due == pytest.approx(rows[0].due + 0.05 * i, abs=1e-6)
        assert row.sent >= row.due


def test_tokens_of_one_event_share_its_gap(fake: FakeServer) -> None:
    script = {"per_event": 4, "gap": 0.1, "usage": "each"}
    (stage,) = run(fake.url, LoadOptions(concurrency=1, num_requests=2), script=script, tokens=12).result.stages
    # 11 gaps each: three of nothing within the first event, eight of a quarter.
    assert stage.itl.count == 22
    assert stage.itl.percentiles["50"] == pytest.approx(0.025, abs=1e-3)
    assert stage.output_tokens == 24


def test_events_of_several_tokens_without_a_running_count_are_noted(fake: FakeServer) -> None:
    script = {"per_event": 4, "gap": 0.1}
    (stage,) = run(fake.url, LoadOptions(concurrency=1, num_requests=2), script=script, tokens=12).result.stages
    assert stage.itl.count == 4
    assert stage.output_tokens == 24
    assert stage.tpot.mean == pytest.approx(0.2 / 11, abs=1e-3)
    assert any("fewer events than tokens" in note for note in stage.notes)


def test_without_usage_events_are_counted_and_it_is_noted(fake: FakeServer) -> None:
    script = {"usage": "none"}
    (stage,) = run(fake.url, LoadOptions(concurrency=1, num_requests=2), script=script).result.stages
    assert stage.output_tokens == 16
    assert any("sent no usage" in note for note in stage.notes)


def stage_of_stall(fake: FakeServer, load: LoadOptions) -> Stage:
    script = {"stall": [0.5, 1.5], "first": 0.02, "gap": 0.01}
    return run(fake.url, load, script=script, tokens=2).result.stages[0]


def test_a_stall_hits_all_that_were_due_in_it(fake: FakeServer) -> None:
    """Open loop: of 2 s of arrivals half wait 0 to 1 s, so that the median is near their least."""
    stage = stage_of_stall(fake, LoadOptions(rates=(40.0, 40.0), process="constant", num_requests=80))
    assert stage.ttft.maximum == pytest.approx(1.0, abs=0.1)
    assert stage.ttft.percentiles["90"] == pytest.approx(0.8, abs=0.1)


def test_waiting_for_a_place_in_flight_counts(fake: FakeServer) -> None:
    load = LoadOptions(rates=(40.0, 40.0), process="constant", num_requests=80, max_in_flight=2)
    stage = stage_of_stall(fake, load)
    assert stage.ttft.percentiles["90"] is not None
    assert stage.ttft.percentiles["90"] > 0.7
    assert stage.lateness.maximum is not None
    assert stage.lateness.maximum > 0.7


def test_duration_ends_a_closed_loop(fake: FakeServer) -> None:
    (stage,) = run(fake.url, LoadOptions(concurrency=2, duration=1.0)).result.stages
    assert stage.duration == pytest.approx(1.0)
    log = fake.log()["log"]
    began = min(row["received"] for row in log)
    in_window = sum(write - began < 1.0 for row in log for write in row["writes"])
    assert stage.output_tokens_per_s == pytest.approx(in_window, rel=0.05)
    assert stage.num_requests == len(log)


def test_an_open_loop_lasts_as_long_as_asked(fake: FakeServer) -> None:
    (stage,) = run(fake.url, LoadOptions(rates=(1.0, 1.0), process="constant", duration=1.3)).result.stages
    assert stage.duration == pytest.approx(1.3)
    assert stage.num_requests == 2


def test_the_server_is_sampled(fake: FakeServer) -> None:
    (stage,) = run(fake.url, LoadOptions(concurrency=1, duration=1.2)).result.stages
    assert len(stage.samples) >= 2
    assert stage.samples[0].slots_used == 3
    assert stage.samples[0].pool_bytes == 1e6
    assert stage.samples[0].engine_resident_bytes is None
    assert stage.samples[-1].output_tokens == stage.output_tokens
