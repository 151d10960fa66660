"""Pooled hidden states: what the model gives for the whole prompt, however it is split, alone or in a batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from remuda.engine import Engine
from remuda.engine.core import EngineCore
from remuda.engine.errors import InvalidRequestError
from remuda.engine.models.base import ForwardBatch, Slots
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.wire import SequenceOutput
from tests.engine.tiny import BACKENDS, make_core, make_model

PROMPTS = [[5], [1, 2], [(i * 5 + 3) % 37 for i in range(11)], [(i * 7) % 37 for i in range(17)]]


def pooled(pooling: str) -> SamplingParams:
    return SamplingParams(pooling=pooling, max_tokens=0)  # type: ignore[arg-type]


def run(core: EngineCore) -> dict[str, list[SequenceOutput]]:
    found: dict[str, list[SequenceOutput]] = {}
    while core.has_work:
        for output in core.step():
            found.setdefault(output.request_id, []).append(output)
    assert core.num_free_slots == core.info.num_slots
    return found


def vector_of(outputs: list[SequenceOutput]) -> np.ndarray:
    (only,) = outputs
    assert (only.token_ids, only.finish_reason) == ([], "length")
    assert only.embedding is not None
    return np.frombuffer(only.embedding, dtype="<f4")


def hidden_states(backend: str, prompt: list[int]) -> torch.Tensor:
    """(T, hidden_size), by one forward over the whole prompt."""
    model = make_model(backend)
    core = make_core(model=model)
    none = torch.zeros(0, dtype=torch.int32)
    slot = torch.zeros(1, dtype=torch.int32)
    batch = ForwardBatch(
        token_ids=torch.tensor(prompt),
        num_decode=0,
        decode=Slots(none, none, none.bool()),
        prefill=Slots(slot, slot, torch.ones(1, dtype=torch.bool)),
        cu_seqlens=torch.tensor([0, len(prompt)], dtype=torch.int32),
        output_rows=None,
    )
    with torch.inference_mode():
        return model.forward(batch, core._pool.layers)


def expected(backend: str, prompt: list[int], pooling: str) -> np.ndarray:
    hidden = hidden_states(backend, prompt)
    vector = hidden[-1] if pooling == "last" else hidden.mean(0)
    return vector.numpy()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize(
    "options",
    [{}, {"prefill_chunk": 1}, {"prefill_chunk": 3}, {"has_table": True}, {"depth": 1, "prefill_chunk": 3}],
    ids=str,
)
def test_the_vector_is_the_model_s_hidden_state(backend: str, pooling: str, options: dict[str, Any]) -> None:
    core = make_core(backend, max_batch_tokens=24, **options)
    for prompt in PROMPTS:
        core.add("alone", prompt, pooled(pooling))
        vector = vector_of(run(core)["alone"])
        assert vector == pytest.approx(expected("reference", prompt, pooling), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_company_changes_nothing(backend: str, depth: int) -> None:
    options = {"num_slots": 3, "max_batch_tokens": 12, "prefill_chunk": 4, "depth": depth}
    core = make_core(backend, **options)
    core.add("tokens", [3, 4], SamplingParams(temperature=0.0, max_tokens=9))
    tokens = run(core)["tokens"]
    core.add("tokens", [3, 4], SamplingParams(temperature=0.0, max_tokens=9))
    for i, prompt in enumerate(PROMPTS):
        for pooling in ("last", "mean"):
            core.add(f"{i} {pooling}", prompt, pooled(pooling))
    found = run(core)
    assert [o.token_ids for o in found["tokens"]] == [o.token_ids for o in tokens]
    for i, prompt in enumerate(PROMPTS):
        for pooling in ("last", "mean"):
            vector = vector_of(found[f"{i} {pooling}"])
            assert vector == pytest.approx(expected("reference", prompt, pooling), rel=1e-3, abs=1e-4)


def test_an_aborted_prompt_leaves_nothing() -> None:
    core = make_core(prefill_chunk=2)
    core.add("a", PROMPTS[2], pooled("mean"))
    core.step()
    core.abort("a")
    assert run(core) == {}
    core.add("b", PROMPTS[2], pooled("mean"))
    assert vector_of(run(core)["b"]) == pytest.approx(expected("cpu", PROMPTS[2], "mean"), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_bad_state_is_an_error_and_not_a_vector(depth: int, pooling: str) -> None:
    core = make_core(prefill_chunk=2, depth=depth)
    core.add("a", [1, 2, 3, 4, 5], pooled(pooling))
    core.step()
    victim = core._scheduler.get("a")
    assert victim is not None
    core._pool.layers[0]["h"][victim.sequences[0].slot].fill_(torch.nan)
    (last,) = run(core)["a"]
    assert (last.finish_reason, last.embedding) == ("error", None)


def test_the_offline_engine_gives_the_vector() -> None:
    engine = Engine(str(Path(__file__).parents[1] / "data" / "longhorn-tiny"), backend="cpu", num_slots=2)
    last, mean, plain = (
        engine.generate([[1, 2, 3]], params)[0]
        for params in (pooled("last"), pooled("mean"), SamplingParams(max_tokens=0))
    )
    assert last.embedding is not None
    assert mean.embedding is not None
    assert len(last.embedding) == len(mean.embedding)
    assert last.embedding != mean.embedding
    assert plain.embedding is None
    assert engine.generate([[1, 2, 3]], pooled("last"))[0].embedding == pytest.approx(last.embedding)


@pytest.mark.parametrize(
    "changes", [{"pooling": "max"}, {"max_tokens": 1}, {"n": 2}, {"prompt_logprobs": 0}, {"pooling": 3}], ids=str
)
def test_what_does_not_go_with_pooling(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**({"pooling": "last", "max_tokens": 0} | changes))
    assert caught.value.param == "pooling"
