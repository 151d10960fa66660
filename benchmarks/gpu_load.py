"""The engine end to end: many requests through a fixed number of slots, and the host's share of its steps."""

import itertools
import time
from collections.abc import Iterator
from functools import partial

from gpu_decode import begin_batch, end_batch, step_times
from gpu_lab import Case, Lab, Row, WrongResult
from gpu_oracle import Oracle, generate
from gpu_shapes import Options, make_core, make_model, model_config, random_prompts

from remuda.engine.config import ModelConfig
from remuda.engine.core import EngineCore
from remuda.engine.sampling_params import SamplingParams


def run(lab: Lab, options: Options) -> Iterator[Case]:
    """See the head of this file."""
    config = model_config(options.sizes.models[0], options.num_layers)
    oracle = Oracle(lab, config, "gpu")
    num_requests, length, new = options.sizes.load
    for state_dtype in options.state_dtypes:
        model = make_model(lab, config, state_dtype, is_deterministic=options.is_deterministic)
        for chunk, num_slots in itertools.product(options.prefill_chunks, options.sizes.load_slots):
            core = make_core(model, num_slots, **options.core_options(chunk))
            kind = str(state_dtype).removeprefix("torch.")
            name = (
                f"{num_requests} × {length} in, {new} out, {num_slots} slots, {kind} state, "
                f"chunks of {core.info.prefill_chunk}"
            )
            yield Case(name, partial(_serve, lab, options, core, oracle, config))
            del core
        del model
        lab.release()


def _serve(lab: Lab, options: Options, core: EngineCore, oracle: Oracle, config: ModelConfig) -> Row:
    num_requests, length, new = options.sizes.load
    num_slots = core.info.num_slots
    prompts = random_prompts(config, num_requests, length)
    greedy = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True)
    params = SamplingParams(temperature=options.temperature, max_tokens=new, ignore_eos=True)
    few = SamplingParams(temperature=options.temperature, max_tokens=4, ignore_eos=True)
    generate(core, prompts[: num_slots + 2], few)
    lab.sync()
    began = time.perf_counter()
    tokens = generate(core, prompts, params)
    wall = time.perf_counter() - began
    if any(len(drawn) != new for drawn in tokens):
        raise WrongResult("a request came back short")
    if options.temperature:
        tokens = generate(core, prompts[:num_slots], greedy)
    watched = (0, num_slots // 2, num_slots - 1)
    gap = oracle.check((prompts[i] + tokens[i][:-1], tokens[i][-1]) for i in watched)
    begin_batch(core, random_prompts(config, num_slots, 2), options.temperature)
    step, device, _ = step_times(lab, core)
    end_batch(core, num_slots)
    return {
        "output tokens/s": num_requests * new / wall,
        "all tokens/s": num_requests * (length + new) / wall,
        "seconds": wall,
        "decode ms/step": step * 1e3,
        "host's share %": 100 * max(0.0, 1 - device / step),
        "gap": gap,
    }
