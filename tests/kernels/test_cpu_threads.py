"""The choice of threads follows a scripted machine; no clock is read."""

import random
from collections import Counter
from collections.abc import Callable

import pytest

from remuda.kernels.cpu_threads import ThreadChooser

FREE = {2: 1.0, 1: 1.7}
CONTENDED = {2: 25.0, 1: 2.0}


def run(chooser: ThreadChooser, machine: dict[int, float], times: int) -> Counter[int]:
    return run_shared(chooser, machine.__getitem__, times)


def run_shared(chooser: ThreadChooser, takes: Callable[[int], float], times: int) -> Counter[int]:
    chosen: Counter[int] = Counter()
    for _ in range(times):
        num_threads = chooser.choose()
        chosen[num_threads] += 1
        chooser.record(takes(num_threads))
    return chosen


def test_free_cores_are_used() -> None:
    assert run(ThreadChooser(2), FREE, 1000)[2] > 960


def test_a_neighbour_on_the_cores_is_avoided_within_a_few_steps_and_for_as_long_as_it_stays() -> None:
    chooser = ThreadChooser(2)
    run(chooser, FREE, 100)
    assert run(chooser, CONTENDED, 1000)[2] < 20
    assert run(chooser, CONTENDED, 2000)[2] <= 3


def test_all_threads_come_back_when_the_neighbour_leaves() -> None:
    chooser = ThreadChooser(2)
    run(chooser, CONTENDED, 200)
    assert run(chooser, FREE, 400)[2] > 200
    chooser = ThreadChooser(2)
    run(chooser, CONTENDED, 100_000)
    assert run(chooser, FREE, 2000)[2] > 900


def test_one_slow_run_changes_nothing_for_long() -> None:
    chooser = ThreadChooser(2)
    run(chooser, FREE, 100)
    chooser.choose()
    chooser.record(30.0)
    assert run(chooser, FREE, 200)[2] > 150


def test_one_core_has_no_choice() -> None:
    assert run(ThreadChooser(1), {1: 1.0}, 100) == {1: 100}


@pytest.mark.parametrize(("share", "best"), [(0.4, 1), (0.05, 2)])
def test_where_the_cores_are_shared_the_mean_counts(share: float, best: int) -> None:
    # All threads together are fast, but for those runs in which one of them has to wait for its core.
    rng = random.Random(0)
    takes = {1: lambda: rng.uniform(3.3, 3.7), 2: lambda: 12.0 if rng.random() < share else 2.0}
    chooser = ThreadChooser(2)
    assert run_shared(chooser, lambda n: takes[n](), 20_000)[best] > 18_000


def test_a_slow_run_in_a_hundred_does_not_turn_the_choice() -> None:
    # As measured on two cores that an API worker and a client share with the engine.
    rng = random.Random(0)
    takes = {1: lambda: rng.uniform(3.0, 3.4), 2: lambda: 20.0 if rng.random() < 0.01 else rng.uniform(1.7, 1.9)}
    chooser = ThreadChooser(2)
    run_shared(chooser, lambda n: takes[n](), 1000)
    assert run_shared(chooser, lambda n: takes[n](), 50_000)[2] > 49_300
