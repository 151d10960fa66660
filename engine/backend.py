"""Chooses the kernels: one backend per engine, decided once at start. Knows no model."""

import importlib
import logging
from dataclasses import dataclass
from types import ModuleType
from typing import Final

import torch

from remuda.engine.config import Backend, Device
from remuda.engine.cores import available_cores
from remuda.engine.errors import ConfigError

logger = logging.getLogger(__name__)

_OPS: Final = ("norm", "conv", "longhorn", "linear")
_DECODE: Final = {
    "cpu": "remuda.kernels.longhorn.cpu_decode",
    "gpu": "remuda.kernels.longhorn.gpu_decode",
}


@dataclass(frozen=True)
class KernelBackend:
    """One module per op, all of the same backend; signatures are those of `kernels/<op>/reference.py`.

    longhorn_decode: `kernels/longhorn/{cpu,gpu}_decode.py`, a whole decode step in one call.
    sample: `kernels/sample`, where tokens are drawn on the device; else `engine.sampler` draws them.
    """

    name: str
    norm: ModuleType
    conv: ModuleType
    longhorn: ModuleType
    linear: ModuleType
    longhorn_decode: ModuleType | None = None
    sample: ModuleType | None = None


def resolve_device(device: Device) -> torch.device:
    """The device to run on. Raises ConfigError where "cuda" is asked for and absent."""
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        if not torch.cuda.is_available():
            raise ConfigError("device cuda was asked for, but torch finds no CUDA device")
        return torch.device("cuda")
    return torch.device("cpu")


def select_backend(name: Backend, device: torch.device, *, deterministic: bool = False) -> KernelBackend:
    """Load the kernels for `device`. "auto" falls back to the reference, with a warning, where numba is missing.

    deterministic: the bits of a row depend on no other row of its step. Raises ConfigError where a backend
    asked for by name cannot run on this device, cannot be deterministic, or is not installed.
    """
    if deterministic and (device.type != "cuda" or name not in ("auto", "gpu")):
        raise ConfigError(
            "deterministic is served on a GPU by the gpu backend alone: on the CPU, matrix products are rounded "
            "otherwise in steps of other sizes"
        )
    if name == "auto":
        wanted = "gpu" if device.type == "cuda" else "cpu"
        try:
            return load_kernels(wanted, deterministic=deterministic)
        except ImportError as error:
            if deterministic:
                raise ConfigError(
                    f"deterministic needs the gpu backend ({error}): pip install 'remuda[gpu]'"
                ) from error
            logger.warning(
                "the fast %s kernels are not installed (%s); the slow reference runs instead: "
                "pip install 'remuda[%s]'",
                wanted,
                error,
                wanted,
            )
            return load_kernels("reference")
    if (name == "cpu" and device.type != "cpu") or (name == "gpu" and device.type != "cuda"):
        raise ConfigError(f"backend {name} cannot run on device {device.type}")
    try:
        return load_kernels(name, deterministic=deterministic)
    except ImportError as error:
        raise ConfigError(f"backend {name} is not installed ({error}): pip install 'remuda[{name}]'") from error


def set_num_threads(backend: KernelBackend, wanted: int | None) -> None:
    """Threads of torch and of the CPU kernels, which share one pool; by default the cores that there are.

    Raises ConfigError where more are wanted than numba was started with.
    """
    num_threads = wanted or available_cores()
    if backend.name == "cpu":
        import numba

        limit: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
        if wanted is not None and wanted > limit:
            raise ConfigError(f"num_threads is {wanted}, and numba was started with {limit} (NUMBA_NUM_THREADS)")
        num_threads = min(num_threads, limit)
        numba.set_num_threads(num_threads)
    torch.set_num_threads(num_threads)


def load_kernels(name: str, *, deterministic: bool = False) -> KernelBackend:
    """The kernels of one backend. Raises ImportError where what they are written in is not installed.

    deterministic: of the gpu backend, without the kernels whose sums follow the size of the batch.
    """
    modules = {op: importlib.import_module(f"remuda.kernels.{op}.{name}") for op in _OPS}
    decode = sample = None
    if name == "gpu":
        sample = importlib.import_module("remuda.kernels.sample.gpu")
    if deterministic:
        for op in ("linear", "longhorn"):
            modules[op] = importlib.import_module(f"remuda.kernels.{op}.gpu_deterministic")
    elif name in _DECODE:
        decode = importlib.import_module(_DECODE[name])
    return KernelBackend(name=name, longhorn_decode=decode, sample=sample, **modules)
