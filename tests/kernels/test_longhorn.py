"""Longhorn's recurrence: the reference against its formula, the backends against the reference."""

import math

import pytest
import torch

from tests.kernels.harness import (
    BFLOAT16,
    NUM_SLOTS,
    Longhorn,
    Pack,
    Pool,
    assert_close,
    assert_same,
    device_of,
    load,
    one,
)

# D, N, T: a base, then one change a row. The interpreter gets small shapes.
CPU_SIZES = [
    (128, 16, 63),
    *[(D, 16, 5) for D in (1, 63, 64, 65, 96)],
    *[(128, N, 5) for N in (1, 3, 4, 17)],
    *[(128, 16, T) for T in (1, 2)],
]
GPU_SIZES = [
    (48, 16, 19),
    *[(D, 16, 5) for D in (1, 33, 63, 64)],
    *[(48, N, 5) for N in (1, 3, 17)],
    *[(48, 16, T) for T in (1, 2)],
]
SIZES = [("cpu", *size) for size in CPU_SIZES] + [("gpu", *size) for size in GPU_SIZES]


def test_reference_is_the_formula() -> None:
    T, D, N = 7, 3, 4
    op = Longhorn(D, N)
    rows = op.rows(T)
    pool = Pool(op, "reference")
    h = pool.canonical()[2].double().tolist()
    out = pool.run(rows, one(T))
    x, dt, k, q, z = (row.double().tolist() for row in rows)
    skip = torch.randn(D, generator=torch.Generator().manual_seed(8)).tolist()
    for t in range(T):
        for d in range(D):
            beta = 1 / (1 + math.exp(-dt[t][d]))
            delta = beta / (1 + beta * sum(k[t][n] ** 2 for n in range(N)))
            for n in range(N):
                h[d][n] = (1 - delta * k[t][n] ** 2) * h[d][n] + delta * x[t][d] * k[t][n]
            y = sum(h[d][n] * q[t][n] for n in range(N)) + skip[d] * x[t][d]
            expected = y * z[t][d] / (1 + math.exp(-z[t][d]))
            assert out[t, d].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert_close(pool.canonical()[2], torch.tensor(h))


@pytest.mark.parametrize(("backend", "D", "N", "T"), SIZES)
def test_prefill_equals_reference(backend: str, D: int, N: int, T: int) -> None:
    op = Longhorn(D, N)
    pack = Pack((T, 2, T), (1, 4, 6), (1, 5, 6), (False, False, True))
    rows = op.rows(pack.num_tokens)
    pool, expected = Pool(op, backend, poisoned=(6,)), Pool(op, "reference", poisoned=(6,))
    assert_close(pool.run(rows, pack), expected.run(rows, pack))
    assert_close(pool.canonical(), expected.canonical())


@pytest.mark.parametrize(("backend", "D", "N"), sorted({size[:3] for size in SIZES}))
def test_step_equals_reference(backend: str, D: int, N: int) -> None:
    op = Longhorn(D, N)
    pack = Pack((1,) * 5, (0, 3, 4, 5, 8), (0, 3, 6, 5, 8), (False, True, False, False, False))
    rows = op.rows(pack.num_tokens)
    pool, expected = Pool(op, backend, poisoned=(3,)), Pool(op, "reference", poisoned=(3,))
    assert_close(pool.run(rows, pack, by_step=True), expected.run(rows, pack))
    assert_close(pool.canonical(), expected.canonical())


@pytest.mark.parametrize("backend", ["reference", "cpu", "gpu"])
def test_contiguous_rows_give_the_same_as_views(backend: str) -> None:
    op = Longhorn(33, 5)
    rows = [row.to(device_of(backend)) for row in op.rows(4)]
    views, plain = Pool(op, backend), Pool(op, backend)
    state = plain.state.contiguous()
    index = [torch.tensor(values, dtype=torch.int32, device=state.device) for values in ([0, 4], [2], [2])]
    out = op.call(backend, rows, state, [*index, torch.tensor([False], device=state.device)])
    assert_same(out.cpu(), views.run(op.rows(4), one(4)))
    assert_same(state[2], views.state[2])


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy, in the interpreter
@pytest.mark.parametrize("backend", ["reference", "cpu", "gpu"])
def test_extreme_gates_and_steps(backend: str) -> None:
    """Finite input gives what arithmetic without overflow would give: steps of 0 and 1, gates of 0 and z."""
    largest = torch.finfo(torch.float32).max
    ends = torch.tensor([-largest, -1e30, -100.0, 0.0, 90.0, 100.0, 1e30])
    dt, z = (grid.reshape(1, -1) for grid in torch.meshgrid(ends, ends, indexing="ij"))
    D, N = dt.shape[1], 4
    x, k, q = torch.full((1, D), 0.5), torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.full((1, N), 0.25)
    pack = Pack((1,), (2,), (2,), (True,))
    pool = Pool(Longhorn(D, N), backend)
    out = pool.run((x, dt, k, q, z), pack)

    delta = 1 / (1 + 30 + torch.exp(-dt[0].double()))
    expected = (delta * 0.5)[:, None] * k.double()
    torch.testing.assert_close(pool.canonical()[2].double(), expected, rtol=1e-6, atol=1e-37)
    skip = torch.randn(D, generator=torch.Generator().manual_seed(8)).double()
    y = expected.sum(1) * 0.25 + skip * 0.5
    gated = (y * torch.nn.functional.silu(z[0].double())).float()
    torch.testing.assert_close(out[0], gated, rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("backend", ["reference", "cpu", "gpu"])
def test_large_keys_leave_no_trace_of_overflow(backend: str) -> None:
    op = Longhorn(5, 4)
    x, dt, k, q, z = op.rows(3)
    out = Pool(op, backend).run((x, dt, k * 1e12, q, z), one(3))
    assert out.isfinite().all()


@pytest.mark.parametrize("backend", ["reference", "cpu", "gpu"])
@pytest.mark.parametrize("poisoned", [0, 1, 4], ids=["x", "dt", "z"])
def test_nan_stays_in_its_channel_and_sequence(poisoned: int, backend: str) -> None:
    op = Longhorn(33, 5)
    rows = op.rows(6)
    clean, sick = Pool(op, backend), Pool(op, backend)
    pack = Pack((3, 3), (1, 2), (1, 2), (False, False))
    expected = clean.run(rows, pack)
    rows[poisoned][1, 7] = torch.nan
    out = sick.run(rows, pack)
    assert out[1, 7].isnan()
    others = torch.arange(33) != 7
    assert_same(out[:, others], expected[:, others])
    assert_same(out[3:], expected[3:])
    reaches_state = poisoned != 4
    assert sick.canonical()[1, 7].isnan().all() == reaches_state
    assert_same(sick.canonical()[1, others], clean.canonical()[1, others])


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("N", [3, 16])
def test_gpu_in_bfloat16(N: int, state_dtype: torch.dtype) -> None:
    """Activations in bf16, the state in either: the arithmetic is float32 between reads and writes."""
    op, T, device = Longhorn(33, N), 6, device_of("gpu")
    rows = [row.bfloat16().to(device) for row in op.rows(T)]
    outs, states = [], []
    for backend in ("reference", "gpu"):
        module = load("longhorn", backend)
        state = module.from_canonical(op.states(NUM_SLOTS)).to(device, state_dtype)
        bounds, slots = [torch.tensor(v, dtype=torch.int32, device=device) for v in ([0, 2, T], [3, 5])]
        fresh = torch.tensor([False, True], device=device)
        out = op.call(backend, rows, state, [bounds, slots, slots, fresh])
        assert out.dtype == torch.bfloat16
        outs.append(out.float())
        states.append(module.to_canonical(state, op.D).float())
    assert_close(outs[1], outs[0], BFLOAT16)
    assert_close(states[1], states[0], 2e-6 if state_dtype == torch.float32 else BFLOAT16)
