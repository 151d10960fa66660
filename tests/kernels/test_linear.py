"""Linear layers: every path of every backend against float64, and rows that do not depend on their neighbours."""

# mypy: disable-error-code="no-untyped-call"

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from remuda.kernels.linear import cpu, gpu, gpu_deterministic, reference
from tests.kernels.compile_only import TRITON_TYPES, compiled_by, intercept

BASE = {"T": 3, "K": 20, "N": 10}
CASES = [
    BASE,
    *({**BASE, "T": T} for T in (1, 2, 64, 65, 100)),
    *({**BASE, "K": K} for K in (1, 63, 256)),
    *({**BASE, "N": N} for N in (1, 2, 3, 4, 5, 7, 63, 130)),
]
BACKENDS = {"reference": reference, "cpu": cpu, "gpu": gpu, "gpu_deterministic": gpu_deterministic}
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
# The interpreter has no bfloat16 products.
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * ON_GPU
TALLEST = max(tiling.many.block_m for tiling in gpu_deterministic.TILINGS.values())


@pytest.mark.parametrize("backend", list(BACKENDS))
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_backends_equal_the_product_in_float64(case: dict[str, int], has_bias: bool, backend: str) -> None:
    T, K, N = case["T"], case["K"], case["N"]
    generator = torch.Generator().manual_seed(T + K + N)
    device = DEVICE if backend.startswith("gpu") else torch.device("cpu")
    x = torch.randn(T, K, generator=generator)
    weight = torch.randn(N, K, generator=generator)
    bias = torch.randn(N, generator=generator) if has_bias else None
    double_bias = None if bias is None else bias.double()
    expected = torch.nn.functional.linear(x.double(), weight.double(), double_bias)
    module: Any = BACKENDS[backend]
    packed = module.pack(weight.to(device), None if bias is None else bias.to(device))
    # Rows of a wider tensor, as the column slices of a projection are.
    wide = torch.cat([x, x], dim=1).to(device)
    found = module.linear(wide[:, K:], packed).cpu()
    assert found.shape == (T, N)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", list(BACKENDS))
def test_float32_products_are_not_rounded_to_the_weights_dtype(backend: str, dtype: torch.dtype) -> None:
    module: Any = BACKENDS[backend]
    device = DEVICE if backend.startswith("gpu") else torch.device("cpu")
    dtype = dtype if backend.startswith("gpu") else torch.float32
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 48, generator=generator).to(device, dtype)
    weight = torch.randn(64, 48, generator=generator).to(device, dtype)
    expected = (x.double() @ weight.double().T).float()
    packed, out = module.pack(weight, None), torch.full((5, 64), torch.nan, device=device)
    found = module.linear_float32(x, packed)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert module.linear_float32(x, packed, out).data_ptr() == out.data_ptr()
    assert torch.equal(out, found)


@pytest.mark.parametrize("T", [2, 70])
@pytest.mark.parametrize("N", [3, 6])
@pytest.mark.parametrize("backend", ["cpu", "gpu_deterministic"])
def test_a_row_of_nan_stays_alone(backend: str, T: int, N: int) -> None:
    module: Any = BACKENDS[backend]
    device = DEVICE if backend.startswith("gpu") else torch.device("cpu")
    x, packed = torch.ones(T, 9, device=device), module.pack(torch.ones(N, 9, device=device), None)
    x[1] = torch.nan
    found = module.linear(x, packed).cpu()
    assert found[1].isnan().all()
    assert torch.equal(found[0], torch.full((N,), 9.0))


def test_a_row_does_not_depend_on_how_many_share_the_call_on_the_cpu() -> None:
    x, packed = torch.randn(cpu.MAX_GEMM_ROWS, 77), cpu.pack(torch.randn(30, 77), torch.randn(30))
    together = cpu.linear(x, packed)
    for i in range(len(x)):
        assert torch.equal(cpu.linear(x[i : i + 1], packed)[0], together[i])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("K", "N"), [(128, 160), (77, 30)], ids=str)
def test_a_row_keeps_its_bits_in_every_batch_of_the_deterministic_gpu_backend(
    K: int, N: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(K)
    x = torch.randn(2 * TALLEST + 1, K, generator=generator).to(DEVICE, dtype)
    weight = torch.randn(N, K, generator=generator).to(DEVICE, dtype)
    packed = gpu_deterministic.pack(weight, torch.randn(N, generator=generator).to(DEVICE, dtype))
    together = gpu_deterministic.linear(x, packed)
    # The heights at which tiles change, and one more; the last rows move to the front of a batch.
    for T in (1, 2, 15, 16, 17, 63, 64, 65, TALLEST, TALLEST + 1):
        assert torch.equal(gpu_deterministic.linear(x[:T], packed), together[:T])
        assert torch.equal(gpu_deterministic.linear(x[-T:], packed), together[-T:])
    order = torch.randperm(len(x), generator=generator).to(DEVICE)
    assert torch.equal(gpu_deterministic.linear(x[order], packed), together[order])
    # Neighbours of quite another size, or none of any.
    shouting = x * 1000
    shouting[7] = x[7]
    assert torch.equal(gpu_deterministic.linear(shouting, packed)[7], together[7])
    padded = torch.full((3, 2 * K + 1), torch.nan).to(DEVICE, dtype)
    padded[1, K + 1 :] = x[7]
    assert torch.equal(gpu_deterministic.linear(padded[:, K + 1 :], packed)[1], together[7])
    assert gpu_deterministic.linear(x[:0], packed).shape == (0, N)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bit_products_are_summed_in_float32(dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        pytest.skip("the interpreter has no bfloat16 products")
    # In 16 bits the sum would stop growing at 2048 or 256.
    x, weight = torch.ones(2, 5000, device=DEVICE, dtype=dtype), torch.ones(3, 5000, device=DEVICE, dtype=dtype)
    found = gpu_deterministic.linear(x, gpu_deterministic.pack(weight, None))
    assert torch.equal(found, torch.full((2, 3), 5000.0, device=DEVICE).to(dtype))


def test_short_and_tall_tiles_use_one_matrix_instruction(tmp_path: Path) -> None:
    """Compiled for sm_80 and sm_90, without a GPU, in a process that does not interpret kernels."""
    built = compiled_by(__file__, tmp_path)
    assert len(built) == 4 * 2 * 3
    for dtype in ("fp32", "fp16", "bf16"):
        for capability in (80, 90):
            found = [b["instructions"] for b in built if b["dtype"] == dtype and b["capability"] == capability]
            # float32 products take the ordinary units: no instruction of the tensor cores rounds them to TF32.
            assert len(found[0]) == (0 if dtype == "fp32" else 1)
            assert all(instructions == found[0] for instructions in found)


def _compile_all() -> None:
    """Print one JSON line per dtype, chip, tile height, and kind of K: the matrix instructions of its PTX."""
    case: dict[str, Any] = {}

    def on_built(name: str, built: Any) -> None:
        found = set(re.findall(r"\b(?:wgmma\.mma_async|mma)\.sync\.\S+", built.asm["ptx"]))
        print(json.dumps(case | {"instructions": sorted(found)}))

    intercept(lambda: case["capability"], on_built)
    for dtype, tiling in gpu_deterministic.TILINGS.items():
        for capability, K, T in itertools.product((80, 90), (4096, 33), (1, tiling.many.block_m)):
            case = {"dtype": TRITON_TYPES[dtype], "capability": capability}
            packed = gpu_deterministic.pack(torch.zeros(160, K, dtype=dtype), torch.zeros(160, dtype=dtype))
            gpu_deterministic.linear(torch.zeros(T, K, dtype=dtype), packed)


if __name__ == "__main__":
    _compile_all()
