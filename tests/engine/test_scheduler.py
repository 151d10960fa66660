"""Who runs when: budget, order, admission by slot count, and every way to end."""

import numpy as np
import pytest

from remuda.engine.errors import QueueFullError
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.scheduler import Scheduler
from remuda.engine.sequence import Request
from remuda.engine.state_pool import StatePool
from tests.engine.tiny import CPU, make_model

SPEC = make_model("reference").state_spec


def make(
    num_slots: int = 2, *, max_batch_tokens: int = 10, prefill_chunk: int = 4, max_queue: int = 5
) -> tuple[Scheduler, StatePool]:
    pool = StatePool(SPEC, num_slots, CPU)
    limits = {"max_batch_tokens": max_batch_tokens, "prefill_chunk": prefill_chunk, "max_queue": max_queue}
    return Scheduler(pool, **limits), pool


def request(name: str, length: int, n: int = 1) -> Request:
    return Request.create(name, np.zeros(length, dtype=np.int32), SamplingParams(n=n), 0)


def chunks(scheduler: Scheduler) -> list[tuple[str, int, int]]:
    """Schedule a step, and tell its prefill chunks."""
    plan = scheduler.schedule()
    return [(c.request.request_id, c.start, c.end) for c in plan.prefill]


def test_prompts_are_read_in_chunks_under_the_budget_in_order_of_arrival() -> None:
    scheduler, _ = make(num_slots=3, max_batch_tokens=9, prefill_chunk=4)
    for name, length in (("a", 6), ("b", 5), ("c", 3)):
        scheduler.add(request(name, length))
    assert chunks(scheduler) == [("a", 0, 4), ("b", 0, 4), ("c", 0, 1)]
    assert chunks(scheduler) == [("a", 4, 6), ("b", 4, 5), ("c", 1, 3)]
    assert [s.request.request_id for s in scheduler.schedule().decode] == ["a", "b", "c"]


def test_decode_rows_come_first_out_of_the_budget() -> None:
    scheduler, _ = make(num_slots=3, max_batch_tokens=4, prefill_chunk=4)
    scheduler.add(request("a", 1, n=2))
    chunks(scheduler)
    scheduler.add(request("b", 9))
    plan = scheduler.schedule()
    assert len(plan.decode) == 2
    assert [(c.start, c.end) for c in plan.prefill] == [(0, 2)]


def test_who_finds_no_slot_waits_and_nobody_overtakes() -> None:
    scheduler, pool = make(num_slots=2)
    scheduler.add(request("a", 2))
    scheduler.add(request("wide", 2, n=2))
    scheduler.add(request("late", 2))
    assert [c[0] for c in chunks(scheduler)] == ["a"]
    assert (scheduler.num_running, scheduler.num_waiting, pool.num_free) == (1, 2, 1)
    a = scheduler.get("a")
    assert a is not None
    scheduler.finish(a.sequences[0])
    assert [c[0] for c in chunks(scheduler)] == ["wide"]
    assert pool.num_free == 0


def test_a_full_queue_refuses_and_keeps_nothing() -> None:
    scheduler, _ = make(num_slots=2, max_queue=1)
    # Two find slots and do not count; the third waits.
    for name in ("a", "b", "c"):
        scheduler.add(request(name, 1))
    with pytest.raises(QueueFullError, match="1 requests are waiting, the limit is 1"):
        scheduler.add(request("d", 1))
    assert scheduler.get("d") is None


@pytest.mark.parametrize("steps_before", [0, 1, 2])
def test_a_request_ends_in_every_phase_and_gives_all_its_slots_back(steps_before: int) -> None:
    scheduler, pool = make(num_slots=4, max_batch_tokens=10)
    one = request("a", 6, n=3)
    scheduler.add(one)
    for _ in range(steps_before):
        chunks(scheduler)
    for sequence in one.sequences:
        scheduler.finish(sequence)
        scheduler.finish(sequence)
    assert (pool.num_free, scheduler.has_work) == (4, False)
    plan = scheduler.schedule()
    assert (plan.decode, plan.prefill) == ([], [])


@pytest.mark.parametrize("index", [0, 1])
def test_one_choice_that_ends_while_the_prompt_is_read_leaves_its_siblings(index: int) -> None:
    scheduler, pool = make(num_slots=2)
    one = request("a", 6, n=2)
    scheduler.add(one)
    chunks(scheduler)
    scheduler.finish(one.sequences[index])
    assert pool.num_free == 0
    chunks(scheduler)
    assert pool.num_free == 1
    assert scheduler.schedule().decode == [one.sequences[1 - index]]


def test_a_plan_counts_as_done_and_the_last_token_takes_no_further_row() -> None:
    scheduler, pool = make(num_slots=2)
    one = Request.create("a", np.zeros(3, dtype=np.int32), SamplingParams(max_tokens=3), 0)
    scheduler.add(one)
    assert chunks(scheduler) == [("a", 0, 3)]
    # The prompt's step draws the first token, these the second and third.
    for _ in range(2):
        plan = scheduler.schedule()
        assert (plan.decode, plan.slots.tolist()) == (one.sequences, [one.sequences[0].slot])
    assert scheduler.schedule().is_empty
    assert (pool.num_free, scheduler.has_work) == (1, True)
    scheduler.finish(one.sequences[0])
    assert (pool.num_free, scheduler.has_work) == (2, False)


def test_rows_that_leave_in_any_order_leave_the_others_their_slots() -> None:
    scheduler, _ = make(num_slots=6, max_batch_tokens=20)
    requests = [request(f"r{i}", 1) for i in range(6)]
    for one in requests:
        scheduler.add(one)
    chunks(scheduler)
    for gone in (0, 3, 5):
        scheduler.finish(requests[gone].sequences[0])
        plan = scheduler.schedule()
        assert [s.slot for s in plan.decode] == plan.slots.tolist()
        assert all(not s.is_finished for s in plan.decode)
    assert {s.request.request_id for s in scheduler.schedule().decode} == {"r1", "r2", "r4"}
