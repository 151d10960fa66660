"""Steps of a CUDA device that are not like others: guided by grammars, and out of memory."""

import random
from typing import Any

import pytest
import torch

from remuda.engine.backend import load_kernels
from remuda.engine.config import EngineConfig, ModelConfig
from remuda.engine.core import EngineCore
from remuda.engine.device_runner import DeviceRunner
from remuda.engine.grammar_compiler import GrammarCompiler
from remuda.engine.models.longhorn import Longhorn
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.start import build_core
from remuda.engine.step_memory import OUT_OF_MEMORY, settle
from remuda.engine.tokenizer import SpecialTokens
from tests.engine.test_device_runner import described, run_all
from tests.engine.test_guided_core import EOS, TOKENS, check_texts, guided, mixed_requests
from tests.engine.tiny import random_weights, tiny_config

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "time_step_rank": 4, "state_size": 16}
# So wide that the logits of a prompt do not fit into what small tensors leave of the allocator's blocks.
WIDE_VOCAB = 50_000
MIB = 2**20


def gpu_core(config: ModelConfig, *, depth: int = 1, eos: tuple[int, ...] = (), **limits: Any) -> EngineCore:
    """Deterministic, so that what comes one step late, in other company, is the same."""
    model = Longhorn(
        config, random_weights(config), load_kernels("gpu", deterministic=True),
        device=torch.device("cuda"), dtype=torch.float32, state_dtype=torch.float32,
    )  # fmt: skip
    defaults: dict[str, Any] = {"max_batch_tokens": 100, "prefill_chunk": 40, "seed": 0}
    engine_config = EngineConfig(**defaults | limits)
    grammars = GrammarCompiler(lambda: TOKENS)
    special = SpecialTokens(None, eos)
    return build_core(model, engine_config, special=special, depth=depth, grammars=grammars)


def guided_core(**options: Any) -> EngineCore:
    core = gpu_core(tiny_config(vocab_size=len(TOKENS), **SHAPE), eos=EOS, **options)
    assert isinstance(core.runner, DeviceRunner)
    assert core.runner.is_cuda
    return core


@pytest.mark.parametrize("num_slots", [5, 24])
def test_grammars_shape_texts_in_any_company(num_slots: int) -> None:
    requests = mixed_requests(1, 80)
    now, late = (run_all(guided_core(depth=depth, num_slots=num_slots), requests) for depth in (0, 1))
    assert described(now) == described(late)
    check_texts(
        {name: found for name, found in now.items() if not requests[int(name[0][1:])][1].stop_token_ids}, requests
    )


@pytest.mark.parametrize("more", [{}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.2}], ids=str)
def test_no_filter_lets_a_forbidden_token_through(more: dict[str, Any]) -> None:
    texts = ["hello", "[a-e]{2,5}", "(ab|cd)*[0-8]", ""]
    requests = [([i, 4], guided(text, max_tokens=30, **more)) for i, text in enumerate(texts * 6)]
    check_texts(run_all(guided_core(num_slots=8), requests), requests)


def test_a_mask_ends_with_its_request() -> None:
    """The next owner of a slot is as free as if it had been alone."""
    free = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    bound = guided("[0-8]{8}", temperature=0.0, max_tokens=20)
    core = guided_core(num_slots=1)
    outputs = described(run_all(core, [([5, 6], free), ([5, 6], bound), ([5, 6], free)]))
    assert outputs[("r0", 0)] == outputs[("r2", 0)] != outputs[("r1", 0)]


def take_memory() -> list[torch.Tensor]:
    """All that the device has left, but for crumbs."""
    taken, size = [], torch.cuda.mem_get_info()[0]
    while size >= MIB:
        try:
            taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2
    return taken


def step_on(core: EngineCore) -> None:
    while core.has_work:
        core.step()


def test_a_step_without_memory_fails_alone() -> None:
    """Whoever was in it is told; who waits comes to its own tokens, and so does who comes later."""
    core = gpu_core(tiny_config(vocab_size=WIDE_VOCAB, **SHAPE), num_slots=2)
    greedy = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
    plain = SamplingParams(**greedy)  # type: ignore[arg-type]
    scored = SamplingParams(**greedy, prompt_logprobs=0)  # type: ignore[arg-type]
    prompt = [random.Random(0).randrange(WIDE_VOCAB) for _ in range(40)]
    alone = described(run_all(core, [(prompt, plain)]))[("r0", 0)]

    core.add("decodes", prompt, plain)
    core.step()
    core.step()
    settle()
    taken = take_memory()
    core.add("scored", prompt, scored)
    core.add("waits", prompt, plain)
    with pytest.raises(OUT_OF_MEMORY):
        step_on(core)
    settle()
    failures = core.step()
    assert {(o.request_id, o.finish_reason) for o in failures} == {("decodes", "error"), ("scored", "error")}
    assert (core.num_running, core.num_waiting) == (0, 1)
    del taken
    outputs = run_all(core, [(prompt, scored), (prompt, plain)])
    found = described(outputs)
    assert found[("waits", 0)] == found[("r1", 0)] == alone
    (first, *_) = outputs[("r0", 0)]
    assert first.prompt_logprobs is not None
    assert len(first.prompt_logprobs) == len(prompt)
