"""exp and SiLU of the numba kernels, against float64 and at the ends of float32."""

import math

import numba
import numpy as np
import pytest
import torch

from remuda.kernels.cpu_math import exp, silu

Array = np.ndarray[tuple[int], np.dtype[np.float32]]


@numba.njit  # type: ignore[untyped-decorator]
def _fill(x: Array, exps: Array, silus: Array) -> None:
    for i in range(len(x)):
        exps[i] = exp(x[i])
        silus[i] = silu(x[i])


def _evaluate(x: Array) -> tuple[Array, Array]:
    exps, silus = np.full_like(x, np.nan), np.full_like(x, np.nan)
    _fill(x, exps, silus)
    return exps, silus


def _ulps(actual: Array, expected: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    spacing = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    return float((np.abs(actual - expected) / spacing).max())


def test_exp_is_within_one_and_a_half_ulp() -> None:
    x = np.linspace(-86.9, 88.7, 400_001).astype(np.float32)
    assert _ulps(_evaluate(x)[0], np.exp(x.astype(np.float64))) < 1.5


def test_silu_is_as_good_as_torch() -> None:
    x = np.linspace(-86.9, 120, 400_001).astype(np.float32)
    expected = x.astype(np.float64) / (1 + np.exp(-x.astype(np.float64)))
    torchs = torch.nn.functional.silu(torch.from_numpy(x)).numpy()
    assert _ulps(_evaluate(x)[1], expected) <= max(_ulps(torchs, expected), 2.5)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (0.0, 1.0),
        (-0.0, 1.0),
        (88.8, math.inf),
        (100.0, math.inf),
        (3.4e38, math.inf),
        (math.inf, math.inf),
        (-87.0, 0.0),
        (-3.4e38, 0.0),
        (-math.inf, 0.0),
        (math.nan, math.nan),
    ],
)
def test_exp_at_the_ends(x: float, expected: float) -> None:
    # A lone value takes the scalar path, a hundred of them the vectorised one.
    for count in (1, 100):
        value = _evaluate(np.full(count, x, np.float32))[0]
        np.testing.assert_array_equal(value, np.full(count, expected, np.float32))


@pytest.mark.parametrize("x", [-3.4e38, -1e30, -1000.0, -100.0, -89.0, 89.0, 100.0, 1e30, 3.4e38])
def test_silu_at_the_ends(x: float) -> None:
    for count in (1, 100):
        value = _evaluate(np.full(count, x, np.float32))[1]
        np.testing.assert_array_equal(value, np.full(count, max(x, 0), np.float32))


def test_silu_of_nan_is_nan() -> None:
    assert np.isnan(_evaluate(np.full(100, np.nan, np.float32))[1]).all()
