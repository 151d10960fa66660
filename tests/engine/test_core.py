"""The engine's life: every request ends, every slot comes back, and neighbours change nothing.

Every test runs with results in the same step, and with a step under way, as on a GPU.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from remuda.engine.core import EngineCore
from remuda.engine.errors import InvalidRequestError, QueueFullError
from remuda.engine.runner import PendingStep, StepResult
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.scheduler import Plan
from remuda.engine.wire import SequenceOutput
from tests.engine import tiny
from tests.engine.tiny import BACKENDS

_DEPTH = [0]


@pytest.fixture(params=[0, 1], autouse=True, ids=["same step", "one step late"])
def depth(request: pytest.FixtureRequest) -> Iterator[int]:
    _DEPTH[0] = request.param
    yield request.param
    _DEPTH[0] = 0


def make_core(backend: str = "cpu", **options: Any) -> EngineCore:
    return tiny.make_core(backend, depth=_DEPTH[0], **options)


def greedy(**changes: object) -> SamplingParams:
    return SamplingParams(**({"temperature": 0.0, "max_tokens": 6} | changes))  # type: ignore[arg-type]


def finish(core: EngineCore) -> dict[tuple[str, int], list[SequenceOutput]]:
    gathered: dict[tuple[str, int], list[SequenceOutput]] = {}
    while core.has_work:
        for output in core.step():
            gathered.setdefault((output.request_id, output.index), []).append(output)
    return gathered


def tokens_of(outputs: list[SequenceOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def alone(core: EngineCore, prompt: list[int], params: SamplingParams) -> list[int]:
    core.add("alone", prompt, params)
    return tokens_of(finish(core)[("alone", 0)])


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_the_first_output_says_how_long_the_request_waited(max_tokens: int) -> None:
    core = make_core(num_slots=1)
    core.add("first", [1, 2], greedy(max_tokens=4))
    core.step()
    core.add("second", [1, 2], greedy(max_tokens=max_tokens))
    waited_from = time.monotonic()
    gathered = finish(core)
    waited = time.monotonic() - waited_from
    for name, outputs in gathered.items():
        assert all(output.queued_s is None for output in outputs[1:]), name
    second = gathered["second", 0][0].queued_s
    assert second is not None
    assert 0 < second < waited + 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_continuous_batching_gives_each_request_its_own_tokens(backend: str) -> None:
    core = make_core(backend, num_slots=3, max_batch_tokens=8, prefill_chunk=4)
    prompts = {f"r{i}": [(i * 5 + j) % 37 for j in range(1 + 3 * i % 11)] for i in range(6)}
    expected = {name: alone(core, prompt, greedy()) for name, prompt in prompts.items()}
    for name, prompt in prompts.items():
        core.add(name, prompt, greedy())
    outputs = finish(core)
    assert {name: tokens_of(outputs[(name, 0)]) for name in prompts} == expected
    assert core.num_free_slots == 3


def test_a_seeded_request_repeats_itself_in_any_company() -> None:
    params = SamplingParams(seed=11, max_tokens=8, n=2)
    core = make_core(num_slots=4)
    core.add("a", [1, 2], params)
    first = finish(core)
    core.add("noise", [3], SamplingParams(max_tokens=20))
    core.step()
    core.add("a", [1, 2], params)
    second = finish(core)
    for index in (0, 1):
        assert tokens_of(first[("a", index)]) == tokens_of(second[("a", index)])
    assert tokens_of(first[("a", 0)]) != tokens_of(first[("a", 1)])


def test_the_engine_seed_decides_where_the_request_names_none() -> None:
    params = SamplingParams(max_tokens=8)
    assert alone(make_core(seed=1), [1], params) == alone(make_core(seed=1), [1], params)
    assert alone(make_core(seed=1), [1], params) != alone(make_core(seed=2), [1], params)
    core = make_core(seed=1)
    assert alone(core, [1], params) != alone(core, [1], params)


def test_n_greedy_choices_are_equal_and_read_the_prompt_once(depth: int) -> None:
    core = make_core()
    core.add("a", [4, 5, 6], greedy(n=3))
    steps = 0
    outputs: dict[int, list[int]] = {}
    while core.has_work:
        steps += 1
        for output in core.step():
            outputs.setdefault(output.index, []).extend(output.token_ids)
    assert outputs[0] == outputs[1] == outputs[2] == alone(core, [4, 5, 6], greedy())
    assert steps == 6 + depth


def test_the_prompt_is_forgotten_once_it_is_read() -> None:
    core = make_core()
    core.add("a", [1, 2, 3, 4], greedy())
    core.step()
    one = core._scheduler.get("a")
    assert one is not None
    assert (len(one.prompt), one.num_prompt_tokens) == (0, 4)


def test_finish_reasons() -> None:
    core = make_core()
    tokens = alone(core, [4, 5, 6], greedy())
    third = tokens[2]
    assert third not in tokens[:2]
    for params, eos in [(greedy(stop_token_ids=(third,)), ()), (greedy(), (third,))]:
        other = make_core(eos=eos)
        other.add("a", [4, 5, 6], params)
        outputs = finish(other)[("a", 0)]
        assert tokens_of(outputs) == tokens[:3]
        assert (outputs[-1].finish_reason, outputs[-1].stop_token) == ("stop", third)
    ignoring = make_core(eos=(third,))
    ignoring.add("a", [4, 5, 6], greedy(ignore_eos=True))
    outputs = finish(ignoring)[("a", 0)]
    assert tokens_of(outputs) == tokens
    assert (outputs[-1].finish_reason, outputs[-1].stop_token) == ("length", None)


def test_max_tokens_zero_reads_the_prompt_and_ends() -> None:
    core = make_core(prefill_chunk=2)
    core.add("a", [4, 5, 6, 7, 8], greedy(max_tokens=0, prompt_logprobs=2, n=2))
    outputs = finish(core)
    for index in (0, 1):
        (only,) = outputs[("a", index)]
        assert (only.token_ids, only.finish_reason) == ([], "length")
    logprobs = outputs[("a", 0)][0].prompt_logprobs
    assert logprobs is not None
    assert logprobs[0] is None
    assert [entry.token for entry in logprobs[1:] if entry] == [5, 6, 7, 8]
    assert outputs[("a", 1)][0].prompt_logprobs is None
    assert core.num_free_slots == 4


def test_prompt_logprobs_do_not_depend_on_the_chunks_and_continue_in_the_output() -> None:
    prompt = [4, 5, 6, 7, 8, 9, 10]
    found = []
    for chunk in (1, 3, 16):
        core = make_core(prefill_chunk=chunk)
        core.add("a", prompt, greedy(prompt_logprobs=0, logprobs=0, max_tokens=2))
        outputs = finish(core)[("a", 0)]
        assert outputs[0].prompt_logprobs is not None
        assert all(output.prompt_logprobs is None for output in outputs[1:])
        found.append([e.logprob for e in outputs[0].prompt_logprobs[1:] if e])
    assert found[0] == pytest.approx(found[2], rel=1e-5)
    assert found[1] == pytest.approx(found[2], rel=1e-5)
    core = make_core()
    generated = alone(core, prompt, greedy(max_tokens=3))
    core.add("b", prompt + generated, greedy(max_tokens=0, prompt_logprobs=0))
    replay = finish(core)[("b", 0)][0].prompt_logprobs
    core.add("c", prompt, greedy(max_tokens=3, logprobs=0))
    sampled = [e.logprob for o in finish(core)[("c", 0)] for e in o.logprobs or []]
    assert replay is not None
    assert [e.logprob for e in replay[-3:] if e] == pytest.approx(sampled, rel=1e-4)


def test_bad_requests_are_refused_and_leave_nothing() -> None:
    core = make_core(num_slots=2, max_queue=1)
    cases: list[tuple[list[int], SamplingParams, str]] = [
        ([], greedy(), "no tokens"),
        ([37], greedy(), r"37 is outside the vocabulary \[0, 37\)"),
        ([1, -1], greedy(), "-1 is outside"),
        ([2**40], greedy(), "outside the vocabulary"),
        ([1], greedy(n=3), "3, but this server has 2"),
        ([1], greedy(logit_bias={38: 1.0}), "38 is outside"),
        ([1], greedy(stop_token_ids=(99,)), "99 is outside"),
    ]
    for prompt, params, message in cases:
        with pytest.raises(InvalidRequestError, match=message):
            core.add("a", prompt, params)
    core.add("a", [1], greedy())
    with pytest.raises(InvalidRequestError, match="in use"):
        core.add("a", [1], greedy())
    core.add("b", [1], greedy())
    core.add("c", [1], greedy())
    with pytest.raises(QueueFullError):
        core.add("d", [1], greedy())
    assert len(tokens_of(finish(core)[("a", 0)])) == 6
    assert core.num_free_slots == 2


def test_one_sequence_with_a_bad_state_ends_alone() -> None:
    core = make_core(num_slots=2)
    expected = alone(core, [3, 4], greedy(max_tokens=10))
    core.add("good", [3, 4], greedy(max_tokens=10))
    core.add("bad", [5], greedy(max_tokens=10))
    first = core.step()
    victim = core._scheduler.get("bad")
    assert victim is not None
    core._pool.layers[0]["h"][victim.sequences[0].slot].fill_(torch.nan)
    rest = finish(core)
    assert rest[("bad", 0)][-1].finish_reason == "error"
    assert "not finite" in (rest[("bad", 0)][-1].error or "")
    assert tokens_of([o for o in first if o.request_id == "good"] + rest[("good", 0)]) == expected
    # Its slot is used again, and nothing of the NaN is left.
    for name in ("x", "y"):
        core.add(name, [3, 4], greedy(max_tokens=10))
    again = finish(core)
    assert tokens_of(again[("x", 0)]) == tokens_of(again[("y", 0)]) == expected


@pytest.mark.parametrize("max_tokens", [0, 3])
def test_a_prompt_whose_logits_go_bad_is_an_error_and_not_a_score(max_tokens: int) -> None:
    core = make_core(prefill_chunk=2)
    core.add("a", [1, 2, 3, 4], greedy(max_tokens=max_tokens, prompt_logprobs=0))
    core.step()
    victim = core._scheduler.get("a")
    assert victim is not None
    core._pool.layers[0]["h"][victim.sequences[0].slot].fill_(torch.nan)
    (last,) = finish(core)[("a", 0)]
    assert (last.finish_reason, last.prompt_logprobs) == ("error", None)
    assert core.num_free_slots == 4


def phase_of(core: EngineCore, name: str) -> str:
    request = core._scheduler.get(name)
    assert request is not None
    if request.sequences[0].slot is None and request.num_computed == 0:
        return "queue"
    return "prefill" if request.is_prefilling else "decode"


def test_a_thousand_requests_of_which_a_third_is_aborted() -> None:
    rng = random.Random(0)
    core = make_core(num_slots=16, max_batch_tokens=40, prefill_chunk=8)
    names = [f"r{i}" for i in range(1000)]
    prompts = {name: [rng.randrange(37) for _ in range(rng.choice((1, 3, 15, 16, 17, 40)))] for name in names}
    params = {name: greedy(max_tokens=rng.choice((0, 1, 5, 12)), n=rng.choice((1, 1, 1, 2))) for name in names}
    doomed = set(rng.sample(names, 300))
    # These live long enough for their moment to come, after so many steps; of some only one choice is ended.
    params |= {name: greedy(max_tokens=60, n=rng.choice((1, 2))) for name in doomed}
    steps_left = {name: rng.choice((0, 1, 2, 4, 9, 20)) for name in doomed}
    only_index = {name: 1 for name in doomed if params[name].n == 2 and rng.random() < 0.5}
    phases: Counter[str] = Counter()
    gathered: dict[tuple[str, int], list[SequenceOutput]] = {}
    ended: set[tuple[str, int]] = set()
    waiting, live = list(names), set()
    while waiting or core.has_work:
        while waiting and core.num_waiting < 4:
            name = waiting.pop()
            core.add(name, prompts[name], params[name])
            live.add(name)
        for name in sorted(live & set(steps_left)):
            steps_left[name] -= 1
            if steps_left[name] < 0 and core.holds(name):
                phases[phase_of(core, name) + (" of one choice" if name in only_index else "")] += 1
                core.abort(name, only_index.get(name))
                ended |= {(name, i) for i in range(params[name].n) if only_index.get(name, i) == i}
                del steps_left[name]
        for output in core.step():
            assert (output.request_id, output.index) not in ended
            gathered.setdefault((output.request_id, output.index), []).append(output)
    assert core.num_free_slots == 16
    assert (core.num_waiting, core.num_running) == (0, 0)
    assert min(phases[phase] for phase in ("queue", "prefill", "decode")) >= 20
    assert phases["decode of one choice"] >= 10
    for name in names:
        for index in set(range(params[name].n)) - {i for n, i in ended if n == name}:
            outputs = gathered[(name, index)]
            assert outputs[-1].finish_reason == "length"
            assert len(tokens_of(outputs)) == params[name].max_tokens
    for name in sorted(set(names) - doomed):
        assert tokens_of(gathered[(name, 0)]) == alone(core, prompts[name], params[name])


def run_two(core: EngineCore, outputs: list[SequenceOutput] | None = None) -> None:
    """Two steps: what fails when it is read fails in the second where a step is under way."""
    for _ in range(2):
        new = core.step()
        if outputs is not None:
            outputs += new


class Unreadable:
    """A step whose results cannot be had."""

    def read(self) -> StepResult:
        raise MemoryError("no memory for this step")


@pytest.mark.parametrize("fails", ["launch", "read"])
def test_a_step_that_fails_ends_its_requests_and_nobody_else(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    core = make_core(has_table=True, num_slots=4, max_batch_tokens=8, prefill_chunk=4)
    core.add("a", [1, 2], greedy(max_tokens=20))
    core.add("b", [3] * 10, greedy())
    before = core.step() + core.step()
    core.add("waits", [4] * 3, greedy(n=4))
    launch = core.runner.launch

    def fail(plan: Plan) -> PendingStep:
        if fails == "launch":
            raise MemoryError("no memory for this step")
        launch(plan)
        return Unreadable()

    monkeypatch.setattr(core.runner, "launch", fail)
    with pytest.raises(MemoryError):
        run_two(core, before)
    monkeypatch.setattr(core.runner, "launch", launch)
    outputs = finish(core)
    expected = alone(make_core(), [1, 2], greedy(max_tokens=20))
    assert tokens_of(before) == expected[: len(tokens_of(before))]
    for name in ("a", "b"):
        (last,) = outputs[(name, 0)]
        assert (last.token_ids, last.finish_reason) == ([], "error")
        assert last.error == "a step of the engine failed"
    assert tokens_of(outputs[("waits", 3)]) == alone(make_core(), [4] * 3, greedy())
    assert core.num_free_slots == 4
    assert alone(core, [5, 6], greedy()) == alone(make_core(), [5, 6], greedy())


def test_a_failure_is_not_told_to_who_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    core = make_core(has_table=True)
    core.add("a", [1, 2], greedy(n=2))
    core.add("b", [1, 2], greedy())
    with monkeypatch.context() as patch:
        patch.setattr(core.runner, "launch", lambda plan: Unreadable())
        with pytest.raises(MemoryError):
            run_two(core)
    core.abort("a", 0)
    core.abort("b")
    assert [(o.request_id, o.index) for o in core.step()] == [("a", 1)]
    assert not core.has_work
