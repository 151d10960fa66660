"""What a start decides: memory shared out, what cannot be served refused, compilations watched."""

import logging
from typing import Any

import pytest
import torch

from remuda.engine.backend import load_kernels, select_backend
from remuda.engine.compile_watch import watch_compilations
from remuda.engine.config import EngineConfig
from remuda.engine.errors import ConfigError
from remuda.engine.gpu_memory import Measured, fit_slots, table_bytes
from remuda.kernels.sample.table import make_table
from tests.engine.tiny import CPU

MIB = 2**20
MEASURED = Measured(total=1000 * MIB, used=200 * MIB, weights=100 * MIB, workspace=50 * MIB, graphs=100 * MIB)


def test_slots_take_what_the_limit_leaves() -> None:
    assert fit_slots(MEASURED, EngineConfig(gpu_memory_utilization=0.5), 10 * MIB, 1024) == 20
    assert fit_slots(MEASURED, EngineConfig(gpu_memory_utilization=1.0), 10 * MIB, 1024) == 70
    assert fit_slots(MEASURED, EngineConfig(gpu_memory_utilization=1.0), 10 * MIB, 8) == 8


@pytest.mark.parametrize(
    ("options", "num_slots", "message"),
    [
        (
            {"num_slots": 21},
            21,
            "21 slots of 10485760 bytes need 210 MiB, and 200 MiB are left for them of 500 MiB",
        ),
        ({"state_memory": 300 * MIB}, 30, "30 slots of 10485760 bytes need 300 MiB, and 200 MiB are left"),
        ({"gpu_memory_utilization": 0.3}, 1024, "a slot takes 10485760 bytes, and 0 MiB are left"),
    ],
)
def test_slots_that_do_not_fit_are_refused_with_both_numbers(
    options: dict[str, Any], num_slots: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit_slots(MEASURED, EngineConfig(**({"gpu_memory_utilization": 0.5} | options)), 10 * MIB, num_slots)


def test_a_slot_s_share_of_the_table_is_counted_to_the_byte() -> None:
    table = make_table(3, 101, CPU)
    assert sum(t.nbytes for t in table) == 3 * table_bytes(101)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu_memory_utilization": 0.0}, r"gpu_memory_utilization must be in \(0, 1\], not 0.0"),
        ({"gpu_memory_utilization": 1.5}, "not 1.5"),
        (
            {"deterministic": True, "state_dtype": "bfloat16"},
            "deterministic needs state_dtype float32, not bfloat16",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**options)


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
def test_the_cpu_does_not_promise_determinism(backend: Any) -> None:
    with pytest.raises(ConfigError, match="deterministic is served on a GPU"):
        select_backend(backend, CPU, deterministic=True)
    with pytest.raises(ConfigError, match="deterministic is served on a GPU"):
        select_backend("reference", torch.device("cuda"), deterministic=True)


def test_deterministic_kernels_are_the_plain_ones() -> None:
    kernels = load_kernels("gpu", deterministic=True)
    assert kernels.linear.__name__ == "remuda.kernels.linear.gpu_deterministic"
    assert kernels.longhorn_decode is None


def test_a_late_compilation_is_told(caplog: pytest.LogCaptureFixture) -> None:
    knobs = pytest.importorskip("triton").knobs
    watch_compilations(True)
    try:
        with caplog.at_level(logging.WARNING):
            # As `triton.runtime.jit` calls it, in 3.6 and 3.7.
            knobs.runtime.jit_post_compile_hook(
                key="k",
                repr="_kernel[num_warps=4]",
                fn=None,
                compile={},
                is_manual_warmup=False,
                already_compiled=False,
            )
    finally:
        watch_compilations(False)
    assert "_kernel[num_warps=4]" in caplog.text
    assert knobs.runtime.jit_post_compile_hook is None
