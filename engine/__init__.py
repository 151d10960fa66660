"""The offline door: `from remuda.engine import Engine, SamplingParams`. Only Engine imports torch."""

from typing import TYPE_CHECKING, Any

from remuda.engine.config import EngineConfig
from remuda.engine.errors import RemudaError
from remuda.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from remuda.engine.engine import Engine

__all__ = ["Engine", "EngineConfig", "RemudaError", "SamplingParams"]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from remuda.engine.engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
