"""Brings an engine up: resolves every "auto" against model and machine, reads, sizes, warms up."""

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import psutil
import torch

from remuda.engine.backend import KernelBackend, resolve_device, select_backend, set_num_threads
from remuda.engine.checkpoint.find import find_checkpoint
from remuda.engine.checkpoint.fingerprint import fingerprint
from remuda.engine.checkpoint.read import read_model_config, read_weights
from remuda.engine.compile_watch import watch_compilations
from remuda.engine.config import EngineConfig, EngineInfo
from remuda.engine.core import EngineCore
from remuda.engine.device_runner import DeviceRunner
from remuda.engine.errors import ConfigError
from remuda.engine.gpu_memory import Measured, account, fit_slots, measure, survey, table_bytes
from remuda.engine.grammar import TokenBytes, token_bytes
from remuda.engine.grammar_compiler import GrammarCompiler
from remuda.engine.models.base import Model
from remuda.engine.models.longhorn import Longhorn
from remuda.engine.prompt_graphs import PromptShape, prompt_shapes
from remuda.engine.runner import HostRunner, Runner
from remuda.engine.sampler import Sampler
from remuda.engine.scheduler import Scheduler
from remuda.engine.state_pool import StatePool, slot_bytes
from remuda.engine.tokenizer import SpecialTokens, load_special_tokens, load_tokenizer
from remuda.engine.warm_up import warm_up

Progress = Callable[[str, float], None]

# The pool's share of the memory that is left once the weights are loaded, where no size is given.
_AUTO_MEMORY_SHARE: Final = 0.25
_AUTO_MAX_SLOTS: Final = {"cpu": 256, "cuda": 1024}
_AUTO_PREFILL_CHUNK: Final = {"cpu": 256, "cuda": 8192}

_MODELS: Final = {"longhorn": Longhorn}


def start_engine(config: EngineConfig, progress: Progress | None = None) -> EngineCore:
    """Load the model and everything around it. Raises ConfigError or CheckpointError."""
    progress = progress or _silent
    began = time.monotonic()
    device = resolve_device(config.device)
    backend = select_backend(config.backend, device, deterministic=config.deterministic)
    set_num_threads(backend, config.num_threads)
    dtype, state_dtype = _resolve_dtypes(config, device, backend)

    progress("finding the checkpoint", 0.0)
    location = find_checkpoint(config.model)
    model_config = read_model_config(location)
    special = load_special_tokens(location, config.tokenizer)
    weights = read_weights(location, model_config, progress=lambda f: progress("reading weights", f))
    progress("preparing weights", 0.0)
    weights_fingerprint = fingerprint(weights)
    model = _MODELS[model_config.model_type](
        model_config, weights, backend, device=device, dtype=dtype, state_dtype=state_dtype
    )

    def load_tokens() -> TokenBytes | None:
        return token_bytes(load_tokenizer(location, config.tokenizer), model_config.vocab_size)

    # Text stays out of this process until a request asks for text of some shape.
    grammars = GrammarCompiler(load_tokens)
    core = build_core(model, config, name=location.name, special=special, progress=progress, grammars=grammars)
    core.info = msgspec.structs.replace(
        core.info, weights_fingerprint=weights_fingerprint, load_seconds=time.monotonic() - began
    )
    return core


def build_core(
    model: Model,
    config: EngineConfig,
    *,
    name: str = "model",
    special: SpecialTokens | None = None,
    progress: Progress | None = None,
    depth: int | None = None,
    grammars: GrammarCompiler | None = None,
) -> EngineCore:
    """A core over a loaded model, sized by `config`; warmed up where `progress` is to hear of it, or on a GPU.

    depth: see `EngineCore`; by default 1 on a GPU. Raises ConfigError if a size does not fit.
    """
    special = special or SpecialTokens(None, ())
    device = model.device
    prefill_chunk = config.prefill_chunk or _AUTO_PREFILL_CHUNK[device.type]
    has_table = model.backend.sample is not None
    measured: Measured | None = None
    shapes: tuple[PromptShape, ...] = ()
    if device.type == "cuda" and has_table:
        watch_compilations(False)
        num_slots, shapes, measured = _resolve_gpu_slots(config, model, prefill_chunk)
    else:
        num_slots = _resolve_num_slots(config, slot_bytes(model.state_spec), device)
    max_batch_tokens = _resolve_max_batch_tokens(config, num_slots, prefill_chunk)
    pool = StatePool(model.state_spec, num_slots, device)
    runner: Runner
    if has_table:
        runner = DeviceRunner(model, pool, num_slots, shapes)
    else:
        runner = HostRunner(model, pool, Sampler(model.config.vocab_size, special.eos_token_ids))
    info = EngineInfo(
        model=name,
        model_type=model.config.model_type,
        num_parameters=model.num_parameters,
        num_layers=model.config.num_hidden_layers,
        hidden_size=model.config.hidden_size,
        device=_describe(device),
        backend=model.backend.name,
        dtype=_name(model.dtype),
        state_dtype=_name(model.state_dtype),
        num_slots=num_slots,
        slot_bytes=pool.slot_bytes,
        vocab_size=model.config.vocab_size,
        max_batch_tokens=max_batch_tokens,
        prefill_chunk=prefill_chunk,
        max_queue=config.max_queue,
        eos_token_ids=special.eos_token_ids,
        bos_token_id=special.bos_token_id,
        load_seconds=0.0,
        deterministic=config.deterministic,
    )
    if progress is not None or measured is not None:
        _warm_up(runner, info, progress or _silent)
    if measured is not None and isinstance(runner, DeviceRunner):
        info = msgspec.structs.replace(
            info, memory=account(measured, model, config, num_slots, runner.graph_bytes)
        )
    scheduler = Scheduler(
        pool, max_batch_tokens=max_batch_tokens, prefill_chunk=prefill_chunk, max_queue=config.max_queue
    )
    if depth is None:
        depth = int(has_table and device.type == "cuda")
    # A step of the host's sampler needs the tokens of the one before.
    assert depth == 0 or has_table
    seed = secrets.randbits(63) if config.seed is None else config.seed
    return EngineCore(info, scheduler, runner, pool, seed=seed, depth=depth, grammars=grammars)


def _silent(stage: str, fraction: float) -> None:
    """Progress that nobody watches."""


def _warm_up(runner: Runner, info: EngineInfo, progress: Progress) -> None:
    stage = "warming up the kernels (the first start on a machine compiles them)"
    warm_up(runner, info.num_slots, info.prefill_chunk, info.max_batch_tokens, lambda f: progress(stage, f))


def _resolve_gpu_slots(
    config: EngineConfig, model: Model, prefill_chunk: int
) -> tuple[int, tuple[PromptShape, ...], Measured]:
    """Slots that fit, beside a step of so many rows; the prompts that get graphs; and what was measured for it."""
    bytes_per_slot = slot_bytes(model.state_spec)
    max_slots = config.num_slots or _AUTO_MAX_SLOTS["cuda"]
    if config.state_memory is not None:
        max_slots = _slots_of(config.state_memory, bytes_per_slot)
    elif config.num_slots is None and config.max_batch_tokens is not None:
        max_slots = max(1, min(max_slots, config.max_batch_tokens - 1))
    max_batch_tokens = _resolve_max_batch_tokens(config, max_slots, prefill_chunk)
    bytes_per_slot += table_bytes(model.config.vocab_size)
    # A number that is far too large would not get through the measurement.
    max_slots = fit_slots(survey(model.device), config, bytes_per_slot, max_slots)
    shapes = prompt_shapes(max_batch_tokens, max_slots)
    measured = measure(model, max_slots, max_batch_tokens, shapes)
    return fit_slots(measured, config, bytes_per_slot, max_slots), shapes, measured


def _slots_of(state_memory: int, bytes_per_slot: int) -> int:
    num_slots = state_memory // bytes_per_slot
    if num_slots < 1:
        raise ConfigError(f"state_memory is {state_memory} bytes, but one slot takes {bytes_per_slot}")
    return num_slots


def _resolve_dtypes(
    config: EngineConfig, device: torch.device, backend: KernelBackend
) -> tuple[torch.dtype, torch.dtype]:
    if backend.name == "cpu":
        for name in ("dtype", "state_dtype"):
            if getattr(config, name) not in ("auto", "float32"):
                raise ConfigError(
                    f"{name} {getattr(config, name)} is not served by the cpu backend, which computes in float32"
                )
    auto = "bfloat16" if device.type == "cuda" else "float32"
    dtype = getattr(torch, auto if config.dtype == "auto" else config.dtype)
    state_dtype = getattr(torch, "float32" if config.state_dtype == "auto" else config.state_dtype)
    return dtype, state_dtype


def _resolve_num_slots(config: EngineConfig, bytes_per_slot: int, device: torch.device) -> int:
    if config.num_slots is not None:
        memory = config.num_slots * bytes_per_slot
        if memory > _free_memory(device):
            raise ConfigError(
                f"{config.num_slots} slots of {bytes_per_slot} bytes need {memory} bytes, "
                f"and {_free_memory(device)} are free"
            )
        return config.num_slots
    if config.state_memory is not None:
        if config.state_memory > _free_memory(device):
            raise ConfigError(f"state_memory is {config.state_memory} bytes, and {_free_memory(device)} are free")
        return _slots_of(config.state_memory, bytes_per_slot)
    num_slots = int(_free_memory(device) * _AUTO_MEMORY_SHARE) // bytes_per_slot
    if num_slots < 1:
        raise ConfigError(f"{_free_memory(device)} bytes are free, too few for a slot of {bytes_per_slot} bytes")
    return min(num_slots, _AUTO_MAX_SLOTS[device.type])


def _resolve_max_batch_tokens(config: EngineConfig, num_slots: int, prefill_chunk: int) -> int:
    if config.max_batch_tokens is None:
        return num_slots + 2 * prefill_chunk
    if config.max_batch_tokens <= num_slots:
        raise ConfigError(
            f"max_batch_tokens is {config.max_batch_tokens}, but must exceed the number of slots, {num_slots}: "
            "every decoding sequence takes one token of each step"
        )
    return config.max_batch_tokens


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free: int = psutil.virtual_memory().available
    return min(free, _free_in_container() or free)


def _free_in_container(cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the container's memory limit (cgroup v2) leaves, if there is one."""
    try:
        limit, used = (cgroup / "memory.max").read_text().strip(), int((cgroup / "memory.current").read_text())
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - used)


def _describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
