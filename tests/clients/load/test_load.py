"""What a load is: how long it lasts, what counts as waiting, what the server was meanwhile. In virtual time."""

import pytest

from remuda.clients.load.options import LoadOptions
from remuda.clients.report.results import Stage
from tests.clients.load.conftest import VirtualServer, run


def test_events_of_several_tokens_without_a_running_count_are_noted(virtual: VirtualServer) -> None:
    script = {"per_event": 4, "gap": 0.1}
    (stage,) = run(virtual.url, LoadOptions(concurrency=1, num_requests=2), script=script, tokens=12).result.stages
    assert stage.itl.count == 4
    assert stage.output_tokens == 24
    assert stage.tpot.mean == pytest.approx(0.2 / 11, abs=1e-6)
    assert any("fewer events than tokens" in note for note in stage.notes)


def test_without_usage_events_are_counted_and_it_is_noted(virtual: VirtualServer) -> None:
    script = {"usage": "none"}
    (stage,) = run(virtual.url, LoadOptions(concurrency=1, num_requests=2), script=script).result.stages
    assert stage.output_tokens == 16
    assert any("sent no usage" in note for note in stage.notes)


def stage_of_stall(virtual: VirtualServer, load: LoadOptions) -> Stage:
    script = {"stall": [0.5, 1.5], "first": 0.02, "gap": 0.01}
    return run(virtual.url, load, script=script, tokens=2).result.stages[0]


def test_a_stall_hits_all_that_were_due_in_it(virtual: VirtualServer) -> None:
    """Open loop: of 2 s of arrivals half wait 0 to 1 s, so that the median is near their least."""
    stage = stage_of_stall(virtual, LoadOptions(rates=(40.0, 40.0), process="constant", num_requests=80))
    assert stage.ttft.maximum == pytest.approx(1.0, abs=0.03)
    assert stage.ttft.percentiles["90"] == pytest.approx(0.8, abs=0.03)


def test_waiting_for_a_place_in_flight_counts(virtual: VirtualServer) -> None:
    load = LoadOptions(rates=(40.0, 40.0), process="constant", num_requests=80, max_in_flight=2)
    stage = stage_of_stall(virtual, load)
    assert stage.ttft.percentiles["90"] is not None
    assert stage.ttft.percentiles["90"] > 0.7
    assert stage.lateness.maximum is not None
    assert stage.lateness.maximum > 0.7


def test_duration_ends_a_closed_loop(virtual: VirtualServer) -> None:
    (stage,) = run(virtual.url, LoadOptions(concurrency=2, duration=1.0)).result.stages
    assert stage.duration == pytest.approx(1.0)
    log = virtual.log()["log"]
    began = min(row["received"] for row in log)
    in_window = sum(write - began < 1.0 for row in log for write in row["writes"])
    assert stage.output_tokens_per_s == pytest.approx(in_window, rel=0.05)
    assert stage.num_requests == len(log)


def test_an_open_loop_lasts_as_long_as_asked(virtual: VirtualServer) -> None:
    (stage,) = run(virtual.url, LoadOptions(rates=(1.0, 1.0), process="constant", duration=1.3)).result.stages
    assert stage.duration == pytest.approx(1.3)
    assert stage.num_requests == 2


def test_the_server_is_sampled(virtual: VirtualServer) -> None:
    (stage,) = run(virtual.url, LoadOptions(concurrency=1, duration=1.2)).result.stages
    assert len(stage.samples) >= 2
    assert stage.samples[0].slots_used == 3
    assert stage.samples[0].pool_bytes == 1e6
    assert stage.samples[0].engine_resident_bytes is None
    assert stage.samples[-1].output_tokens == stage.output_tokens
