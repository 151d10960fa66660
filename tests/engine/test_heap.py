"""What prompts leave is given back each time that enough of them have been let go."""

import pytest

from remuda.engine import heap
from remuda.engine.heap import TRIM_AFTER_TOKENS, HeldPrompts


@pytest.fixture
def trims(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one for each time that the heap is trimmed."""
    calls: list[None] = []
    monkeypatch.setattr(heap, "trim_heap", lambda: calls.append(None))
    return calls


def test_a_long_prompt(trims: list[None]) -> None:
    prompts = HeldPrompts()
    prompts.hold("long", TRIM_AFTER_TOKENS)
    assert trims == []
    prompts.let_go("long")
    prompts.let_go("long")
    prompts.let_go("unknown")
    assert len(trims) == 1


def test_short_ones_add_up(trims: list[None]) -> None:
    prompts = HeldPrompts()
    for i in range(64):
        prompts.hold(f"p{i}", TRIM_AFTER_TOKENS // 32)
    for i in range(64):
        prompts.let_go(f"p{i}")
        assert len(trims) == (i + 1) // 32


def test_a_c_library_without_the_call_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    heap.trim_heap()
    monkeypatch.setattr(heap, "_C_LIBRARY", object())
    heap.trim_heap()
