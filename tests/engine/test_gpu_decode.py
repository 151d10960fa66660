"""The GPU's fused decode step against the same model kernel by kernel: outputs, states, and who is left alone.

In the interpreter where there is no GPU; on one, also the kernels that only Hopper has.
"""

from dataclasses import replace

import pytest
import torch

from remuda.engine.backend import load_kernels
from remuda.engine.config import ModelConfig
from remuda.engine.models.base import ForwardBatch, Slots
from remuda.engine.models.longhorn import Longhorn
from remuda.engine.state_pool import StatePool
from remuda.kernels.longhorn import gpu_decode
from remuda.kernels.longhorn.gpu_decode_configs import CONFIGS, choose
from remuda.kernels.slots import PAD_SLOT
from tests.engine.tiny import random_weights, tiny_config

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
# The interpreter has no bfloat16 products, and its steps are slow.
DTYPE = torch.bfloat16 if ON_GPU else torch.float16
SIZES: dict[str, object] = (
    {"hidden_size": 256, "intermediate_size": 512, "time_step_rank": 16, "state_size": 16}
    if ON_GPU
    else {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1}
)
ROWS = (1, 2, 3, 8, 9, 16, 17, 32, 64, 100, 128) if ON_GPU else (1, 2, 4, 8, 9, 33)
# The rounding of 16-bit activations, layer upon layer, of the root mean square.
TOLERANCE = 3e-2 if ON_GPU else 5e-3
VARIANTS: list[dict[str, object]] = [
    {"rms_norm": False},
    {"use_bias": True},
    {"use_conv_bias": False},
    {"residual_in_fp32": False},
    {"conv_kernel": 2},
    {"state_size": 5},
    {"time_step_rank": 3},
    {"intermediate_size": 48, "hidden_size": 32},
]


def tame_weights(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Random, but of a size that leaves activations near 1: rounding is not to grow from layer to layer."""
    weights = random_weights(config)
    return {n: w * (2 / w.shape[-1] ** 0.5 if w.dim() == 2 else 1.0) for n, w in weights.items()}


def make_pair(config: ModelConfig, state_dtype: torch.dtype = torch.float32) -> tuple[Longhorn, Longhorn]:
    """The model kernel by kernel, and fused."""
    backend = load_kernels("gpu")
    plain, fused = (
        Longhorn(config, tame_weights(config), kernels, device=DEVICE, dtype=DTYPE, state_dtype=state_dtype)
        for kernels in (replace(backend, longhorn_decode=None), backend)
    )
    assert plain._fused_decode is None
    assert fused._fused_decode is not None
    return plain, fused


def make_pool(model: Longhorn, num_slots: int) -> StatePool:
    pool = StatePool(model.state_spec, num_slots, DEVICE)
    draw = torch.Generator().manual_seed(3)
    for layer in pool.layers:
        for view in layer.values():
            view.copy_(torch.randn(view.shape, generator=draw) * 0.5)
    return pool


def step(model: Longhorn, pool: StatePool, rows: Slots, seeds: torch.Tensor | None = None) -> torch.Tensor:
    none = Slots(*(t[:0] for t in rows))
    tokens = torch.arange(len(rows.src), device=DEVICE) * 7 % model.config.vocab_size
    batch = ForwardBatch(
        token_ids=tokens,
        num_decode=len(tokens),
        decode=rows,
        prefill=none,
        cu_seqlens=torch.zeros(1, dtype=torch.int32, device=DEVICE),
        output_rows=None,
        decode_seeds=seeds,
    )
    with torch.inference_mode():
        return model.forward(batch, pool.layers)


def mixed_slots(num_rows: int) -> tuple[Slots, int]:
    """Rows out of order; some pads, some fresh, some that move to another slot. Also how many slots that takes."""
    src = torch.randperm(num_rows, generator=torch.Generator().manual_seed(5)).int()
    dst = src.clone()
    dst[3::5] = torch.arange(num_rows, num_rows + len(dst[3::5])).int()
    src[2::7], dst[2::7] = PAD_SLOT, PAD_SLOT
    fresh = torch.zeros(num_rows, dtype=torch.bool)
    fresh[1::4] = True
    return Slots(src.to(DEVICE), dst.to(DEVICE), fresh.to(DEVICE)), 2 * num_rows


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Of every row, or slot, alone: one that is wrong is not to drown among others."""
    assert torch.isfinite(found).all()
    difference, scale = (found.float() - expected.float()).flatten(1), expected.float().flatten(1)
    errors = difference.norm(dim=1) / scale.norm(dim=1)
    assert errors.max() < TOLERANCE, f"relative errors {errors.tolist()}"


def compare(config: ModelConfig, rows: Slots, num_slots: int) -> None:
    plain, fused = make_pair(config)
    expected_pool, pool = make_pool(plain, num_slots), make_pool(fused, num_slots)
    untouched = sorted(set(range(num_slots)) - set(rows.dst.tolist()))
    before = [{name: view[untouched].clone() for name, view in layer.items()} for layer in pool.layers]
    live = (rows.dst != PAD_SLOT).cpu()
    for _ in range(2):
        expected, found = step(plain, expected_pool, rows), step(fused, pool, rows)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert_close(found[live], expected[live])
    for layer, wanted, old in zip(pool.layers, expected_pool.layers, before, strict=True):
        for name, view in layer.items():
            assert_close(view, wanted[name])
            assert torch.equal(view[untouched], old[name])


@pytest.mark.parametrize("num_rows", ROWS)
def test_fused_equals_kernel_by_kernel(num_rows: int) -> None:
    rows, num_slots = mixed_slots(num_rows)
    compare(tiny_config(**SIZES), rows, num_slots)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("num_rows", [1, 5, 9])
def test_every_kind_of_layer(changes: dict[str, object], num_rows: int) -> None:
    rows, num_slots = mixed_slots(num_rows)
    compare(tiny_config(**(SIZES | changes)), rows, num_slots)


@pytest.mark.parametrize("num_rows", [3, 9])
def test_a_row_does_not_depend_on_its_neighbours(num_rows: int) -> None:
    """Bit for bit, as long as the launch configuration is the same."""
    _, fused = make_pair(tiny_config(**SIZES))
    slots = torch.arange(num_rows, dtype=torch.int32, device=DEVICE)
    rows = Slots(slots, slots, torch.zeros(num_rows, dtype=torch.bool, device=DEVICE))
    whole = step(fused, make_pool(fused, num_rows), rows)
    masked = slots.clone()
    masked[1:] = PAD_SLOT
    alone = step(fused, make_pool(fused, num_rows), Slots(masked, masked, rows.fresh))
    assert torch.equal(alone[0], whole[0])


@pytest.mark.parametrize("num_rows", [2, 9])
def test_sixteen_bit_states_are_rounded_as_the_step_kernel_rounds_them(num_rows: int) -> None:
    plain, fused = make_pair(tiny_config(**(SIZES | {"num_hidden_layers": 2})), torch.bfloat16)
    rows, num_slots = mixed_slots(num_rows)
    seeds = torch.arange(num_rows, device=DEVICE) * 2**33 - 7
    expected_pool, pool = make_pool(plain, num_slots), make_pool(fused, num_slots)
    step(plain, expected_pool, rows, seeds)
    step(fused, pool, rows, seeds)
    # Of the first layer, whose inputs are the same: all but a few values that lay next to a threshold.
    found, expected = pool.layers[0]["h"].float(), expected_pool.layers[0]["h"].float()
    ulp = expected.abs().clamp(min=2**-100).log2().floor().exp2() * 2**-7
    assert ((found - expected).abs() <= 2 * ulp).all()
    assert (found == expected).float().mean() > 0.9
    nearest = make_pool(fused, num_slots)
    step(fused, nearest, rows)
    assert not torch.equal(nearest.layers[0]["h"], pool.layers[0]["h"])


def test_every_batch_has_a_configuration() -> None:
    for state_dtype, most in ((torch.float32, 512), (torch.bfloat16, 128)):
        assert gpu_decode.max_rows(state_dtype) == most
        for num_rows in range(1, most + 1):
            assert choose(num_rows).max_rows >= num_rows
    assert [config.max_rows for config in CONFIGS] == sorted({config.max_rows for config in CONFIGS})


def test_float32_weights_are_left_to_the_single_kernels() -> None:
    config = tiny_config()
    model = Longhorn(
        config, random_weights(config), load_kernels("gpu"),
        device=DEVICE, dtype=torch.float32, state_dtype=torch.float32,
    )  # fmt: skip
    assert model._fused_decode is None


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs CUDA")
@pytest.mark.parametrize("num_rows", [1, 2, 4, 8, 64, 128, 256, 512])
def test_dependent_launch_changes_no_bit(num_rows: int) -> None:
    """Kernels that start before their predecessor ends, in a graph replayed often, against one after the other."""
    sizes = {"hidden_size": 1024, "intermediate_size": 2048, "time_step_rank": 64, "state_size": 16}
    _, early = make_pair(tiny_config(**sizes))
    _, late = make_pair(tiny_config(**sizes))
    late._fused_decode._pdl = {"IS_PDL": False}
    slots = torch.arange(num_rows, dtype=torch.int32, device=DEVICE)
    rows = Slots(slots, slots, torch.zeros(num_rows, dtype=torch.bool, device=DEVICE))
    pool, expected = make_pool(early, num_rows), make_pool(late, num_rows)
    step(early, pool, rows)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(early, pool, rows)
    for _ in range(500):
        graph.replay()
    for _ in range(501):
        step(late, expected, rows)
    for layer, wanted in zip(pool.layers, expected.layers, strict=True):
        for name, view in layer.items():
            assert torch.equal(view, wanted[name])
