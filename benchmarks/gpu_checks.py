"""What must be equal, apart from speed: greedy text of the demo model, bf16 logits, kernels in float32."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from gpu_kernels import Bench, scan_errors, scan_launch
from gpu_lab import Case, Lab, Row, WrongResult, relative_error, require
from gpu_oracle import generate
from gpu_shapes import Options, Prompts, make_core, make_model, model_config, random_prompts

from remuda.engine.backend import load_kernels
from remuda.engine.checkpoint.find import find_checkpoint
from remuda.engine.checkpoint.read import read_model_config, read_weights
from remuda.engine.core import EngineCore
from remuda.engine.models.longhorn import Longhorn
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.tokenizer import load_tokenizer

_TEXTS: Final = (
    "Once upon a time",
    "The little dog was sad because",
    "One day, Lily and Tom went to the park.",
    "Tim had a big red ball. He",
)
_MAX_LOGIT_ERROR: Final = 2e-2


@dataclass(frozen=True)
class Demo:
    """The demo checkpoint on one backend."""

    model: Longhorn
    prompts: list[list[int]]

    def texts(self, num_tokens: int, **options: Any) -> list[list[int]]:
        """Greedy continuations of all prompts, batched, as token ids."""
        core = make_core(self.model, len(self.prompts), prefill_chunk=5, max_batch_tokens=64, **options)
        return generate(
            core, self.prompts, SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        )

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """After every token of a sequence, (T, V) on the CPU: what the runner asks the model for."""
        found: list[torch.Tensor] = []
        plain = self.model.logits

        def recorded(hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
            logits = plain(hidden, out)
            found.append(logits.cpu())
            return logits

        self.model.logits = recorded  # type: ignore[method-assign]
        core = make_core(self.model, 1, prefill_chunk=4096, max_batch_tokens=8192)
        found.clear()
        generate(core, [tokens], SamplingParams(temperature=0.0, max_tokens=0, prompt_logprobs=0))
        self.model.logits = plain  # type: ignore[method-assign]
        return torch.cat(found)[: len(tokens) - 1, : self.model.config.vocab_size]


def load_demo(backend: str, device: torch.device, dtype: torch.dtype) -> Demo:
    location = find_checkpoint("demo")
    config, tokenizer = read_model_config(location), load_tokenizer(location, None)
    weights, kernels = read_weights(location, config), load_kernels(backend)
    model = Longhorn(config, weights, kernels, device=device, dtype=dtype, state_dtype=torch.float32)
    return Demo(model, [tokenizer.encode(text, add_bos=tokenizer.add_bos) for text in _TEXTS])


def run(lab: Lab, options: Options) -> Iterator[Case]:
    """See the head of this file."""
    config = model_config(options.sizes.models[0], 1)
    prompts: Prompts
    for prompts in ((options.sizes.step_batches[0], 1), options.sizes.scans[0]):
        yield Case(f"scan {prompts[0]}×{prompts[1]}, all float32", partial(_scan_float32, lab, config, prompts))
    fast = "reference" if lab.is_dry else "gpu"
    demo = load_demo(fast, lab.device, torch.float32)
    cpu = _cpu_backend()
    num_tokens = options.sizes.demo_tokens
    yield Case(f"greedy text, GPU float32 = {cpu} backend", partial(_texts, demo, cpu, num_tokens))
    half = load_demo(fast, lab.device, torch.bfloat16)
    yield Case("logits, bfloat16 = float32", partial(_logits, demo, half, num_tokens))
    yield Case("deterministic: alone = in a batch", partial(_deterministic, lab, options))


def _scan_float32(lab: Lab, config: Any, prompts: Prompts) -> Row:
    bench = Bench(lab, config, prompts[0], 1, torch.float32, torch.float32)
    inputs = bench.inputs(prompts[0] * prompts[1])
    return scan_errors(bench, scan_launch(bench, [inputs], prompts, prompts[1] == 1), inputs, prompts)


def _cpu_backend() -> str:
    try:
        load_kernels("cpu")
    except ImportError:
        return "reference"
    return "cpu"


def _texts(demo: Demo, cpu: str, num_tokens: int) -> Row:
    found = demo.texts(num_tokens)
    wanted = load_demo(cpu, torch.device("cpu"), torch.float32).texts(num_tokens)
    pairs = [(f, w) for a, b in zip(found, wanted, strict=True) for f, w in zip(a, b, strict=True)]
    differing = sum(f != w for f, w in pairs)
    if differing:
        raise WrongResult(f"{differing} of {len(pairs)} tokens differ")
    return {"tokens": len(pairs)}


def _deterministic(lab: Lab, options: Options) -> Row:
    """Tokens and log-probabilities, to the bit: all prompts in small chunks, and each alone in one."""
    config = model_config(options.sizes.models[0], options.num_layers)
    model = make_model(lab, config, torch.float32, is_deterministic=True)
    lengths = (9, 5, 3) if lab.is_dry else (300, 17, 130, 64, 5)
    prompts = [random_prompts(config, 1, length, seed=length)[0] for length in lengths]
    cores = [
        make_core(model, len(prompts), prefill_chunk=chunk, max_batch_tokens=512, deterministic=True)
        for chunk in (7, 400)
    ]
    num_tokens = 3 if lab.is_dry else 32
    batched = _drawn(cores[0], prompts, num_tokens)
    alone = [_drawn(cores[1], [prompt], num_tokens)[0] for prompt in prompts]
    differing = sum(a != b for a, b in zip(batched, alone, strict=True))
    if differing:
        raise WrongResult(f"{differing} of {len(prompts)} sequences differ")
    return {"tokens": sum(len(drawn) for drawn in alone)}


def _drawn(core: EngineCore, prompts: list[list[int]], num_tokens: int) -> list[list[tuple[int, float]]]:
    """(token, log-probability) of every prompt's continuation."""
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, logprobs=0)
    drawn: list[list[tuple[int, float]]] = [[] for _ in prompts]
    for name, ids in enumerate(prompts):
        core.add(str(name), ids, params)
    while core.has_work:
        for output in core.step():
            drawn[int(output.request_id)] += [(e.token, e.logprob) for e in output.logprobs or []]
    return drawn


def _logits(demo: Demo, half: Demo, num_tokens: int) -> Row:
    tokens = [prompt + text for prompt, text in zip(demo.prompts, demo.texts(num_tokens), strict=True)]
    wanted, found = (torch.cat([d.logits(ids) for ids in tokens]) for d in (demo, half))
    assert len(wanted) == sum(len(ids) - 1 for ids in tokens)
    return {"tokens": len(wanted), "error": require("logits", relative_error(found, wanted), _MAX_LOGIT_ERROR)}
