"""Holds the tokens of a timed model to the same weights in float32, and gathers the tokens of a core."""

from collections.abc import Iterable
from typing import Final

import torch
from gpu_lab import Lab, WrongResult, require
from gpu_shapes import make_core, make_model

from remuda.engine.config import ModelConfig
from remuda.engine.core import EngineCore
from remuda.engine.sampling_params import MAX_LOGPROBS, SamplingParams

# Nats by which a greedy token of a bf16 model may fall short of the likeliest. Of 50,000 random logits of
# deviation 1 about three are that close to the highest, so a wrong model does not pass.
MAX_GAP: Final = 0.25


class Oracle:
    """A float32 model of the given shape on `backend`: the reference for short prompts, the GPU's for long."""

    def __init__(self, lab: Lab, config: ModelConfig, backend: str) -> None:
        model = make_model(lab, config, torch.float32, dtype=torch.float32, backend=backend)
        self._core = make_core(model, 4, prefill_chunk=2048, max_batch_tokens=4096)

    def check(self, cases: Iterable[tuple[list[int], int]]) -> float:
        """The worst gap over (tokens so far, greedy next token). Raises WrongResult where it is too wide."""
        worst = 0.0
        waiting = dict(enumerate(cases))
        params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=MAX_LOGPROBS, ignore_eos=True)
        for name, (ids, _) in waiting.items():
            self._core.add(str(name), ids, params)
        while self._core.has_work:
            for output in self._core.step():
                top = dict(output.logprobs[0].top if output.logprobs else [(-1, 0.0)])
                _, token = waiting.pop(int(output.request_id))
                worst = max(worst, max(top.values()) - top.get(token, -torch.inf))
        assert not waiting
        return require("greedy tokens fall short by", worst, MAX_GAP)

    def prompt_logprobs(self, prompt: list[int]) -> torch.Tensor:
        """Log-probabilities of the prompt's tokens after the first, (T-1,)."""
        self._core.add("prompt", prompt, SamplingParams(temperature=0.0, max_tokens=0, prompt_logprobs=0))
        found: list[float] = []
        while self._core.has_work:
            for output in self._core.step():
                found += [entry.logprob for entry in output.prompt_logprobs or [] if entry]
        return torch.tensor(found)


def generate(core: EngineCore, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    """The tokens of every prompt, all run to their end."""
    for name, ids in enumerate(prompts):
        core.add(str(name), ids, params)
    return run_to_end(core, len(prompts))


def run_to_end(core: EngineCore, num_requests: int) -> list[list[int]]:
    """Step until nothing is left, for requests named by their numbers. Raises WrongResult for an unhealthy one."""
    tokens: list[list[int]] = [[] for _ in range(num_requests)]
    errors = []
    while core.has_work:
        for output in core.step():
            errors += [output.error] if output.error else []
            tokens[int(output.request_id)] += output.token_ids
    if errors:
        raise WrongResult(errors[0])
    return tokens
