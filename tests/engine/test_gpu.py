"""The engine on a CUDA device: the CPU's texts, graphs, a step under way, memory, and nothing compiled late."""

import logging
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from remuda.engine import Engine, SamplingParams
from remuda.engine.backend import load_kernels
from remuda.engine.config import EngineConfig, ModelConfig
from remuda.engine.core import EngineCore
from remuda.engine.device_runner import DeviceRunner
from remuda.engine.errors import ConfigError
from remuda.engine.models.base import ForwardBatch, Slots
from remuda.engine.models.longhorn import Longhorn
from remuda.engine.start import build_core
from remuda.engine.tokenizer import SpecialTokens
from tests.engine.test_device_runner import Outputs, described, run_all
from tests.engine.tiny import make_core, make_model, random_weights, tiny_config

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

PROMPTS = ["Once upon a time", "The little dog", "Lily wanted to", "One day, a boy named Tom"]
VOCAB = 500
EOS = (0, 1, 2)

Requests = list[tuple[list[int], SamplingParams]]


def model_config() -> ModelConfig:
    return tiny_config(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        time_step_rank=4,
        state_size=16,
        num_hidden_layers=3,
    )


def make_gpu_core(
    *,
    dtype: torch.dtype = torch.float32,
    state_dtype: torch.dtype = torch.float32,
    deterministic: bool = False,
    depth: int | None = None,
    **options: Any,
) -> EngineCore:
    config = model_config()
    model = Longhorn(
        config,
        random_weights(config),
        load_kernels("gpu", deterministic=deterministic),
        device=torch.device("cuda"),
        dtype=dtype,
        state_dtype=state_dtype,
    )
    limits: dict[str, Any] = {"num_slots": 24, "max_batch_tokens": 100, "prefill_chunk": 40, "seed": 0} | options
    return build_core(model, EngineConfig(**limits), special=SpecialTokens(None, EOS), depth=depth)


def random_requests(rng: random.Random, count: int, **changes: object) -> Requests:
    requests = []
    for _ in range(count):
        params: dict[str, Any] = {
            "seed": rng.randrange(2**60),
            "max_tokens": rng.choice((0, 1, 2, 9, 30)),
            "n": rng.choice((1, 1, 1, 3)),
            "temperature": rng.choice((0.0, 1.0)),
            "top_k": rng.choice((0, 0, 20)),
            "top_p": rng.choice((1.0, 0.8)),
            "repetition_penalty": rng.choice((1.0, 1.3)),
            "logprobs": rng.choice((None, None, 3)),
            "prompt_logprobs": rng.choice((None, None, None, 0)),
            "stop_token_ids": tuple(rng.sample(range(VOCAB), rng.choice((0, 30)))),
        }
        prompt = [rng.randrange(VOCAB) for _ in range(rng.choice((1, 1, 2, 17, 63, 150)))]
        requests.append((prompt, SamplingParams(**(params | changes))))
    return requests


@pytest.fixture
def clean() -> Iterator[None]:
    """Nothing of another test's engine is cached on the device."""
    torch.cuda.empty_cache()
    yield
    torch.cuda.empty_cache()


def test_greedy_texts_are_those_of_the_cpu_backend() -> None:
    params = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
    expected = Engine("demo", device="cpu", backend="cpu", num_slots=4).generate(PROMPTS, params)
    engine = Engine("demo", device="cuda", dtype="float32", num_slots=4)
    assert isinstance(engine.core.runner, DeviceRunner)
    found = engine.generate(PROMPTS, params)
    assert [r.completions[0].token_ids for r in found] == [r.completions[0].token_ids for r in expected]
    assert not engine.core.has_work


@pytest.mark.parametrize("depth", [0, 1])
def test_pooled_hidden_states_are_those_of_the_reference(depth: int) -> None:
    prompts = [[(i * 7 + n) % VOCAB for i in range(n)] for n in (1, 2, 17, 150)]
    requests: Requests = [
        (prompt, SamplingParams(pooling=pooling, max_tokens=0))
        for prompt in prompts
        for pooling in ("last", "mean")
    ]
    model = make_model("reference", model_config())
    expected = run_all(make_core(model=model, num_slots=4, max_batch_tokens=200, prefill_chunk=150), requests)
    found = run_all(make_gpu_core(depth=depth), requests)
    for name, outputs in expected.items():
        vectors = [np.frombuffer(o.embedding or b"", dtype="<f4") for o in (*outputs, *found[name])]
        assert vectors[1] == pytest.approx(vectors[0], rel=1e-2, abs=1e-2)


def all_logits(engine: Engine, ids: list[int]) -> torch.Tensor:
    core = engine.core
    model, device = core.runner._model, torch.device("cuda")
    slots = torch.zeros(1, dtype=torch.int32, device=device)
    whole = Slots(slots, slots, torch.ones(1, dtype=torch.bool, device=device))
    none = Slots(*(t[:0] for t in whole))
    batch = ForwardBatch(
        token_ids=torch.tensor(ids, device=device),
        num_decode=0,
        decode=none,
        prefill=whole,
        cu_seqlens=torch.tensor([0, len(ids)], dtype=torch.int32, device=device),
        output_rows=None,
    )
    with torch.inference_mode():
        logits: torch.Tensor = model.logits(model.forward(batch, core._pool.layers))
    return logits[:, : core.info.vocab_size].double().cpu()


def test_bfloat16_logits_are_near_those_of_float32() -> None:
    engines = [Engine("demo", device="cuda", dtype=dtype, num_slots=2) for dtype in ("float32", "bfloat16")]
    ids = engines[0].tokenizer.encode(" ".join(PROMPTS) * 4, add_bos=True)
    exact, near = (all_logits(engine, ids) for engine in engines)
    assert (near - exact).norm() / exact.norm() < 2e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_graphs_give_what_plain_calls_give(dtype: torch.dtype) -> None:
    requests = random_requests(random.Random(0), 80)
    replayed, plain = make_gpu_core(dtype=dtype), make_gpu_core(dtype=dtype)
    for core in (replayed, plain):
        assert isinstance(core.runner, DeviceRunner)
    plain.runner.graphs.clear()
    plain.runner.prompts.graphs.clear()
    assert exact(run_all(replayed, requests)) == exact(run_all(plain, requests))


def exact(outputs: Outputs) -> object:
    """All that a client gets, to the last bit."""
    return {
        name: [(o.token_ids, o.logprobs, o.prompt_logprobs, o.finish_reason, o.stop_token) for o in found]
        for name, found in outputs.items()
    }


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_no_wrong_token_is_sent_one_step_late(state_dtype: torch.dtype) -> None:
    # Steps have other sizes one step late, so the bits of other products must not matter.
    requests = random_requests(random.Random(1), 120, logprobs=None, prompt_logprobs=None)
    options: dict[str, Any] = {"state_dtype": state_dtype, "deterministic": True}
    if state_dtype != torch.float32:
        # A 16-bit state is rounded where a prompt is cut, which is not to follow from who else is there.
        options["max_batch_tokens"] = 24 + 24 * 40
    now, late = (described(run_all(make_gpu_core(depth=depth, **options), requests)) for depth in (0, 1))
    assert now == late


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_requests_have_the_same_bits_in_any_company_and_chunks(dtype: torch.dtype) -> None:
    requests = random_requests(random.Random(2), 40, logprobs=2, max_tokens=20)
    found = [
        exact(
            run_all(make_gpu_core(dtype=dtype, deterministic=True, prefill_chunk=chunk, num_slots=slots), requests)
        )
        for chunk, slots in ((40, 24), (7, 24), (40, 3))
    ]
    assert found[0] == found[1] == found[2]


def test_penalties_and_bias_of_the_last_owner_of_a_slot_are_gone() -> None:
    core = make_gpu_core(num_slots=1)
    base = {"temperature": 0.0, "max_tokens": 6}
    plain = SamplingParams(**base)  # type: ignore[arg-type]
    other = SamplingParams(**base, repetition_penalty=5.0, logit_bias={7: 50.0})  # type: ignore[arg-type]
    outputs = described(run_all(core, [([5, 6], plain), ([5, 6], other), ([5, 6], plain), ([5, 6], other)]))
    assert outputs[("r0", 0)] == outputs[("r2", 0)] != outputs[("r1", 0)] == outputs[("r3", 0)]


def test_a_bad_state_ends_its_own_request() -> None:
    core = make_gpu_core(num_slots=2)
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    core.add("good", [3, 4], params)
    core.add("bad", [5], params)
    outputs: list[Any] = []
    for _ in range(3):
        outputs += core.step()
    victim = core._scheduler.get("bad")
    assert victim is not None
    core._pool.layers[0]["h"][victim.sequences[0].slot].fill_(torch.nan)
    while core.has_work:
        outputs += core.step()
    assert [o.finish_reason for o in outputs if o.request_id == "bad"][-1] == "error"
    assert sum(len(o.token_ids) for o in outputs if o.request_id == "good") == 40


def test_nothing_is_compiled_after_the_warm_up() -> None:
    """In a process of its own: kernels that other tests ran are not compiled again."""
    done = subprocess.run([sys.executable, "-m", __spec__.name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "served\n"
    assert "compiled after the warm-up" not in done.stderr


@pytest.mark.usefixtures("clean")
def test_memory_is_accounted_for() -> None:
    core = make_gpu_core(num_slots=None, max_batch_tokens=None, gpu_memory_utilization=0.5)
    use = core.info.memory
    assert use is not None
    assert use.limit == use.total // 2
    assert use.pool == core.info.num_slots * core.info.slot_bytes
    parts = (use.others, use.weights, use.workspace, use.table, use.pool, use.graphs)
    assert min(parts) > 0
    assert use.left >= 0
    with pytest.raises(ConfigError, match=r"slots of \d+ bytes need \d+ MiB, and \d+ MiB are left"):
        make_gpu_core(num_slots=use.total // core.info.slot_bytes, max_batch_tokens=None)


@pytest.mark.slow
@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_forty_thousand_mixed_steps_leave_nothing(dtype: torch.dtype) -> None:
    core = make_gpu_core(dtype=dtype)
    torch.cuda.synchronize()
    before = (torch.cuda.memory_allocated(), torch.cuda.memory_reserved())
    rng = random.Random(4)
    num_steps = num_added = 0
    live: list[str] = []
    while num_steps < 40_000 or core.has_work:
        while num_steps < 40_000 and core.num_waiting < 2:
            ((prompt, params),) = random_requests(rng, 1)
            core.add(f"r{num_added}", prompt, params)
            live.append(f"r{num_added}")
            num_added += 1
        if rng.random() < 0.02:
            core.abort(rng.choice(live[-30:]))
        core.step()
        num_steps += 1
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before
    assert (core.num_free_slots, core.num_running, core.num_waiting) == (24, 0, 0)


if __name__ == "__main__":
    logging.basicConfig()
    for each in (torch.float32, torch.bfloat16):
        run_all(make_gpu_core(dtype=each), random_requests(random.Random(3), 200))
    print("served")
