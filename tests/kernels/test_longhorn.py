"""Longhorn's recurrence: the reference against its formula, the backends against the reference."""

import importlib
import math
from typing import Any

import pytest
import torch

from remuda.kernels.slots import PAD_SLOT
from tests.kernels import gluon_on_cpu
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


# D, and the tokens of sequences: a tile has 32, and 2 or 4 tiles are on their way at once.
SCANS = [(64, (70, 1, 5)), (32, (32,)), (32, (1,)), (32, (33, 64, 31)), (32, (170,))]


@pytest.fixture(scope="module")
def scan() -> Any:
    """gpu_scan: on Hopper as it is, else interpreted without its layouts."""
    name = "remuda.kernels.longhorn.gpu_scan"
    if not torch.cuda.is_available():
        return gluon_on_cpu.load(f"{name}_tile", name)
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("the scan is for Hopper")
    return importlib.import_module(name)


def _scan_rows(D: int, T: int, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    """Rows of 16 bits; k, q, z and x lie in wider matrices, 16-byte aligned."""
    x, dt, k, q, z = (row.to(device_of("gpu"), dtype) for row in Longhorn(D, 16).rows(T))
    wide, pair = torch.cat([k, k, q], dim=1), torch.cat([x, z], dim=1)
    return [pair[:, :D], dt, wide[:, 16:32], wide[:, 32:], pair[:, D:]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("D", "lengths"), SCANS)
def test_scan_equals_reference(scan: Any, D: int, lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    op, device = Longhorn(D, 16), device_of("gpu")
    rows, count = _scan_rows(D, sum(lengths), dtype), len(lengths)
    bounds = torch.tensor((0, *lengths), device=device).cumsum(0).int()
    src = torch.tensor([1, 4, 6][:count], dtype=torch.int32, device=device)
    dst = torch.tensor([1, 5, PAD_SLOT][:count], dtype=torch.int32, device=device)
    fresh = torch.tensor([False, True, False][:count], device=device)
    outs, states = [], []
    for backend in ("reference", "gpu"):
        canonical = op.states(NUM_SLOTS)
        canonical[[4, 6]] = torch.nan
        state = load("longhorn", backend).from_canonical(canonical).to(device)
        skip = torch.ones(D, device=device)
        args = (*rows, skip, state, bounds, src, dst, fresh)
        if backend == "gpu":
            outs.append(scan.prefill(*args).float())
        else:
            outs.append(load("longhorn", backend).prefill(*args).float())
        states.append(load("longhorn", backend).to_canonical(state, D))
    assert_close(outs[1], outs[0], BFLOAT16)
    assert outs[1][sum(lengths[:2]) :].eq(0).all()
    others = torch.tensor([slot not in (4, 6) for slot in range(NUM_SLOTS)])
    assert_close(states[1][others], states[0][others])
    assert states[1][~others].isnan().all()


def test_scan_of_a_split_prompt_is_that_of_the_whole(scan: Any) -> None:
    """Bit for bit, and with 16-bit states rounded by the same key as `step` rounds them."""
    op, T, device = Longhorn(32, 16), 75, device_of("gpu")
    rows, skip = _scan_rows(op.D, T), torch.ones(op.D, device=device)
    slots, fresh = torch.tensor([2], dtype=torch.int32, device=device), torch.tensor([False], device=device)

    def run(state: torch.Tensor, start: int, end: int, **rounding: Any) -> torch.Tensor:
        bounds = torch.tensor([0, end - start], dtype=torch.int32, device=device)
        part = [row[start:end] for row in rows]
        out: torch.Tensor = scan.prefill(*part, skip, state, bounds, slots, slots, fresh, **rounding)
        return out

    pieces, whole = (load("longhorn", "gpu").from_canonical(op.states(4)).to(device) for _ in range(2))
    out = torch.cat([run(pieces, 0, 40), run(pieces, 40, 41), run(pieces, 41, T)])
    assert torch.equal(out, run(whole, 0, T))
    assert torch.equal(pieces, whole)

    seeds = torch.tensor([5], device=device)
    scanned, stepped = pieces.bfloat16(), pieces.bfloat16()
    run(scanned, 0, 1, seeds=seeds, salt=3)
    step_rows = [row[:1] for row in rows]
    load("longhorn", "gpu").step(*step_rows, skip, stepped, slots, slots, fresh, seeds=seeds, salt=3)
    assert (scanned != stepped).float().mean() < 0.01


HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("op", [Longhorn(48, 16), Longhorn(33, 5)], ids=["pow2", "odd"])
def test_stochastic_rounding_is_the_references(op: Longhorn, dtype: torch.dtype) -> None:
    """Where float32 states agree, so do all bits; elsewhere they are neighbours. Step and prefill alike."""
    T, device = 4, device_of("gpu")
    rows = [row.to(device) for row in op.rows(T)]
    seeds = torch.tensor([2**62 + 5, -3, 0, 2**31], device=device)
    slots = torch.tensor([3, 5, 1, 2], dtype=torch.int32, device=device)
    fresh = torch.tensor([False, True, False, False], device=device)
    bounds = torch.arange(T + 1, dtype=torch.int32, device=device)
    stored = {}
    for backend, index in [("reference", [slots]), ("gpu", [slots]), ("gpu", [bounds, slots])]:
        module = load("longhorn", backend)
        state = module.from_canonical(op.states(NUM_SLOTS) * 1e-3).to(device, dtype)
        op.call(backend, rows, state, [*index, slots, fresh], seeds=seeds, salt=7)
        bits = module.to_canonical(state, op.D).view(torch.int16).int()
        stored[backend, len(index)] = bits.cpu()
    difference = (stored["gpu", 1] - stored["reference", 1]).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 1e-3
    assert torch.equal(stored["gpu", 1], stored["gpu", 2])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("backend", ["reference", "gpu"])
def test_stochastic_rounding_is_unbiased_and_keyed(backend: str, dtype: torch.dtype) -> None:
    """Every element of a fresh state is 1/3 or, for float16, below its normal numbers too."""
    D, N, device, module = 64, 16, device_of(backend), load("longhorn", backend)
    k, dt = torch.ones(1, N, device=device), torch.zeros(1, D, device=device)
    for target in (1 / 3, -1e-5 / 3, 1e-8 / 3):
        x = torch.full((1, D), target * (2 + N), device=device)

        def stored(seed: int, salt: int, slot: int, x: torch.Tensor = x) -> torch.Tensor:
            h = module.from_canonical(torch.zeros(4, D, N)).to(device, dtype)
            slots = torch.tensor([slot], dtype=torch.int32, device=device)
            fresh, seeds = torch.tensor([True], device=device), torch.tensor([seed], device=device)
            module.step(x, dt, k, k, x, dt[0], h, slots, slots, fresh, seeds=seeds, salt=salt)
            result: torch.Tensor = module.to_canonical(h, D)[slot].cpu()
            return result

        drawn = torch.stack([stored(seed, salt=3, slot=1) for seed in range(8)]).double()
        low, high = drawn.unique().tolist()
        assert low < target < high
        chance = (target - low) / (high - low)
        deviation = (chance * (1 - chance) / drawn.numel()) ** 0.5
        is_up = drawn == high
        assert (is_up.double().mean() - chance).abs() < 5 * deviation
        # Neighbouring channels may share a hash; they go up together as often as strangers.
        together, expected = (is_up[:, ::2] & is_up[:, 1::2]).double(), chance**2
        assert (together.mean() - expected).abs() < 5 * (expected * (1 - expected) / together.numel()) ** 0.5
        assert torch.equal(stored(5, 3, 1), stored(5, 3, 2))
        for other in (stored(5, 4, 1), stored(6, 3, 1), stored(5 + 2**32, 3, 1)):
            assert not torch.equal(stored(5, 3, 1), other)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("backend", ["reference", "gpu"])
def test_stochastic_rounding_keeps_exact_values_and_faults(backend: str, dtype: torch.dtype) -> None:
    """With k = 0 nothing changes: values of 16 bits stay, and so do infinities and NaN."""
    D, N, device, module = 5, 4, device_of(backend), load("longhorn", backend)
    canonical = torch.randn(1, D, N).to(dtype)
    canonical[0, 0] = torch.tensor([torch.nan, -torch.nan, -0.0, 2.0**-20])
    h = module.from_canonical(canonical).to(device)
    slots, seeds = torch.zeros(1, dtype=torch.int32, device=device), torch.tensor([9], device=device)
    row, k = torch.zeros(1, D, device=device), torch.zeros(1, N, device=device)
    module.step(row, row, k, k, row, row[0], h, slots, slots, torch.tensor([False], device=device), seeds=seeds)
    torch.testing.assert_close(module.to_canonical(h, D).cpu(), canonical, rtol=0, atol=0, equal_nan=True)
