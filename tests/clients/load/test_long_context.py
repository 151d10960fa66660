"""Long contexts: all sequences decode while gaps are taken, and each length is what was asked for."""

from array import array
from typing import Any

import pytest

from remuda.clients.load.long_context import medians
from remuda.clients.load.options import LoadOptions, LongContextOptions
from tests.clients.load.conftest import VirtualServer, fixed, run


def long_run(virtual: VirtualServer, script: dict[str, Any], *, rounds: int = 1, tokens: int = 10_000) -> Any:
    asked = LongContextOptions((100, 400), num_sequences=3, settle=2, window=10, rounds=rounds)
    return run(virtual.url, LoadOptions(), script=script, long_context=asked, tokens=tokens)


def test_points(virtual: VirtualServer) -> None:
    ended = long_run(virtual, {"first": 0.2, "gap": 0.02, "usage": "each"}, rounds=2)
    found = ended.result.long_context
    assert not ended.is_failed
    assert found.num_sequences == 3
    assert [point.context_tokens for point in found.points] == [100, 400]
    for point in found.points:
        assert point.itl.count == 2 * 3 * 10
        assert point.itl.percentiles["50"] == pytest.approx(0.02, abs=1e-6)
        # A window of less than a part is one; so each round has one.
        assert point.itl_parts == pytest.approx([0.02, 0.02], abs=1e-6)
        # 3 prompts within the 0.2 s of the script, and what the machine adds.
        assert 0.5 < point.prefill_tokens_per_s / (3 * point.context_tokens / 0.2) <= 1
        assert point.sample.num_running == 3
        assert point.sample.pool_bytes == 1e6
    bodies = virtual.log()["bodies"]
    # A warm-up, up, then down.
    assert [len(body["prompt"]) for body in bodies] == [100] * 6 + [400] * 6 + [100] * 3
    assert len({tuple(body["prompt"]) for body in bodies}) == 15


def test_parts_of_a_window_keep_their_order() -> None:
    gaps = array("d", [1, 2, 9, 5, 6, 7, 3, 4])
    assert medians(gaps, 3) == [2, 6, 3.5]
    assert medians(gaps[:7], 3) == [2, 6]
    assert medians(gaps[:1], 3) == [1]
    assert medians(array("d"), 3) == []


def test_a_window_waits_for_the_last_sequence(virtual: VirtualServer) -> None:
    """Two slots: the third sequence begins when the first has ended, and then one is missing."""
    ended = long_run(virtual, {"first": 0.02, "gap": 0.01, "slots": 2}, tokens=20)
    assert ended.is_failed
    assert ended.result.long_context.points == []
    assert (
        "a sequence ended before all could be sampled: finish reason length after 20 tokens"
        in (ended.result.notes[-1])
    )


def test_a_length_that_is_refused_is_said(virtual: VirtualServer) -> None:
    ended = long_run(virtual, {"fault": 400})
    assert ended.is_failed
    assert "400: " in ended.result.notes[-1]


def test_words_where_no_ids_can_be_sent(virtual: VirtualServer) -> None:
    from remuda.clients.load.options import PromptOptions

    asked = LongContextOptions((50,), num_sequences=2, settle=1, window=4, rounds=1)
    prompts = PromptOptions(fixed(5), fixed(1000))
    script = {"first": 0.01, "gap": 0.01}
    ended = run(virtual.url, LoadOptions(), script=script, prompts=prompts, long_context=asked)
    assert [point.itl.count for point in ended.result.long_context.points] == [8]
    assert {len(body["prompt"].split()) for body in virtual.log()["bodies"]} == {50}
