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


@dataclass(frozen=True)
class KernelBackend:
    """One module per op, all of the same backend; signatures are those of `kernels/<op>/reference.py`.

    longhorn_decode: `kernels/longhorn/cpu_decode.py`, where the backend has a whole decode step in one call.
    """

    name: str
    norm: ModuleType
    conv: ModuleType
    longhorn: ModuleType
    linear: ModuleType
    longhorn_decode: ModuleType | None = None


def resolve_device(device: Device) -> torch.device:
    """The device to run on. Raises ConfigError where "cuda" is asked for and absent."""
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        if not torch.cuda.is_available():
            raise ConfigError("device cuda was asked for, but torch finds no CUDA device")
        return torch.device("cuda")
    return torch.device("cpu")


def select_backend(name: Backend, device: torch.device) -> KernelBackend:
    """Load the kernels for `device`. "auto" falls back to the reference, with a warning, where numba is missing.

    Raises ConfigError where a backend asked for by name cannot run on this device or is not installed.
    """
    if name == "auto":
        wanted = "gpu" if device.type == "cuda" else "cpu"
        try:
            return load_kernels(wanted)
        except ImportError as error:
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
        return load_kernels(name)
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


def load_kernels(name: str) -> KernelBackend:
    """The kernels of one backend. Raises ImportError where what they are written in is not installed."""
    modules = {op: importlib.import_module(f"remuda.kernels.{op}.{name}") for op in _OPS}
    decode = importlib.import_module("remuda.kernels.longhorn.cpu_decode") if name == "cpu" else None
    return KernelBackend(name=name, longhorn_decode=decode, **modules)
