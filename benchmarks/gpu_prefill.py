"""Prefill of whole models, against the product ceiling for their linear layers, and one very long prompt."""

import statistics
import time
from collections.abc import Iterator
from functools import partial

import torch
from gpu_lab import Case, Lab, Row, WrongResult, relative_error, require
from gpu_oracle import Oracle, generate, run_to_end
from gpu_profile import longest_kernels, trace
from gpu_shapes import Options, Prompts, gemm_flops, make_core, make_model, model_config, random_prompts

from remuda.engine.config import ModelConfig
from remuda.engine.core import EngineCore
from remuda.engine.sampling_params import SamplingParams

_FIRST_TOKEN = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
_MAX_GROWTH = 0.03


def run(lab: Lab, options: Options) -> Iterator[Case]:
    """Whole prompts to their first token, from the first step on."""
    config = model_config(options.sizes.models[0], options.num_layers)
    oracle = Oracle(lab, config, "gpu")
    yield Case("float32 model = reference", partial(_check_oracle, lab, oracle, config))
    model = make_model(lab, config, torch.float32, is_deterministic=options.is_deterministic)
    for chunk in options.prefill_chunks:
        num_slots = max(num_seqs for num_seqs, _ in options.sizes.prefills)
        core = make_core(model, num_slots, **options.core_options(chunk))
        for num_seqs, length in options.sizes.prefills:
            name = f"{num_seqs}×{length}, chunks of {core.info.prefill_chunk}, budget {core.info.max_batch_tokens}"
            measure = partial(_prefill, lab, options, name, core, oracle, config, (num_seqs, length))
            yield Case(name, measure)


def run_million(lab: Lab, options: Options) -> Iterator[Case]:
    """A prompt of a million tokens: does its end cost what its start costs, in time and in memory?"""
    config = model_config(options.sizes.models[0], options.num_layers)
    model = make_model(lab, config, torch.float32, is_deterministic=options.is_deterministic)
    for chunk in options.prefill_chunks:
        if lab.is_dry:
            chunk = 10
        core = make_core(model, 1, **options.core_options(chunk))
        name = f"{options.sizes.million:,} tokens, chunks of {core.info.prefill_chunk}"
        yield Case(name, partial(_million, lab, core, config, options.sizes.million))


def _check_oracle(lab: Lab, oracle: Oracle, config: ModelConfig) -> Row:
    """The float32 model is what prompts are held to, so it is first held to the reference itself."""
    reference = Oracle(lab, config, "reference")
    (prompt,) = random_prompts(config, 1, 24)
    found, wanted = (o.prompt_logprobs(prompt) for o in (oracle, reference))
    return {"error": require("log-probabilities", relative_error(found, wanted), 1e-5)}


def _prefill(
    lab: Lab,
    options: Options,
    name: str,
    core: EngineCore,
    oracle: Oracle,
    config: ModelConfig,
    prompts: Prompts,
) -> Row | list[Row]:
    num_seqs, length = prompts
    ids = random_prompts(config, num_seqs, length)
    tokens = generate(core, ids, _FIRST_TOKEN)
    watched = sorted({0, num_seqs // 2, num_seqs - 1})
    gap = oracle.check((ids[i], tokens[i][0]) for i in watched)
    if options.is_profiling:
        return longest_kernels(name, trace(lab, lambda: generate(core, ids, _FIRST_TOKEN)), 1)
    rounds = max(2, lab.rounds // 3) if num_seqs * length < 100_000 else 2
    wall = statistics.median(_seconds(lab, core, ids) for _ in range(rounds))
    rate = num_seqs * length / wall
    flops = rate * gemm_flops(config)
    return {
        "ms": wall * 1e3,
        "tokens/s": rate,
        "TFLOP/s": flops / 1e12,
        "% of product": 100 * flops / lab.ceilings.gemm,
        "gap": gap,
    }


def _seconds(lab: Lab, core: EngineCore, ids: list[list[int]]) -> float:
    """From the first step to the last prompt's first token; the queueing of Python integers is not in it."""
    for name, prompt in enumerate(ids):
        core.add(str(name), prompt, _FIRST_TOKEN)
    lab.sync()
    began = time.perf_counter()
    run_to_end(core, len(ids))
    return time.perf_counter() - began


def _million(lab: Lab, core: EngineCore, config: ModelConfig, length: int) -> Row:
    """Raises WrongResult where memory grows by a byte after the first tenth, or the last tenth is slower."""
    (prompt,) = random_prompts(config, 1, length)
    chunk = core.info.prefill_chunk
    generate(core, [prompt[: min(length, 8 * chunk + 1)]], _FIRST_TOKEN)
    # What earlier cases left is not to be freed in the middle.
    lab.release()
    core.add("0", prompt, _FIRST_TOKEN)
    seconds, held = [], []
    while core.has_work:
        lab.sync()
        began = time.perf_counter()
        outputs = core.step()
        lab.sync()
        seconds.append(time.perf_counter() - began)
        held.append(0 if lab.is_dry else torch.cuda.memory_allocated())
        if any(output.error for output in outputs):
            raise WrongResult("the logits after the prompt are not finite")
    num_full = length // chunk
    tenth = max(1, num_full // 10)
    first, last = (
        statistics.fmean(part) / chunk for part in (seconds[:tenth], seconds[num_full - tenth : num_full])
    )
    grown = max(held[tenth:num_full]) - min(held[tenth:num_full])
    if not lab.is_dry:
        require("bytes of growth:", grown, 0)
        require("the last tenth is slower by", last / first - 1, _MAX_GROWTH)
    return {
        "µs/token, first 10 %": first * 1e6,
        "last 10 %": last * 1e6,
        "grows by %": 100 * (last / first - 1),
        "tokens/s": length / sum(seconds),
        "memory GB": held[num_full - 1] / 1e9,
        "grows by bytes": grown,
    }
