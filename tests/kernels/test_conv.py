"""The convolution: the reference against torch's, the backends against the reference."""

import pytest
import torch

from tests.kernels.harness import (
    BFLOAT16,
    NUM_SLOTS,
    Conv,
    Pack,
    Pool,
    assert_close,
    assert_same,
    device_of,
    load,
    one,
)

# D, W, T: a base, then one change a row. The interpreter gets small shapes.
CPU_SIZES = [
    (128, 4, 63),
    *[(D, 4, 5) for D in (1, 63, 64, 65, 96)],
    *[(128, W, 5) for W in (2, 3, 5, 8)],
    *[(128, 4, T) for T in (1, 2, 3)],
]
GPU_SIZES = [
    (48, 4, 19),
    *[(D, 4, 5) for D in (1, 33, 63, 64)],
    *[(48, W, 5) for W in (2, 3, 8)],
    *[(48, 4, T) for T in (1, 2, 3)],
]
SIZES = [("cpu", *size) for size in CPU_SIZES] + [("gpu", *size) for size in GPU_SIZES]
BACKENDS = ["reference", "cpu", "gpu"]


@pytest.mark.parametrize("has_bias", [True, False])
def test_reference_is_torchs_convolution(has_bias: bool) -> None:
    T, D, W = 9, 5, 4
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(D, 1, W, generator=draw), torch.randn(T, D, generator=draw)
    bias = torch.randn(D, generator=draw) if has_bias else None
    module = load("conv", "reference")
    state = torch.zeros(1, *module.state_shape(D, W))
    bounds, slots = torch.tensor([0, T], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    out = module.prefill(x, module.pack(weight, bias), state, bounds, slots, slots, torch.tensor([True]))
    padded = torch.nn.functional.pad(x.T, (W - 1, 0))
    expected = torch.nn.functional.silu(torch.nn.functional.conv1d(padded, weight, bias, groups=D)).T
    assert_close(out, expected)
    assert torch.equal(state[0], x[-(W - 1) :].T)


@pytest.mark.parametrize(("backend", "D", "W", "T"), SIZES)
def test_prefill_equals_reference(backend: str, D: int, W: int, T: int) -> None:
    op = Conv(D, W)
    pack = Pack((T, 2, T), (1, 4, 6), (1, 5, 6), (False, False, True))
    rows = op.rows(pack.num_tokens)
    pool, expected = Pool(op, backend, poisoned=(6,)), Pool(op, "reference", poisoned=(6,))
    assert_close(pool.run(rows, pack), expected.run(rows, pack))
    assert torch.equal(pool.canonical(), expected.canonical())


@pytest.mark.parametrize(("backend", "D", "W"), sorted({size[:3] for size in SIZES}))
def test_step_equals_reference(backend: str, D: int, W: int) -> None:
    op = Conv(D, W)
    pack = Pack((1,) * 5, (0, 3, 4, 5, 8), (0, 3, 6, 5, 8), (False, True, False, False, False))
    rows = op.rows(pack.num_tokens)
    pool, expected = Pool(op, backend, poisoned=(3,)), Pool(op, "reference", poisoned=(3,))
    assert_close(pool.run(rows, pack, by_step=True), expected.run(rows, pack))
    assert torch.equal(pool.canonical(), expected.canonical())


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_bias_is_a_bias_of_zero(backend: str) -> None:
    module, device = load("conv", backend), device_of(backend)
    weight = torch.randn(33, 1, 4, device=device)
    outs = []
    for bias in (None, torch.zeros(33, device=device)):
        state = module.from_canonical(Conv(33, 4).states(2)).to(device)
        slots = torch.tensor([0, 1], dtype=torch.int32, device=device)
        x = torch.linspace(-2, 2, 66, device=device).view(2, 33)
        fresh = torch.tensor([False, False], device=device)
        outs.append(module.step(x, module.pack(weight, bias), state, slots, slots, fresh))
    assert_same(outs[0], outs[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_contiguous_rows_give_the_same_as_views(backend: str) -> None:
    op = Conv(33, 4)
    rows = [row.to(device_of(backend)) for row in op.rows(4)]
    views, plain = Pool(op, backend), Pool(op, backend)
    state = plain.state.contiguous()
    index = [torch.tensor(values, dtype=torch.int32, device=state.device) for values in ([0, 4], [2], [2])]
    out = op.call(backend, rows, state, [*index, torch.tensor([False], device=state.device)])
    assert_same(out.cpu(), views.run(op.rows(4), one(4)))
    assert_same(state[2], views.state[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_forgotten_after_the_window(backend: str) -> None:
    """An input takes part in W outputs of its own channel and sequence, and in no others."""
    op = Conv(33, 4)
    rows = op.rows(12)
    clean, sick = Pool(op, backend), Pool(op, backend)
    pack = Pack((6, 6), (1, 2), (1, 2), (False, False))
    expected = clean.run(rows, pack)
    rows[0][1, 7] = torch.nan
    out = sick.run(rows, pack)
    assert out[1:5, 7].isnan().all()
    out[1:5, 7] = expected[1:5, 7]
    assert_same(out, expected)
    assert_same(sick.canonical(), clean.canonical())


@pytest.mark.parametrize("W", [2, 4])
def test_gpu_in_bfloat16(W: int) -> None:
    """Inputs are kept exactly; the sum is float32."""
    op, T, device = Conv(33, W), 6, device_of("gpu")
    rows = [row.bfloat16().to(device) for row in op.rows(T)]
    outs, states = [], []
    for backend in ("reference", "gpu"):
        module = load("conv", backend)
        state = module.from_canonical(op.states(NUM_SLOTS)).to(device, torch.bfloat16)
        bounds, slots = [torch.tensor(v, dtype=torch.int32, device=device) for v in ([0, 2, T], [3, 5])]
        fresh = torch.tensor([False, True], device=device)
        out = op.call(backend, rows, state, [bounds, slots, slots, fresh])
        assert out.dtype == torch.bfloat16
        outs.append(out.float())
        states.append(module.to_canonical(state, op.D))
    assert_close(outs[1], outs[0], BFLOAT16)
    assert torch.equal(states[1], states[0])
