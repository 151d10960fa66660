"""Residual add and normalisation: the reference against torch's, the backends against the reference."""

import pytest
import torch
from torch import Tensor

from tests.kernels.harness import BFLOAT16, assert_close, assert_same, device_of, load, ragged

EPS = 1e-5
# T, M: a base, then one change a row; 63 x 192 is large enough for threads.
CPU_SIZES = [(63, 192), (1, 192), (2, 192), *[(5, M) for M in (1, 3, 31, 32, 33, 769)]]
GPU_SIZES = [(3, 48), (1, 48), *[(2, M) for M in (1, 3, 33, 64, 769)]]
SIZES = [("cpu", *size) for size in CPU_SIZES] + [("gpu", *size) for size in GPU_SIZES]
VARIANTS = [(True, False), (True, True), (False, True), (False, False)]


def _draw(T: int, M: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(T * 1000 + M)
    shapes = ((T, M), (T, M), (M,), (M,))
    hidden, residual, weight, bias = (torch.randn(shape, generator=draw) for shape in shapes)
    return hidden, residual + 3, weight, bias


def _run(
    backend: str,
    hidden: Tensor | None,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    is_rms: bool,
    out_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Output and residual afterwards; the tensors are taken as rows of wider ones, which must not change."""
    device = device_of(backend)
    rows = ragged(residual.to(device))
    wide = rows._base
    assert wide is not None
    inputs = None if hidden is None else ragged(hidden.to(device))
    kept = None if hidden is None else hidden.clone()
    out = load("norm", backend).add_norm(
        inputs,
        rows,
        weight.to(device),
        None if bias is None else bias.to(device),
        EPS,
        is_rms=is_rms,
        out_dtype=out_dtype,
    )
    assert wide[:, :3].isnan().all()
    assert wide[:, -4:].isnan().all()
    if inputs is not None and kept is not None:
        assert torch.equal(inputs.cpu(), kept)
    assert out.dtype == out_dtype
    assert rows.dtype == residual.dtype
    return out.cpu(), rows.cpu()


@pytest.mark.parametrize(("is_rms", "has_bias"), VARIANTS)
def test_reference_is_torchs_norm(is_rms: bool, has_bias: bool) -> None:
    hidden, residual, weight, bias = _draw(5, 33)
    out, after = _run("reference", hidden, residual, weight, bias if has_bias else None, is_rms=is_rms)
    total = hidden + residual
    assert torch.equal(after, total)
    if is_rms:
        expected = torch.nn.functional.rms_norm(total, (33,), weight, EPS) + (bias if has_bias else 0)
    else:
        expected = torch.nn.functional.layer_norm(total, (33,), weight, bias if has_bias else None, EPS)
    assert_close(out, expected)


@pytest.mark.parametrize(("is_rms", "has_bias"), VARIANTS)
@pytest.mark.parametrize(("backend", "T", "M"), SIZES)
def test_equals_reference(backend: str, T: int, M: int, is_rms: bool, has_bias: bool) -> None:
    hidden, residual, weight, bias = _draw(T, M)
    arguments = (residual, weight, bias if has_bias else None)
    for given in (hidden, None):
        out, after = _run(backend, given, *arguments, is_rms=is_rms)
        expected, expected_after = _run("reference", given, *arguments, is_rms=is_rms)
        assert torch.equal(after, expected_after)
        assert_close(out, expected)


@pytest.mark.parametrize("is_rms", [True, False])
@pytest.mark.parametrize("backend", ["reference", "cpu", "gpu"])
def test_a_row_does_not_depend_on_its_neighbours(backend: str, is_rms: bool) -> None:
    """In threads as in one: 64 rows of 192 take the parallel kernel, one takes the serial one."""
    hidden, residual, weight, bias = _draw(64 if backend == "cpu" else 4, 192)
    together, _ = _run(backend, hidden, residual, weight, bias, is_rms=is_rms)
    for t in (0, 3):
        row = slice(t, t + 1)
        alone, _ = _run(backend, hidden[row], residual[row], weight, bias, is_rms=is_rms)
        assert_same(alone, together[row])


@pytest.mark.parametrize("backend", ["reference", "cpu", "gpu"])
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e15])
def test_tiny_and_huge_rows(backend: str, scale: float) -> None:
    _, residual, weight, bias = _draw(2, 48)
    out, _ = _run(backend, None, residual * scale, weight, bias, is_rms=True)
    value = (residual * scale).double()
    expected = value * torch.rsqrt(value.square().mean(-1, keepdim=True) + EPS) * weight + bias
    assert_close(out, expected.float())


@pytest.mark.parametrize("is_rms", [True, False])
@pytest.mark.parametrize("residual_dtype", [torch.float32, torch.bfloat16])
def test_gpu_in_bfloat16(residual_dtype: torch.dtype, is_rms: bool) -> None:
    """Statistics are float32, of the residual as it is stored."""
    hidden, residual, weight, bias = (tensor.bfloat16() for tensor in _draw(3, 48))
    arguments = (hidden, residual.to(residual_dtype), weight, bias)
    out, after = _run("gpu", *arguments, is_rms=is_rms, out_dtype=torch.bfloat16)
    expected, expected_after = _run("reference", *arguments, is_rms=is_rms, out_dtype=torch.bfloat16)
    assert_close(after.float(), expected_after.float(), BFLOAT16)
    # The rounding of the residual, then that of the output.
    assert_close(out.float(), expected.float(), 2 * BFLOAT16)
