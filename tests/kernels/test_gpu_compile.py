"""Every Triton kernel compiles for sm_90, with the arguments that its wrapper passes. Needs no GPU.

The wrappers run on CPU tensors in a process of their own, where a launch is compiled instead of run: this one
may be interpreting its kernels.
"""

# mypy: disable-error-code="no-untyped-call"

import json
import re
from typing import Any

import pytest
import torch

from tests.kernels.compile_only import compiled_by, intercept

SIZES = {"pow2": {"D": 4096, "N": 16, "W": 4}, "odd": {"D": 33, "N": 5, "W": 3}}
# Of the activations and weights, and of state and residual.
DTYPES = {
    "fp32": (torch.float32, torch.float32),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "mixed": (torch.bfloat16, torch.float32),
}
CASES = ["pow2-fp32", "pow2-bf16", "pow2-mixed", "odd-fp32", "odd-bf16"]
LAUNCHES = [
    "_add_norm_kernel",
    "_add_norm_kernel",
    "_conv_step_kernel",
    "_conv_prefill_kernel",
    "_longhorn_kernel",
    "_longhorn_kernel",
]
# Besides, where the state has 16 bits, a step that rounds stochastically; where all rows have, the fast prefill.
ROUNDING, SCAN = ["_longhorn_kernel"], ["_scan_kernel"]


def _call_wrappers(D: int, N: int, W: int, dtype: torch.dtype, state_dtype: torch.dtype) -> None:
    from remuda.kernels.conv import gpu as conv
    from remuda.kernels.longhorn import gpu as longhorn
    from remuda.kernels.longhorn import gpu_scan
    from remuda.kernels.norm import gpu as norm

    x = torch.zeros(3, D, dtype=dtype)
    vector = torch.zeros(D, dtype=dtype)
    residual = torch.zeros(3, D, dtype=state_dtype)
    norm.add_norm(x, residual, vector, None, 1e-5, is_rms=True, out_dtype=dtype)
    norm.add_norm(None, residual, vector, vector, 1e-5, is_rms=False, out_dtype=dtype)

    slots, fresh = torch.arange(3, dtype=torch.int32), torch.zeros(3, dtype=torch.bool)
    cu_seqlens = torch.arange(4, dtype=torch.int32)
    conv_state = torch.zeros(3, *conv.state_shape(D, W), dtype=state_dtype)
    packed = conv.pack(torch.zeros(D, 1, W, dtype=dtype), None)
    conv.step(x, packed, conv_state, slots, slots, fresh)
    conv.prefill(x, packed, conv_state, cu_seqlens, slots, slots, fresh)

    h = torch.zeros(3, *longhorn.state_shape(D, N), dtype=state_dtype)
    kq = torch.zeros(3, 2 * N, dtype=dtype)
    k, q = kq[:, :N], kq[:, N:]
    longhorn.step(x, x, k, q, x, vector, h, slots, slots, fresh)
    longhorn.prefill(x, x, k, q, x, vector, h, cu_seqlens, slots, slots, fresh)
    seeds = torch.zeros(3, dtype=torch.int64) if state_dtype == torch.bfloat16 else None
    if seeds is not None:
        longhorn.step(x, x, k, q, x, vector, h, slots, slots, fresh, seeds=seeds, salt=1)
    if D % gpu_scan.BLOCK_D == 0 and dtype == torch.bfloat16:
        gpu_scan.prefill(x, x, k, q, x, vector, h, cu_seqlens, slots, slots, fresh, seeds=seeds, salt=1)


def _compile_launches() -> None:
    """Print one JSON line a launch: case, kernel, size of the machine code, and what rounding depends on."""
    case = ""

    def on_built(name: str, built: Any) -> None:
        print(json.dumps({
            "case": case,
            "kernel": name,
            "code_bytes": len(built.asm["cubin"]),
            "fp_fusion": built.metadata.enable_fp_fusion,
            "sums": _layouts_of_sums(built.asm["ttgir"]),
        }))  # fmt: skip

    intercept(lambda: 90, on_built)
    for case in CASES:
        size, dtypes = case.split("-")
        _call_wrappers(**SIZES[size], dtype=DTYPES[dtypes][0], state_dtype=DTYPES[dtypes][1])
    assert not torch.cuda.is_initialized()


def _layouts_of_sums(ttgir: str) -> list[str]:
    """The operand type of each reduction in Triton's GPU IR, its layout spelled out."""
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", ttgir, re.MULTILINE))
    types = re.findall(r"\}\) : \((tensor<.*?>)\) ->", ttgir)
    return [re.sub(r"#\w+\b", lambda match: layouts.get(match[0], match[0]), text) for text in types]


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return compiled_by(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("case", CASES)
def test_every_launch_compiles(case: str, launches: list[dict[str, Any]]) -> None:
    built = [launch for launch in launches if launch["case"] == case]
    expected = LAUNCHES + ROUNDING * ("-bf16" in case) + SCAN * (case in ("pow2-bf16", "pow2-mixed"))
    assert [launch["kernel"] for launch in built] == expected
    assert all(launch["code_bytes"] > 0 for launch in built)


@pytest.mark.parametrize("case", CASES)
def test_longhorn_step_and_prefill_round_alike(case: str, launches: list[dict[str, Any]]) -> None:
    """Sums over n in one layout are added in one order; without fusion nothing else may differ."""
    built = [launch for launch in launches if launch["case"] == case]
    step, prefill, *_ = (launch for launch in built if launch["kernel"] == "_longhorn_kernel")
    assert len(step["sums"]) == 2
    assert step["sums"] == prefill["sums"]
    assert not step["fp_fusion"]
    assert not prefill["fp_fusion"]


if __name__ == "__main__":
    _compile_launches()
