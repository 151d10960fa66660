"""The order of those who wait, and that the scheduler gives slots in it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from remuda.engine.sampling_params import INT64_MAX, INT64_MIN, SamplingParams
from remuda.engine.scheduler import Scheduler
from remuda.engine.sequence import Request
from remuda.engine.state_pool import StatePool
from remuda.engine.waiting_queue import WaitingQueue
from tests.engine.tiny import CPU, make_model


def request(name: str, priority: int = 0, n: int = 1) -> Request:
    return Request.create(name, np.zeros(1, dtype=np.int32), SamplingParams(priority=priority, n=n), 0)


def drain(queue: WaitingQueue) -> list[str]:
    order = []
    while queue.first is not None:
        order.append(queue.first.request_id)
        queue.remove(order[-1])
    return order


@given(
    priorities=st.lists(st.sampled_from([INT64_MIN, -1, 0, 1, INT64_MAX]), max_size=12),
    removed=st.sets(st.integers(0, 11)),
)
def test_the_order_is_that_of_a_stable_sort(priorities: list[int], removed: set[int]) -> None:
    queue = WaitingQueue()
    for i, priority in enumerate(priorities):
        queue.add(request(str(i), priority))
    for i in removed:
        queue.remove(str(i))
    left = [i for i in range(len(priorities)) if i not in removed]
    assert len(queue) == len(left)
    assert drain(queue) == [str(i) for i in sorted(left, key=lambda i: priorities[i])]
    assert len(queue) == 0


def test_an_id_may_come_again() -> None:
    queue = WaitingQueue()
    queue.add(request("a"))
    queue.remove("a")
    queue.remove("a")
    queue.add(request("b"))
    queue.add(request("a", -1))
    assert drain(queue) == ["a", "b"]


def test_slots_go_to_the_lowest_priority_and_nobody_is_thrown_out_for_it() -> None:
    spec = make_model("reference").state_spec
    scheduler = Scheduler(StatePool(spec, 1, CPU), max_batch_tokens=8, prefill_chunk=4, max_queue=9)
    for name, priority in (("first", 5), ("late", 1), ("urgent", -1), ("later", 1)):
        scheduler.add(request(name, priority))
    order = []
    for _ in range(4):
        (chunk,) = scheduler.schedule().prefill
        order.append(chunk.request.request_id)
        scheduler.finish(chunk.request.sequences[0])
    # The first had its slot before the others came.
    assert order == ["first", "urgent", "late", "later"]
    assert not scheduler.has_work


def test_who_needs_more_slots_than_are_free_holds_up_those_behind() -> None:
    spec = make_model("reference").state_spec
    scheduler = Scheduler(StatePool(spec, 2, CPU), max_batch_tokens=8, prefill_chunk=4, max_queue=9)
    scheduler.add(request("running"))
    scheduler.add(request("wide", 0, n=2))
    scheduler.add(request("small", 1))
    assert [chunk.request.request_id for chunk in scheduler.schedule().prefill] == ["running"]
    running = scheduler.get("running")
    assert running is not None
    scheduler.finish(running.sequences[0])
    assert [chunk.request.request_id for chunk in scheduler.schedule().prefill] == ["wide"]
