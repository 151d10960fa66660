"""What long prompts leave is given back once for each, when it is let go."""

import pytest

from remuda.engine import heap
from remuda.engine.heap import LONG_PROMPT_TOKENS, LongPrompts


@pytest.fixture
def trims(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one for each time that the heap is trimmed."""
    calls: list[None] = []
    monkeypatch.setattr(heap, "trim_heap", lambda: calls.append(None))
    return calls


def test_a_long_prompt_is_trimmed_once(trims: list[None]) -> None:
    prompts = LongPrompts()
    prompts.hold("long", LONG_PROMPT_TOKENS)
    assert trims == []
    prompts.let_go("long")
    prompts.let_go("long")
    assert len(trims) == 1


def test_short_and_unknown_prompts_are_not(trims: list[None]) -> None:
    prompts = LongPrompts()
    prompts.hold("short", LONG_PROMPT_TOKENS - 1)
    prompts.let_go("short")
    prompts.let_go("unknown")
    assert trims == []


def test_a_c_library_without_the_call_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    heap.trim_heap()
    monkeypatch.setattr(heap, "_C_LIBRARY", object())
    heap.trim_heap()
