"""Runs a Gluon kernel in Triton's interpreter: layouts are ignored, and shared memory is an array.

Layouts are the compiler's; what a kernel computes can be tested without a GPU. Warps that divide the work run as
threads, so that their barriers are tested too. A module is imported anew with this in the place of `gluon`.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

import importlib.util
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from threading import Condition
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import triton
import triton.language as tl
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier
from triton.runtime.interpreter import TensorHandle

Array = np.ndarray[Any, Any]


class _Shared:
    """A buffer of shared memory, NaN or -1 until it is written."""

    def __init__(self, dtype: Any, array: Array) -> None:
        self.dtype, self.array = dtype, array

    def load(self, layout: Any) -> Any:
        type_ = tl.block_type(self.dtype, list(self.array.shape))
        return tl.tensor(TensorHandle(self.array.copy(), self.dtype), type_)

    def store(self, value: Any) -> None:
        assert value.dtype == self.dtype
        assert value.handle.data.shape == self.array.shape
        self.array[...] = value.handle.data

    def index(self, i: Any) -> "_Shared":
        return _Shared(self.dtype, self.array[int(i)])

    def slice(self, start: int, length: int, dim: int = 0) -> "_Shared":
        index = [slice(None)] * self.array.ndim
        index[dim] = slice(int(start), int(start) + length)
        return _Shared(self.dtype, self.array[tuple(index)])


class _Barriers:
    """`mbarrier`: a word of shared memory counts the phases that have ended, each by one arrival."""

    MBarrierLayout = mbarrier.MBarrierLayout

    def __init__(self) -> None:
        self._arrival = Condition()

    def init(self, barrier: _Shared, count: int) -> None:
        assert count == 1
        barrier.array[0] = 0

    def arrive(self, barrier: _Shared, *, count: int) -> None:
        with self._arrival:
            barrier.array[0] += count
            self._arrival.notify_all()

    def wait(self, barrier: _Shared, phase: int) -> None:
        """Returns once the current phase, counted from 0, is not of the parity `phase`."""
        with self._arrival:
            has_ended = self._arrival.wait_for(lambda: barrier.array[0] % 2 != int(phase), timeout=10)
        assert has_ended, "no warp arrives at the barrier"


class _Language(ModuleType):
    """`gluon.language` by means of `triton.language`."""

    def __init__(self) -> None:
        super().__init__("language")
        for name, value in vars(gl).items():
            if name.endswith("Layout"):
                setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(tl, name)

    def arange(self, start: int, end: int, layout: Any) -> Any:
        return tl.arange(int(start), int(end))

    def full(self, shape: Any, value: float, dtype: Any, layout: Any) -> Any:
        return tl.full(shape, value, dtype)

    def convert_layout(self, value: Any, layout: Any) -> Any:
        return value

    def barrier(self) -> None:
        """Nothing: the warps of a part are one thread here."""

    def allocate_shared_memory(self, dtype: Any, shape: Any, layout: Any) -> _Shared:
        sizes = [int(size) for size in shape]
        return _Shared(dtype, np.full(sizes, *((np.nan, np.float32) if dtype.is_floating() else (-1, np.int32))))

    def warp_specialize(self, parts: Any, num_warps: Any, num_regs: Any) -> None:
        with ThreadPoolExecutor(len(parts)) as pool:
            done = [pool.submit(function, *args) for function, args in parts]
            # The part that fails first says why; one that waits for it gives up later.
            for future in as_completed(done):
                future.result()

    def inline_asm_elementwise(self, asm: str, constraints: str, args: Any, dtype: Any, **options: Any) -> Any:
        result = _INSTRUCTIONS[next(name for name in _INSTRUCTIONS if name in asm)](
            *(arg.handle.data for arg in args)
        )
        return tl.tensor(TensorHandle(result, dtype), tl.block_type(dtype, list(result.shape)))


def _bfloat16_words(low: Array, high: Array) -> Array:
    def rounded(x: Array) -> Array:
        bits = x.view(np.uint32)
        return bits + 0x7FFF + (bits >> 16 & 1) >> 16

    words: Array = (rounded(low) | rounded(high) << 16).view(np.int32)
    return words


def _float16_words(low: Array, high: Array) -> Array:
    low, high = (x.astype(np.float16).view(np.uint16).astype(np.uint32) for x in (low, high))
    words: Array = (low | high << 16).view(np.int32)
    return words


def _tensor_core_sums(*args: Array) -> Array:
    """mma.m16n8k8 in tf32: row 8w + r, column c are of lane 4r + c in warp w. First plus last of a lane's results.

    Where a thread's registers lie in the operands and the result: PTX ISA, "Matrix fragments for mma.m16n8k8".
    """
    cut = [(arg.view(np.uint32) & 0xFFFFE000).view(np.float32).reshape(4, 8, 4) for arg in args]
    h0, h1, h2, h3, q0, q1 = cut
    a = np.concatenate([np.concatenate([h0, h1], 2), np.concatenate([h2, h3], 2)], 1)
    b = np.concatenate([q0, q1], 2).transpose(0, 2, 1)
    c = a @ b
    sums: Array = (c[:, :8, 0::2] + c[:, 8:, 1::2]).reshape(32, 4)
    return sums


_INSTRUCTIONS: dict[str, Callable[..., Array]] = {
    "rcp.approx.ftz.f32": lambda x: 1 / x,
    "ex2.approx.ftz.f32": np.exp2,
    "cvt.rn.bf16x2.f32 $0, $2, $1": _bfloat16_words,
    "cvt.rn.f16x2.f32 $0, $2, $1": _float16_words,
    "{a, b, c, d}, {$1, $3, $2, $4}, {$5, $6}, {zero, zero, zero, zero}": _tensor_core_sums,
}


def _jit(fn: Any = None, **options: Any) -> Any:
    if fn is None:
        return partial(_jit, **options)
    kernel = triton.jit(fn, **options)
    # The interpreter knows compile-time arguments by the text `tl.constexpr`, and here it is `gl.constexpr`.
    rewritten = kernel.rewrite()
    rewritten.__annotations__ = dict.fromkeys(rewritten.__annotations__, "constexpr")
    return kernel


def load(*names: str) -> Any:
    """A copy of the last module named, with its Gluon kernels interpreted; it may import those before it."""
    gluon = ModuleType("gluon")
    gluon.jit, gluon.language = _jit, _Language()  # type: ignore[attr-defined]
    replaced: dict[str, Any] = {
        "triton.experimental": SimpleNamespace(gluon=gluon),
        "triton.experimental.gluon": gluon,
        "triton.experimental.gluon.language": gluon.language,
        "triton.experimental.gluon.language.nvidia.hopper": SimpleNamespace(mbarrier=_Barriers()),
    }
    for name in names:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with mock.patch.dict(sys.modules, replaced):
            spec.loader.exec_module(module)
        # The interpreter replaces the functions of `tl` where a kernel's module names it.
        module.tl = tl  # type: ignore[attr-defined]
        replaced[name] = module
    return module
