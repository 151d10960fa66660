"""Sampling on the device and results one step late, run on the CPU: the same as the host's, for every request."""

import gc
import random
from dataclasses import replace
from types import ModuleType
from typing import Any, cast

import pytest
import torch

from remuda.engine.core import EngineCore
from remuda.engine.device_runner import DeviceRunner
from remuda.engine.prompt_graphs import PromptShape, prompt_shapes
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.sequence import Request, Sequence
from remuda.engine.step_graphs import StepGraphs, decode_sizes, padded
from remuda.engine.transfer import upload
from remuda.engine.wire import SequenceOutput
from remuda.kernels.sample.table import SamplingTable
from tests.engine.tiny import CPU, make_core, make_model

Outputs = dict[tuple[str, int], list[SequenceOutput]]
EOS = (0, 1, 2)


def random_params(rng: random.Random) -> SamplingParams:
    """Anything but filters, whose draws differ between the samplers."""
    params: dict[str, Any] = {"max_tokens": rng.choice((1, 2, 5, 12)), "n": rng.choice((1, 1, 3))}
    params["temperature"] = rng.choice((0.0, 1.0))
    if rng.random() < 0.3:
        params |= {"repetition_penalty": 1.7, "presence_penalty": 0.5, "frequency_penalty": 0.25}
    if rng.random() < 0.3:
        params |= {"logit_bias": {3: 4.0, 5: -4.0}}
    if rng.random() < 0.3:
        params |= {"min_tokens": 1, "stop_token_ids": (rng.randrange(37), rng.randrange(37))}
    if rng.random() < 0.3:
        params |= {"logprobs": rng.randrange(3)}
    if rng.random() < 0.3:
        params |= {"prompt_logprobs": rng.randrange(3), "max_tokens": rng.choice((0, 3)), "min_tokens": 0}
    return SamplingParams(seed=rng.randrange(2**60), **params)


def run_all(core: EngineCore, requests: list[tuple[list[int], SamplingParams]]) -> Outputs:
    """Each request's outputs, all running together."""
    outputs: Outputs = {}
    waiting = [(f"r{i}", *request) for i, request in enumerate(requests)]
    while waiting or core.has_work:
        while waiting and core.num_waiting < 2:
            core.add(*waiting.pop(0))
        for output in core.step():
            outputs.setdefault((output.request_id, output.index), []).append(output)
    assert core.num_free_slots == core.info.num_slots
    return outputs


def described(outputs: Outputs) -> dict[tuple[str, int], object]:
    """All that a client gets; log-probabilities rounded, since the size of a GEMM rounds them."""

    def rounded(entries: list[Any] | None) -> object:
        return (
            None if entries is None else [None if e is None else (e.token, round(e.logprob, 3)) for e in entries]
        )

    return {
        name: [
            (o.token_ids, rounded(o.logprobs), rounded(o.prompt_logprobs), o.finish_reason, o.stop_token)
            for o in found
        ]
        for name, found in outputs.items()
    }


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_the_device_draws_what_the_host_draws(backend: str) -> None:
    rng = random.Random(1)
    lengths = (1, 2, 7, 20)
    count = 40 if backend == "cpu" else 8
    requests = [
        ([rng.randrange(37) for _ in range(rng.choice(lengths))], random_params(rng)) for _ in range(count)
    ]
    options = {"num_slots": 5, "max_batch_tokens": 12, "prefill_chunk": 6, "eos": EOS}
    expected = described(run_all(make_core(backend, has_table=False, **options), requests))
    for depth in (0, 1):
        core = make_core(backend, has_table=True, depth=depth, **options)
        assert isinstance(core.runner, DeviceRunner)
        assert described(run_all(core, requests)) == expected


def with_prompt_graphs(core: EngineCore) -> EngineCore:
    """The core with prompts read apart from decode rows, padded to a few shapes."""
    assert isinstance(core.runner, DeviceRunner)
    shapes = tuple(PromptShape(tokens, seqs) for tokens in (4, 8, 16) for seqs in (1, 3))
    core.runner = DeviceRunner(core.runner._model, core._pool, core.info.num_slots, shapes)
    return core


@pytest.mark.parametrize(("backend", "state_dtype"), [("cpu", "float32"), ("reference", "bfloat16")])
def test_prompts_read_apart_give_what_all_rows_together_give(backend: str, state_dtype: str) -> None:
    rng = random.Random(3)
    count = 60 if backend == "cpu" else 8
    requests = [
        ([rng.randrange(37) for _ in range(rng.choice((1, 2, 7, 20)))], random_params(rng)) for _ in range(count)
    ]
    found = []
    for change in (lambda core: core, with_prompt_graphs):
        model = make_model(backend, has_table=True, state_dtype=getattr(torch, state_dtype))
        core = make_core(model=model, depth=1, num_slots=5, max_batch_tokens=24, prefill_chunk=16, eos=EOS)
        found.append(described(run_all(change(core), requests)))
    assert found[0] == found[1]


def test_the_least_shape_that_holds_the_prompts_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    core = with_prompt_graphs(make_core(depth=1, num_slots=5, max_batch_tokens=40, prefill_chunk=32))
    assert isinstance(core.runner, DeviceRunner)
    ran: list[PromptShape] = []
    forward = core.runner.prompts.graphs._step
    monkeypatch.setattr(core.runner.prompts.graphs, "_step", lambda shape: (ran.append(shape), forward(shape)))
    one = SamplingParams(temperature=0.0, max_tokens=1)
    scored = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    prompts = ([3], [5], [2, 2], [16], [17], [1, 1, 1], [1, 1, 1, 1])
    for lengths in prompts:
        for name, length in enumerate(lengths):
            core.add(str(name), [1] * length, one)
        while core.has_work:
            core.step()
    run_all(core, [([1] * 3, scored)])
    assert ran == [(4, 1), (8, 1), (4, 3), (16, 1), (4, 3)]


def test_shapes_of_prompts() -> None:
    assert prompt_shapes(63, 9) == ()
    assert prompt_shapes(200, 9) == ((64, 1), (64, 8), (128, 1), (128, 8))
    assert prompt_shapes(10**6, 10**6)[-1] == (2048, 32)


def run_with_aborts(depth: int, requests: list[tuple[list[int], SamplingParams]], seed: int) -> Outputs:
    """Requests come, stop at ids of their own, and some are aborted after so many tokens."""
    rng = random.Random(seed)
    limits = {f"r{i}": rng.choice((1, 2, 3, 8, 99)) for i in range(len(requests))}
    core = make_core(depth=depth, has_table=True, num_slots=4, max_batch_tokens=9, prefill_chunk=4, eos=EOS)
    outputs: Outputs = {}
    aborted = set()
    waiting = [(f"r{i}", *request) for i, request in enumerate(requests)]
    while waiting or core.has_work:
        while waiting and core.num_waiting < 3:
            core.add(*waiting.pop(0))
        for output in core.step():
            key = (output.request_id, output.index)
            assert key not in aborted
            outputs.setdefault(key, []).append(output)
            assert [o.finish_reason for o in outputs[key][:-1]] == [None] * (len(outputs[key]) - 1)
            if len(outputs[key]) == limits[output.request_id]:
                core.abort(*key)
                aborted.add(key)
    assert (core.num_free_slots, core.num_running, core.num_waiting) == (4, 0, 0)
    return outputs


@pytest.mark.parametrize("seed", range(3))
def test_no_wrong_token_is_sent_one_step_late(seed: int) -> None:
    rng = random.Random(seed)
    requests = []
    for _ in range(60):
        params = SamplingParams(
            seed=rng.randrange(2**60),
            max_tokens=rng.choice((1, 3, 9, 30)),
            n=rng.choice((1, 1, 2)),
            stop_token_ids=(rng.randrange(37),),
            top_k=rng.choice((0, 5)),
            repetition_penalty=rng.choice((1.0, 1.3)),
        )
        requests.append(([rng.randrange(37) for _ in range(rng.choice((1, 2, 5, 11)))], params))
    now, late = (described(run_with_aborts(depth, requests, seed)) for depth in (0, 1))
    assert now == late


def test_a_reused_slot_does_not_hear_of_its_last_owner() -> None:
    core = make_core(depth=1, num_slots=1, eos=())
    penalised = SamplingParams(temperature=0.0, max_tokens=4, repetition_penalty=5.0, logit_bias={7: 50.0})
    plain = SamplingParams(temperature=0.0, max_tokens=4)
    requests = [([1, 2], plain), ([1, 2], penalised), ([1, 2], plain), ([1, 2], penalised)]
    outputs = described(run_all(core, requests))
    assert outputs[("r0", 0)] == outputs[("r2", 0)] != outputs[("r1", 0)] == outputs[("r3", 0)]


def test_a_stopped_sequence_may_ride_once_more_and_its_slot_is_free_at_once() -> None:
    tokens = [t for o in run_all(make_core(), [([4, 5, 6], greedy(8))])[("r0", 0)] for t in o.token_ids]
    stop = next(i for i in range(1, 8) if tokens[i] not in tokens[:i])
    core = make_core(depth=1, num_slots=1)
    core.add("a", [4, 5, 6], SamplingParams(temperature=0.0, max_tokens=8, stop_token_ids=(tokens[stop],)))
    core.add("b", [4, 5, 6], greedy(8))
    found: dict[str, list[int]] = {"a": [], "b": []}
    while core.has_work:
        for output in core.step():
            found[output.request_id] += output.token_ids
    assert found == {"a": tokens[: stop + 1], "b": tokens}


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens)


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_state_is_rounded_by_the_request_s_seed_alone(state_dtype: torch.dtype) -> None:
    def tokens(seed: int, company: int) -> object:
        model = make_model("reference", has_table=True, state_dtype=state_dtype)
        core = make_core(model=model, depth=1, num_slots=4)
        params = SamplingParams(seed=seed, max_tokens=12, logprobs=0)
        found = run_all(
            core, [([5, 6, 7], params)] + [([i + 1], SamplingParams(max_tokens=9)) for i in range(company)]
        )
        return described(found)[("r0", 0)]

    assert tokens(1, 0) == tokens(1, 3) != tokens(2, 0)


def test_steps_are_padded_to_the_sizes_of_the_graphs() -> None:
    assert decode_sizes(1) == (1,)
    assert decode_sizes(5) == (1, 2, 4, 5)
    assert decode_sizes(1024)[-3:] == (768, 896, 1024)
    assert decode_sizes(1500)[-3:] == (1024, 1280, 1500)
    ran: list[int] = []
    sizes = decode_sizes(100)
    graphs = StepGraphs(ran.append, sizes)
    for num_rows in (1, 3, 64, 65, 97, 100):
        graphs.run(padded(sizes, num_rows))
    assert ran == [1, 4, 64, 96, 100, 100]


def test_many_arrays_arrive_by_one_copy() -> None:
    arrays = [torch.arange(5).numpy(), torch.zeros(0, dtype=torch.int32).numpy(), torch.ones(3, 2).bool().numpy()]
    first, second, third = upload(arrays, CPU)
    assert first.tolist() == [0, 1, 2, 3, 4]
    assert (second.shape, second.dtype) == ((0,), torch.int32)
    assert third.shape == (3, 2)
    assert third.all()


class QuickSampler:
    """Greedy, and notes nothing but the token."""

    @staticmethod
    def sample(
        logits: torch.Tensor, slots: torch.Tensor, table: SamplingTable, work: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, live = logits[:, : table.counts.shape[1]].argmax(1), slots >= 0
        table.last_token[slots[live].long()] = tokens[live]
        return tokens, torch.ones_like(tokens, dtype=torch.bool)

    @staticmethod
    def reset(table: SamplingTable, slots: torch.Tensor) -> None:
        table.counts[slots.long()] = 0

    @staticmethod
    def mark_prompt(table: SamplingTable, token_ids: torch.Tensor, row_slots: torch.Tensor) -> None:
        table.counts[row_slots.long().clamp(min=0), token_ids] = 1


def test_thousands_of_mixed_steps_leave_nothing() -> None:
    rng = random.Random(5)
    model = make_model()
    # The reference would take minutes; who is drawn does not matter here.
    model.backend = replace(model.backend, sample=cast(ModuleType, QuickSampler))
    core = make_core(model=model, depth=1, num_slots=8, max_batch_tokens=24, prefill_chunk=8, eos=EOS)
    num_steps = num_added = 0
    while num_steps < 3_000 or core.has_work:
        while num_steps < 3_000 and core.num_waiting < 2:
            prompt = [rng.randrange(37) for _ in range(rng.choice((1, 2, 9, 30)))]
            core.add(f"r{num_added}", prompt, random_params(rng))
            num_added += 1
        if rng.random() < 0.05:
            core.abort(f"r{num_added - rng.randrange(1, 12)}")
        core.step()
        num_steps += 1
    assert num_added > 1_000
    assert (core.num_free_slots, core.num_running, core.num_waiting) == (8, 0, 0)
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) in (Request, Sequence)]


def test_deterministic_requests_have_the_same_bits_in_any_company_and_chunks() -> None:
    params = SamplingParams(seed=3, max_tokens=4, logprobs=1, prompt_logprobs=1)
    company = [([i], SamplingParams(max_tokens=6)) for i in range(2)]
    found = []
    for chunk, others in ((9, []), (4, []), (9, company), (1, company)):
        model = make_model("gpu", deterministic=True)
        core = make_core(model=model, depth=1, num_slots=3, max_batch_tokens=20, prefill_chunk=chunk)
        outputs = run_all(core, [(list(range(9)), params), *others])[("r0", 0)]
        found.append([(o.token_ids, o.logprobs, o.prompt_logprobs) for o in outputs])
    assert all(other == found[0] for other in found[1:])


def test_every_sampling_kernel_is_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make_core("gpu", depth=1).runner
    assert isinstance(runner, DeviceRunner)
    kernels = runner._sampling._kernels
    seen = set()

    def watched(name: str) -> Any:
        original = getattr(kernels, name)

        def run(*args: Any) -> Any:
            seen.add(name)
            return original(*args)

        return run

    for name in ("sample", "reset", "mark_prompt"):
        monkeypatch.setattr(kernels, name, watched(name))
    runner.warm_up(1, 2)
    assert seen == {"sample", "reset", "mark_prompt"}
