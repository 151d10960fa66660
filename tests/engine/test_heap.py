"""What prompts leave is given back each time that enough of them have been let go."""

import pytest

from remuda.engine import core as core_module
from remuda.engine import heap
from remuda.engine.heap import TRIM_AFTER_TOKENS, TokensLetGo
from remuda.engine.sampling_params import SamplingParams
from tests.engine import tiny


@pytest.fixture
def trims() -> list[None]:
    """Grows by one for each time that the heap is trimmed."""
    return []


def test_a_long_prompt(trims: list[None]) -> None:
    TokensLetGo(lambda: trims.append(None)).note(TRIM_AFTER_TOKENS)
    assert len(trims) == 1


def test_short_ones_add_up(trims: list[None]) -> None:
    let_go = TokensLetGo(lambda: trims.append(None))
    for i in range(64):
        let_go.note(TRIM_AFTER_TOKENS // 32)
        assert len(trims) == (i + 1) // 32


def test_at_rest_any_is_enough(trims: list[None]) -> None:
    let_go = TokensLetGo(lambda: trims.append(None))
    let_go.rest()
    assert trims == []
    let_go.note(1)
    let_go.rest()
    let_go.rest()
    assert len(trims) == 1


def test_at_rest_what_the_last_long_one_needed_goes_too(trims: list[None]) -> None:
    let_go = TokensLetGo(lambda: trims.append(None))
    let_go.note(TRIM_AFTER_TOKENS)
    let_go.rest()
    let_go.rest()
    assert len(trims) == 2


def test_a_c_library_without_the_call_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    heap.trim_heap()
    monkeypatch.setattr(heap, "_C_LIBRARY", object())
    heap.trim_heap()


def test_the_engine_counts_each_prompt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[int | str] = []

    class Spy(TokensLetGo):
        def note(self, num_tokens: int) -> None:
            noted.append(num_tokens)

        def rest(self) -> None:
            noted.append("rest")

    monkeypatch.setattr(core_module, "TokensLetGo", Spy)
    core = tiny.make_core("cpu", num_slots=1, max_batch_tokens=8, prefill_chunk=4)
    params = SamplingParams(temperature=0.0, max_tokens=30)
    # One is read to its end, one left while it is read, one in the queue.
    for name, num_tokens in (("read", 9), ("left", 17), ("queued", 33)):
        core.add(name, [1] * num_tokens, params)
    while core.holds("read"):
        core.step()
    core.step()
    core.abort("left")
    core.abort("queued")
    core.abort("queued")
    assert [n for n in noted if n] == [9, "rest", 17, 33]
    assert not core.has_work
