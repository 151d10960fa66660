"""The numba kernels as other compiled code calls them, the threads they run on, and what they refuse."""

import sys
from pathlib import Path

import numba
import pytest
import torch

from remuda.kernels import cpu_jit
from remuda.kernels.conv import cpu as conv
from remuda.kernels.longhorn import cpu as longhorn
from remuda.kernels.norm import cpu as norm
from tests.kernels.harness import Conv, Longhorn, Pool, one


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _conv_then_norm(
    x: int,
    taps: int,
    state: int,
    slot_stride: int,
    bounds: int,
    slot: int,
    fresh: int,
    S: int,
    D: int,
    W: int,
    convolved: int,
    weight: int,
    normed: int,
) -> None:
    conv.convolve(x, D, taps, state, slot_stride, bounds, slot, slot, fresh, S, D, W, convolved)
    norm.add_norm_rows_serial(0, 0, convolved, D, weight, 0, 1e-5, True, S, D, normed)


def test_compiled_code_calls_kernels_on_addresses() -> None:
    D, W, S = 96, 4, 3
    x, weight, taps = torch.randn(S, D), torch.randn(D), conv.pack(torch.randn(D, 1, W), None)
    slots, fresh = torch.tensor([2, 0, 1], dtype=torch.int32), torch.tensor([False, True, False])
    bounds = torch.arange(S + 1, dtype=torch.int32)
    state = conv.from_canonical(Conv(D, W).states(3))
    wrapped = state.clone()
    expected = conv.step(x, taps, wrapped, slots, slots, fresh)
    convolved, normed = torch.empty(S, D), torch.empty(S, D)
    index = (bounds.data_ptr(), slots.data_ptr(), fresh.data_ptr())
    _conv_then_norm(
        x.data_ptr(),
        taps.data_ptr(),
        *cpu_jit.slots(state),
        *index,
        S,
        D,
        W,
        convolved.data_ptr(),
        weight.data_ptr(),
        normed.data_ptr(),
    )
    assert torch.equal(convolved, expected)
    assert torch.equal(state, wrapped)
    assert torch.equal(
        normed, norm.add_norm(None, expected, weight, None, 1e-5, is_rms=True, out_dtype=torch.float32)
    )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch brings another OpenMP")
def test_threads_are_those_of_openmp() -> None:
    Pool(Longhorn(65, 4), "cpu").run(Longhorn(65, 4).rows(2), one(2))
    assert numba.threading_layer() == "omp"


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    op = Longhorn(200, 16)
    outs = []
    before = numba.get_num_threads()
    for num_threads in (1, before):
        numba.set_num_threads(num_threads)
        outs.append(Pool(op, "cpu").run(op.rows(9), one(9)))
    assert torch.equal(outs[0], outs[1])


def test_tensors_that_kernels_would_misread_are_refused() -> None:
    x, weight = torch.randn(4, 8), torch.randn(8)
    for wrong in (x.double(), torch.randn(8, 4).T, torch.randn(4, 16)[:, ::2]):
        with pytest.raises(AssertionError):
            norm.add_norm(None, wrong, weight, None, 1e-5, is_rms=True, out_dtype=torch.float32)
    with pytest.raises(AssertionError):
        norm.add_norm(None, x, weight.double(), None, 1e-5, is_rms=True, out_dtype=torch.float32)
    state = torch.zeros(3, *longhorn.state_shape(8, 4))
    cpu_jit.slots(state)
    with pytest.raises(AssertionError):
        cpu_jit.slots(state.transpose(-1, -2))


@pytest.mark.parametrize("D", [1, 64, 65, 130])
def test_blocks_hold_zeros_beyond_the_channels(D: int) -> None:
    blocks = cpu_jit.to_blocks(torch.ones(2, D, 3))
    assert blocks.shape == (2, cpu_jit.num_blocks(D), 3, 64)
    assert blocks.sum() == 2 * D * 3


def test_compiled_kernels_find_a_private_cache_where_nothing_is_writable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(cpu_jit.os, "access", lambda path, mode: False)
    folder = Path(cpu_jit._cache_folder.__wrapped__())
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()


def test_an_edit_of_any_kernel_changes_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    (tmp_path / "linear").mkdir()
    for name in ("cpu_jit.py", "linear/cpu.py"):
        (tmp_path / name).write_text("a = 1")
    monkeypatch.setattr(cpu_jit, "__file__", str(tmp_path / "cpu_jit.py"))
    before = cpu_jit._cache_folder.__wrapped__()
    assert cpu_jit._cache_folder.__wrapped__() == before
    (tmp_path / "linear/cpu.py").write_text("a = 2")
    assert cpu_jit._cache_folder.__wrapped__() != before
    assert Path(before).parent == tmp_path / "__pycache__"
