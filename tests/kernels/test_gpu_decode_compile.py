"""The kernels of the fused decode step compile, for Hopper and for Ampere; no state is written while it is read.

For Hopper as a GPU would run them: dependent launch, copy engine. Needs no GPU.
"""

import json
import re
import subprocess
import tempfile
from typing import Any

import pytest
import torch

from tests.kernels.compile_only import compiled_by, intercept

ROWS = (1, 2, 4, 9, 64, 128, 256, 512)
HOPPER, AMPERE = 90, 80


def _decode(num_rows: int, capability: int, state_dtype: torch.dtype) -> None:
    from remuda.kernels.longhorn.gpu_decode import DecodeLayer, FusedDecode

    M, D, N, R, W = 2048, 4096, 16, 128, 4
    dtype = torch.bfloat16
    layer = DecodeLayer(
        norm_weight=torch.zeros(M, dtype=dtype),
        norm_bias=None,
        in_proj=(torch.zeros(2 * D, M, dtype=dtype), None),
        conv=torch.zeros(W + 1, D),
        x_proj=(torch.zeros(R + 2 * N, D, dtype=dtype), None),
        dt_head=(torch.zeros(D, R, dtype=dtype), torch.zeros(D, dtype=dtype)),
        skip=torch.zeros(D, dtype=dtype),
        out_proj=(torch.zeros(M, D, dtype=dtype), None),
    )
    step = FusedDecode(
        [layer], torch.zeros(64, M, dtype=dtype), (layer.norm_weight, None),
        width=W, eps=1e-5, is_rms=True, residual_dtype=torch.float32,
    )  # fmt: skip
    if capability == HOPPER:
        step._pdl, step._has_copy_engine = {"IS_PDL": True, "launch_pdl": True}, True
    state = {"conv": torch.zeros(2, W - 1, D, dtype=dtype), "h": torch.zeros(2, N, D, dtype=state_dtype)}
    slots = torch.zeros(num_rows, dtype=torch.int32)
    seeds = None if state_dtype == torch.float32 else torch.zeros(num_rows, dtype=torch.int64)
    tokens, fresh = torch.zeros(num_rows, dtype=torch.int64), torch.zeros(num_rows, dtype=torch.bool)
    step(tokens, [state], slots, slots, fresh, seeds)


def _compile_all() -> None:
    """Print one JSON line a launch."""
    case: dict[str, Any] = {}

    def on_built(name: str, built: Any) -> None:
        ptx = built.asm["ptx"]
        print(json.dumps(case | {
            "kernel": name,
            "shared": built.metadata.shared,
            "is_dependent": "griddepcontrol.wait" in ptx,
            "has_copy_engine": "cp.async.bulk.tensor" in ptx,
            "spills": _local_bytes(built.asm["cubin"]),
            "barrier_parts_reads_and_writes": _barrier_parts(built.asm["ttgir"]),
        }))  # fmt: skip

    intercept(lambda: case["capability"], on_built)
    for capability in (HOPPER, AMPERE):
        for state_dtype in (torch.float32, torch.bfloat16):
            for num_rows in ROWS:
                case = {"capability": capability, "state": str(state_dtype), "rows": num_rows}
                _decode(num_rows, capability, state_dtype)


def _local_bytes(cubin: bytes) -> int:
    """Bytes of a thread's stack and local memory, where registers go for which the assembler finds no room."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = [int(size) for size in re.findall(r"\b(?:STACK|LOCAL):(\d+)", usage)]
    assert found, usage
    return sum(found)


def _barrier_parts(ttgir: str) -> bool:
    """A barrier stands behind the last load of the convolution's state and before the first store to it."""
    lines = ttgir.splitlines()
    state = {"%p_state"}
    loads, stores = [], []
    for number, line in enumerate(lines):
        operands = set(re.findall(r"%[\w]+", line.partition("loc(")[0]))
        result = re.match(r"\s*(%\w+)(?::\d+)? = (?:tt\.addptr|tt\.splat|ttg\.convert_layout|tt\.broadcast)", line)
        if result and operands & state:
            state.add(result[1])
        elif "tt.load" in line and operands & state:
            loads.append(number)
        elif "tt.store" in line and operands & state:
            stores.append(number)
    barriers = [n for n, line in enumerate(lines) if "ttg.barrier" in line or "gpu.barrier" in line]
    return any(max(loads, default=0) < barrier < min(stores, default=0) for barrier in barriers)


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return compiled_by(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("capability", [HOPPER, AMPERE])
def test_every_launch_compiles(capability: int, num_rows: int, launches: list[dict[str, Any]]) -> None:
    found = [b for b in launches if (b["capability"], b["rows"]) == (capability, num_rows)]
    names = {b["kernel"] for b in found}
    is_row = num_rows <= 4 or num_rows > 128
    assert "dt_step_kernel" in names
    assert ("conv_project_row_kernel" in names) == is_row
    assert ("conv_project_kernel" in names) != is_row
    assert ("_norm_gemv_kernel" in names) == (capability == HOPPER and num_rows == 1)
    # An Ampere card of the smaller kind gives a program 99 KB of shared memory, Hopper 227.
    assert max(b["shared"] for b in found) <= (227 if capability == HOPPER else 99) * 1024
    assert all(b["spills"] == 0 for b in found)
    for built in found:
        # The first kernel waits for everything before it, as any kernel does without dependent launch.
        assert built["is_dependent"] == (capability == HOPPER and built["kernel"] != "embed_kernel")
    copies = {b["kernel"] for b in found if b["has_copy_engine"]}
    assert copies == ({"gemm_kernel", "_norm_gemv_kernel"} & names if capability == HOPPER else set())


def test_no_row_s_convolution_state_is_written_before_all_warps_have_read_it(
    launches: list[dict[str, Any]],
) -> None:
    """A tile has fewer channels than threads, so several warps read each place that one of them writes."""
    found = [b for b in launches if b["kernel"] == "conv_project_row_kernel"]
    assert found
    assert all(b["barrier_parts_reads_and_writes"] for b in found)


if __name__ == "__main__":
    _compile_all()
