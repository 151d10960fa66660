"""Linear layers: every path of the CPU backend, by number of rows and of outputs, against float64."""

import pytest
import torch

from remuda.kernels.linear import cpu, gpu, reference

BASE = {"T": 3, "K": 20, "N": 10}
CASES = [
    BASE,
    *({**BASE, "T": T} for T in (1, 2, 64, 65, 100)),
    *({**BASE, "K": K} for K in (1, 63, 256)),
    *({**BASE, "N": N} for N in (1, 2, 3, 4, 5, 7, 63, 130)),
]


@pytest.mark.parametrize("backend", [reference, cpu, gpu], ids=["reference", "cpu", "gpu"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_backends_equal_the_product_in_float64(case: dict[str, int], has_bias: bool, backend: object) -> None:
    T, K, N = case["T"], case["K"], case["N"]
    generator = torch.Generator().manual_seed(T + K + N)
    # Rows of a wider tensor, as the column slices of a projection are.
    x = torch.randn(T, 2 * K, generator=generator)[:, K:]
    weight = torch.randn(N, K, generator=generator)
    bias = torch.randn(N, generator=generator) if has_bias else None
    double_bias = None if bias is None else bias.double()
    expected = torch.nn.functional.linear(x.double(), weight.double(), double_bias)
    found = backend.linear(x, backend.pack(weight, bias))  # type: ignore[attr-defined]
    assert found.shape == (T, N)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_how_many_share_the_call() -> None:
    x, packed = torch.randn(cpu.MAX_GEMM_ROWS, 77), cpu.pack(torch.randn(30, 77), torch.randn(30))
    together = cpu.linear(x, packed)
    for i in range(len(x)):
        assert torch.equal(cpu.linear(x[i : i + 1], packed)[0], together[i])


@pytest.mark.parametrize("T", [2, 70])
@pytest.mark.parametrize("N", [3, 6])
def test_a_row_of_nan_stays_alone(T: int, N: int) -> None:
    x, packed = torch.ones(T, 9), cpu.pack(torch.ones(N, 9), None)
    x[1] = torch.nan
    found = cpu.linear(x, packed)
    assert found[1].isnan().all()
    assert torch.equal(found[0], torch.full((N,), 9.0))
