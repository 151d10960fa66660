"""Grammars in the engine's loop: on the host and on the device, in any company, and where they fail."""

import random
import re
from typing import Any

import pytest

from remuda.engine.core import EngineCore
from remuda.engine.device_runner import DeviceRunner
from remuda.engine.errors import InvalidRequestError, QueueFullError
from remuda.engine.grammar import Grammar
from remuda.engine.grammar_compiler import GrammarCompiler
from remuda.engine.guide import Guide
from remuda.engine.sampling_params import SamplingParams
from tests.engine.test_device_runner import Outputs, described, random_params, run_all
from tests.engine.tiny import make_core

# The vocabulary of the tiny model: the ends, the letters, the digits.
TOKENS = [b"", b"", b"", *(bytes([b]) for b in range(ord("a"), ord("z"))), *(b"%d" % i for i in range(9))]
EOS = (0, 1, 2)
REGEXES = ["[a-e]{2,5}", "(ab|cd)*[0-8]", "x[0-8]+y?", "hello", "[a-y0-8]*"]


def core_of(backend: str = "cpu", **options: Any) -> EngineCore:
    return make_core(backend, eos=EOS, grammars=GrammarCompiler(lambda: TOKENS), **options)


def guided(regex: str, **params: Any) -> SamplingParams:
    return SamplingParams(grammar=Grammar("regex", regex), **params)


def text_of(outputs: list[Any]) -> str:
    ids = [t for o in outputs for t in (o.token_ids[:-1] if o.stop_token is not None else o.token_ids)]
    return b"".join(TOKENS[i] for i in ids).decode()


def check_texts(outputs: Outputs, requests: list[tuple[list[int], SamplingParams]]) -> None:
    """A complete text has the shape that was asked for, and a cut one is its beginning."""
    for (name, _), found in outputs.items():
        params = requests[int(name[1:])][1]
        assert found[-1].finish_reason in ("stop", "length"), found[-1].error
        if params.grammar is not None and found[-1].finish_reason == "stop":
            assert re.fullmatch(params.grammar.text, text_of(found))
        elif params.grammar is not None:
            assert sum(len(o.token_ids) for o in found) == params.max_tokens


def mixed_requests(seed: int, count: int) -> list[tuple[list[int], SamplingParams]]:
    rng = random.Random(seed)
    requests = []
    for _ in range(count):
        params = random_params(rng)
        if rng.random() < 0.6:
            fields = {name: getattr(params, name) for name in params.__struct_fields__}
            # A letter or a digit may end a text too.
            stop = rng.choice([(), (), (TOKENS.index(b"e"),)])
            params = SamplingParams(
                **fields | {"grammar": Grammar("regex", rng.choice(REGEXES)), "stop_token_ids": stop}
            )
        requests.append(([rng.randrange(37) for _ in range(rng.choice((1, 2, 7, 20)))], params))
    return requests


@pytest.mark.parametrize(("backend", "count"), [("cpu", 60), ("gpu", 4)])
def test_the_device_draws_what_the_host_draws(backend: str, count: int) -> None:
    requests = mixed_requests(1, count)
    options = {"num_slots": 5, "max_batch_tokens": 12, "prefill_chunk": 6}
    expected = run_all(core_of(backend, has_table=False, **options), requests)
    check_texts(
        {name: o for name, o in expected.items() if not requests[int(name[0][1:])][1].stop_token_ids}, requests
    )
    for depth in (0, 1):
        core = core_of(backend, has_table=True, depth=depth, **options)
        assert isinstance(core.runner, DeviceRunner)
        assert described(run_all(core, requests)) == described(expected)


@pytest.mark.parametrize("has_table", [False, True])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 2.0, "top_k": 30},
        {"top_p": 0.1},
        {"min_p": 0.9},
        {"top_k": 1},
        {"logit_bias": {0: 100.0, 5: 100.0}},
        {"logit_bias": dict.fromkeys(range(3, 37), -100.0)},
        {"repetition_penalty": 100.0, "presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"min_tokens": 20},
        {"ignore_eos": True},
        {"n": 3, "logprobs": 2},
        {"stop_token_ids": (0, 1)},
    ],
    ids=str,
)
def test_no_parameter_breaks_a_shape(has_table: bool, more: dict[str, Any]) -> None:
    requests = [
        ([i % 37, 4], guided(regex, **({"max_tokens": 30, "seed": i} | more)))
        for i, regex in enumerate([*REGEXES[:4], "", "(ab|a){3}[0-8]{2}"] * 2)
    ]
    outputs = run_all(core_of(has_table=has_table, num_slots=6), requests)
    check_texts(outputs, requests)
    ends = [
        found[-1] for (name, _), found in outputs.items() if requests[int(name[1:])][1].grammar.text == "hello"
    ]
    # A text that cannot go on needs no token to end it.
    assert {(o.finish_reason, o.stop_token) for o in ends} == {("stop", None)}


def test_an_empty_text_without_an_end_token_ends_at_once() -> None:
    outputs = run_all(core_of(), [([5], guided("", ignore_eos=True, max_tokens=9))])[("r0", 0)]
    assert [(o.token_ids, o.finish_reason) for o in outputs] == [([], "stop")]


@pytest.mark.parametrize("n", [1, 2])
def test_what_comes_once_comes_with_an_empty_text_too(n: int) -> None:
    requests = [([5, 6], guided("", ignore_eos=True, prompt_logprobs=0, n=n, max_tokens=9))]
    outputs = run_all(core_of(), requests)
    (first,) = outputs[("r0", 0)]
    assert first.prompt_logprobs is not None
    assert [entry is None for entry in first.prompt_logprobs] == [True, False]
    assert first.queued_s is not None


def test_logprobs_are_those_of_the_model_alone() -> None:
    params = {"temperature": 0.0, "max_tokens": 1, "logprobs": 3}
    free, bound = (
        run_all(core_of(), [([5, 6, 7], p)])[("r0", 0)][0].logprobs[0]  # type: ignore[index]
        for p in (SamplingParams(**params), guided("[0-8]{3}", **params))
    )
    assert free.top == bound.top
    assert TOKENS[bound.token].isdigit()
    assert bound.logprob <= free.logprob


def test_only_steps_with_grammars_are_read_at_once() -> None:
    core = core_of(has_table=True, depth=1)
    core.add("free", [4, 5], SamplingParams(max_tokens=40, ignore_eos=True))
    core.step()
    core.step()
    assert len(core._under_way) == 1
    core.add("bound", [4, 5], guided("[a-e]{4}", max_tokens=40))
    tokens = {"free": 0, "bound": 0}
    while core.holds("bound"):
        for output in core.step():
            tokens[output.request_id] += len(output.token_ids)
        assert len(core._under_way) == 0
    assert tokens["bound"] == 4
    core.step()
    assert len(core._under_way) == 1
    while core.has_work:
        core.step()


@pytest.mark.parametrize("depth", [0, 1])
def test_a_grammar_that_fails_ends_its_own_request_alone(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [([4], guided(r"[a-e]{2,9}", max_tokens=9, seed=i)) for i in range(3)]
    options = {"has_table": bool(depth), "depth": depth}
    expected = described(run_all(core_of(**options), requests))
    accept, followed = Guide.accept, []

    def failing(self: Guide, token: int) -> None:
        if self not in followed:
            followed.append(self)
        # The second of the three that begin together.
        accept(self, token if self is not followed[min(1, len(followed) - 1)] or len(followed) < 2 else 36)

    monkeypatch.setattr(Guide, "accept", failing)
    outputs = run_all(core_of(**options), requests)
    (failed,) = [name for name, found in outputs.items() if found[-1].finish_reason == "error"]
    assert "grammar" in (outputs[failed][-1].error or "")
    assert outputs[failed][-1].is_grammar_error
    assert "<" not in (outputs[failed][-1].error or "")
    found = described(outputs)
    assert {name: o for name, o in found.items() if name != failed} == {
        name: o for name, o in expected.items() if name != failed
    }


def test_bad_grammars_leave_nothing_behind() -> None:
    core = core_of()
    with pytest.raises(InvalidRequestError, match="look-around") as caught:
        core.add("bad", [3], SamplingParams(grammar=Grammar("regex", "(?=a)", "response_format")))
    assert caught.value.param == "response_format"
    assert not core.has_work
    with pytest.raises(InvalidRequestError, match="serves no grammars"):
        make_core().add("none", [3], guided("a"))
    check_texts(run_all(core, [([3], guided("hello"))]), [([3], guided("hello"))])


def test_a_full_queue_refuses_before_it_keeps_anything() -> None:
    core = core_of(num_slots=1, max_queue=1)
    core.add("a", [3], guided("hello"))
    core.add("b", [3], guided("hello"))
    with pytest.raises(QueueFullError):
        core.add("c", [3], guided("hello"))


def test_a_wrong_type_is_refused() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(grammar="abc")  # type: ignore[arg-type]
    assert caught.value.param == "grammar"
