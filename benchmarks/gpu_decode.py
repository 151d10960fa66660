"""A decode step of whole models: against the floor (weights once, states read and written) and the host's part."""

import random
from collections.abc import Iterator
from functools import partial
from typing import Final

import torch
from gpu_lab import Case, Lab, Row, WrongResult
from gpu_oracle import Oracle
from gpu_profile import busy_share, longest_kernels, replayed_graphs, trace
from gpu_shapes import Options, make_core, make_model, model_config, random_prompts

from remuda.engine.core import EngineCore
from remuda.engine.errors import ConfigError
from remuda.engine.models.longhorn import Longhorn
from remuda.engine.sampling_params import SamplingParams

# The state's dtype.
_SHORT: Final = {torch.float32: "fp32", torch.bfloat16: "bf16"}
_NUM_CHECKED_ROWS: Final = 4
_NUM_CHECKED_TOKENS: Final = 8
# Steps before the clock starts, and seconds of steps in a measurement.
_WARM_UP: Final = 12
_SECONDS: Final = 0.2
_NUM_PROFILED: Final = 20


def run(lab: Lab, options: Options) -> Iterator[Case]:
    """See the head of this file."""
    for name in options.sizes.models:
        config = model_config(name, options.num_layers)
        oracle = Oracle(lab, config, "reference")
        for state_dtype in options.state_dtypes:
            model = make_model(lab, config, state_dtype, is_deterministic=options.is_deterministic)
            batches = options.sizes.decode_batches
            core = _make_core(model, max(batches), options)
            for batch in batches:
                case = f"{name} {_SHORT[state_dtype]} B={batch}"
                yield Case(case, partial(_decode, lab, options, case, core, model, oracle, batch))
            del core, model
            lab.release()


def _make_core(model: Longhorn, num_slots: int, options: Options) -> EngineCore:
    """For the batches that are asked for, or for as many sequences as fit."""
    chosen = {"deterministic": options.is_deterministic}
    try:
        return make_core(model, num_slots, **chosen)
    except ConfigError:
        return make_core(model, None, **chosen)


def _decode(
    lab: Lab, options: Options, case: str, core: EngineCore, model: Longhorn, oracle: Oracle, batch: int
) -> Row | list[Row]:
    if batch > core.info.num_slots:
        return {"check": f"does not fit: {core.info.num_slots} slots"}
    prompts = random_prompts(model.config, batch, 2, seed=batch)
    gap = _check(core, oracle, prompts)
    try:
        begin_batch(core, prompts, options.temperature)
        if options.is_profiling:
            operations = trace(lab, partial(_steps, core, _NUM_PROFILED))
            return longest_kernels(case, operations, _NUM_PROFILED)
        return _measure(lab, core, model, batch) | {"gap": gap}
    finally:
        end_batch(core, batch)


def _check(core: EngineCore, oracle: Oracle, prompts: list[list[int]]) -> float:
    """Hold some rows of a greedy batch, which is run as it will be timed, to the oracle."""
    tokens: dict[str, list[int]] = {str(name): [] for name in range(len(prompts))}
    try:
        begin_batch(core, prompts, 0.0, tokens)
        while min(len(drawn) for drawn in tokens.values()) < _NUM_CHECKED_TOKENS:
            _step(core, tokens)
    finally:
        end_batch(core, len(prompts))
    rows = {0, len(prompts) - 1, *random.Random(0).sample(range(len(prompts)), min(len(prompts), 2))}
    cases = []
    for row in sorted(rows)[:_NUM_CHECKED_ROWS]:
        drawn = tokens[str(row)][:_NUM_CHECKED_TOKENS]
        cases += [(prompts[row] + drawn[:i], token) for i, token in enumerate(drawn)]
    return oracle.check(cases)


def begin_batch(
    core: EngineCore, prompts: list[list[int]], temperature: float, tokens: dict[str, list[int]] | None = None
) -> None:
    """Add endless requests, and step until all decode."""
    params = SamplingParams(temperature=temperature, max_tokens=2**30, ignore_eos=True)
    for name, ids in enumerate(prompts):
        core.add(str(name), ids, params)
    for _ in range(_WARM_UP):
        _step(core, tokens)


def end_batch(core: EngineCore, batch: int) -> None:
    """Abort them, and step until the engine is idle."""
    for name in range(batch):
        core.abort(str(name))
    while core.has_work:
        core.step()


def _step(core: EngineCore, tokens: dict[str, list[int]] | None) -> None:
    for output in core.step():
        if output.error:
            raise WrongResult(output.error)
        if tokens is not None:
            tokens[output.request_id] += output.token_ids


def _steps(core: EngineCore, num_steps: int) -> None:
    for _ in range(num_steps):
        core.step()


def _replay(graphs: list[torch.cuda.CUDAGraph]) -> None:
    for graph in graphs:
        graph.replay()


def step_times(lab: Lab, core: EngineCore) -> tuple[float, float, int]:
    """Seconds of a decode step by the clock, and of the device alone, and how many graphs that is.

    The device's: the step's graphs replayed without the host, which costs no profiler. Where there are none,
    out of a trace.
    """
    estimate = lab.median_wall(partial(_steps, core, 4), rounds=2) / 4
    num_steps = 2 if lab.is_dry else max(10, int(_SECONDS / estimate))
    wall = lab.median_wall(partial(_steps, core, num_steps)) / num_steps
    with replayed_graphs() as graphs:
        core.step()
    if graphs:
        return wall, lab.seconds_of(partial(_replay, graphs)), len(graphs)
    return wall, wall * (busy_share(trace(lab, partial(_steps, core, num_steps))) or 1.0), 0


def _measure(lab: Lab, core: EngineCore, model: Longhorn, batch: int) -> Row:
    wall, device, num_graphs = step_times(lab, core)
    weights = model.num_parameters * model.dtype.itemsize
    floor = (weights + 2 * batch * core.info.slot_bytes) / lab.ceilings.copy
    return {
        "ms/step": wall * 1e3,
        "tokens/s": batch / wall,
        "floor ms": floor * 1e3,
        "% of floor": 100 * floor / wall,
        "device ms": device * 1e3,
        "graphs": num_graphs,
        "GPU busy %": 100 * min(1.0, device / wall),
        "host adds %": 100 * max(0.0, wall / device - 1),
    }
