"""How a GPU's memory is shared out: measures what a step needs, gives the states the rest, accounts for all."""

import gc
import logging
from dataclasses import dataclass
from typing import Final

import torch

from remuda.engine.config import EngineConfig, MemoryUse
from remuda.engine.device_runner import DeviceRunner
from remuda.engine.errors import ConfigError
from remuda.engine.models.base import Model
from remuda.engine.prompt_graphs import PromptShape
from remuda.engine.state_pool import StatePool, slot_bytes
from remuda.engine.step_graphs import decode_sizes
from remuda.kernels.sample.table import WORDS, mask_words

logger = logging.getLogger(__name__)

# What the driver and the allocator take for one captured step, beside its activations.
_GRAPH_BYTES: Final = 24 * 2**20
_MIB: Final = 2**20


@dataclass(frozen=True)
class Measured:
    """Bytes. total: of the device. used: by anybody, this process included, but for slots and graphs.

    weights, workspace: this process's, of `used`. graphs: what is kept back for them.
    """

    total: int
    used: int
    weights: int
    workspace: int
    graphs: int


def survey(device: torch.device) -> Measured:
    """What is used before anything is measured."""
    free, total = torch.cuda.mem_get_info(device)
    return Measured(total, total - free, torch.cuda.memory_reserved(device), 0, 0)


def measure(
    model: Model, max_rows: int, max_batch_tokens: int, prompt_shapes: tuple[PromptShape, ...]
) -> Measured:
    """Run the largest steps on pad rows, and see what they take. The allocator keeps it for the steps to come.

    max_rows: decode rows of a step; max_batch_tokens: all its rows; prompt_shapes: of prompts that have graphs.
    """
    device = model.device
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    weights = torch.cuda.memory_reserved(device)
    runner = DeviceRunner(model, StatePool(model.state_spec, 1, device), max_rows)
    torch.cuda.reset_peak_memory_stats(device)
    allocated = torch.cuda.memory_allocated(device)
    runner.warm_up(max_rows, 0)
    if prompt_shapes:
        runner.warm_up(0, *prompt_shapes[-1])
    captured = torch.cuda.max_memory_allocated(device) - allocated
    runner.warm_up(max_rows, max_batch_tokens - max_rows)
    runner.warm_up(0, max_batch_tokens)
    runner.warm_up_scores()
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    workspace = torch.cuda.memory_reserved(device) - weights
    # Cycles hold the runner; what it held is for the one to come.
    del runner
    gc.collect()
    graphs = captured + _GRAPH_BYTES * (len(decode_sizes(max_rows)) + len(prompt_shapes))
    return Measured(total, total - free, weights, workspace, graphs)


def table_bytes(vocab_size: int) -> int:
    """Bytes that `SamplingTable` has per slot."""
    return 4 * WORDS + 4 + 8 + 4 * vocab_size + 4 * mask_words(vocab_size)


def fit_slots(measured: Measured, config: EngineConfig, bytes_per_slot: int, max_slots: int) -> int:
    """Slots of `bytes_per_slot`, table included, that the limit leaves room for: at most `max_slots`.

    Raises ConfigError where `config` asks for a number, then `max_slots`, that does not fit, or where none does.
    """
    limit = int(measured.total * config.gpu_memory_utilization)
    free = limit - measured.used - measured.graphs
    where = (
        f"{max(free, 0) // _MIB} MiB are left for them of {limit // _MIB} MiB "
        f"({config.gpu_memory_utilization:g} of the GPU's memory)"
    )
    is_given = config.num_slots is not None or config.state_memory is not None
    if is_given and max_slots * bytes_per_slot > free:
        raise ConfigError(
            f"{max_slots} slots of {bytes_per_slot} bytes need {max_slots * bytes_per_slot // _MIB} MiB, "
            f"and {where}"
        )
    if free < bytes_per_slot:
        raise ConfigError(f"a slot takes {bytes_per_slot} bytes, and {where}")
    return min(max_slots, free // bytes_per_slot)


def account(measured: Measured, model: Model, config: EngineConfig, num_slots: int, graphs: int) -> MemoryUse:
    """What holds the GPU's memory once all is captured; `graphs`: bytes that capturing took. Logs it."""
    free, total = torch.cuda.mem_get_info(model.device)
    limit = int(total * config.gpu_memory_utilization)
    pool, table = num_slots * slot_bytes(model.state_spec), num_slots * table_bytes(model.config.vocab_size)
    known = measured.weights + measured.workspace + table + pool + graphs
    use = MemoryUse(
        total=total,
        limit=limit,
        others=total - free - known,
        weights=measured.weights,
        workspace=measured.workspace,
        table=table,
        pool=pool,
        graphs=graphs,
        left=limit - (total - free),
    )
    parts = ("others", "weights", "workspace", "table", "pool", "graphs", "left")
    shares = ", ".join(f"{name} {getattr(use, name) / _MIB:.0f}" for name in parts)
    logger.info("memory of the GPU in MiB: %s; limit %.0f of %.0f", shares, limit / _MIB, total / _MIB)
    return use
