"""What the numba kernels share: compilation, the way of tensors into them, the layout of states. No maths.

Kernels take tensors as integers: the address of the first element, and the elements from one row to the
next where rows may lie apart. An integer crosses from Python into compiled code ten times faster than an
array, is never reference-counted, and other compiled code that calls kernels can keep whole models as
tables of integers. Kernels write to memory of the caller and allocate nothing.

Compiled kernels are cached beside their source, and compiled anew after any edit of a CPU kernel's file.
"""

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

F = TypeVar("F", bound=Callable[..., Any])
Floats = npt.NDArray[np.float32]

# Channels per block: the state of one block of one layer, [N, 64] float32, stays in L1 for a whole chunk.
BLOCK: Final = 64

# GNU OpenMP is the layer whose threads torch shares; the others are for platforms without it.
numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]  # type: ignore[attr-defined]


@lru_cache(maxsize=1)
def _cache_folder() -> str:
    """Where compiled kernels are kept: one folder for each state of all CPU kernels' sources.

    numba looks at the file of a kernel alone, and would run what it once inlined from other files for ever.
    """
    kernels = Path(__file__).parent
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(kernels.rglob("*cpu*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    name = f"remuda-numba-{digest.hexdigest()[:16]}"
    if numba.config.CACHE_DIR:  # type: ignore[attr-defined]
        return os.path.join(numba.config.CACHE_DIR, name)  # type: ignore[attr-defined]
    home = os.path.expanduser("~")
    for place, folder in ((kernels, kernels / "__pycache__"), (home, os.path.join(home, ".cache"))):
        if os.access(place, os.W_OK):
            return os.path.join(folder, name)
    # Not a shared one under a known name: what numba reads from its cache, it executes.
    private = tempfile.mkdtemp(prefix="remuda-numba-")
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    return private


def _compile(function: Callable[..., Any], **options: Any) -> Any:
    elsewhere = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    folder = _cache_folder()
    try:
        numba.config.CACHE_DIR = folder  # type: ignore[attr-defined]
        return numba.njit(cache=True, nogil=True, error_model="numpy", **options)(function)
    finally:
        numba.config.CACHE_DIR = elsewhere  # type: ignore[attr-defined]


def serial(function: F) -> F:
    """Compile for one thread. IEEE arithmetic as written: no reassociation; division by zero is inf."""
    return cast(F, _compile(function))


def any_order(function: F) -> F:
    """`serial`, but sums may be taken in any order, which vectorises them; NaN and infinity keep their meaning."""
    return cast(F, _compile(function, fastmath={"contract", "reassoc", "nsz", "arcp"}))


def parallel(function: F) -> F:
    """Compile with `prange` over threads. The cache keys by name: a kernel in both forms needs two names."""
    return cast(F, _compile(function, parallel=True))


def inlined(function: Callable[..., Any]) -> Any:
    """An operation of kernels, from `function(typing context, argument types) -> (signature, codegen)`."""
    return intrinsic(prefer_literal=True)(function)


def num_blocks(D: int) -> int:
    """Blocks of 64 channels that hold D channels."""
    return -(-D // BLOCK)


def to_blocks(canonical: torch.Tensor) -> torch.Tensor:
    """(..., D, N) -> (..., ceil(D/64), N, 64), channels innermost, channels from D on zero."""
    *lead, D, N = canonical.shape
    padded = torch.nn.functional.pad(canonical, (0, 0, 0, num_blocks(D) * BLOCK - D))
    return padded.view(*lead, num_blocks(D), BLOCK, N).transpose(-1, -2).contiguous()


def from_blocks(blocks: torch.Tensor, D: int) -> torch.Tensor:
    """(..., ceil(D/64), N, 64) -> (..., D, N)."""
    return blocks.transpose(-1, -2).flatten(-3, -2)[..., :D, :].contiguous()


def rows(x: torch.Tensor) -> tuple[int, int]:
    """(address, row stride) of a float32 view (rows, columns) whose columns are adjacent."""
    stride = x.stride()
    assert x.dtype is torch.float32
    assert stride[1] == 1 or x.shape[1] == 1
    return x.data_ptr(), stride[0]


def slots(state: torch.Tensor) -> tuple[int, int]:
    """(address, slot stride) of float32 states (slots, blocks, n, 64) that are contiguous inside a slot."""
    stride = state.stride()
    assert state.dtype is torch.float32
    assert stride[1:] == (state.shape[2] * BLOCK, BLOCK, 1)
    return state.data_ptr(), stride[0]


def address(x: torch.Tensor, dtype: torch.dtype) -> int:
    """Address of a contiguous tensor of `dtype`."""
    assert x.dtype is dtype
    assert x.is_contiguous()
    return x.data_ptr()


@lru_cache(maxsize=64)
def one_token_each(num_rows: int) -> torch.Tensor:
    """`cu_seqlens` of a decode batch: (num_rows + 1,) int32."""
    return torch.arange(num_rows + 1, dtype=torch.int32)


def _array_over(dtype: Any, context: Any, builder: Any, address: Any, count: Any) -> Any:
    """Inside an intrinsic: a flat array of `count` elements at an LLVM pointer, not reference-counted."""
    array_type = types.Array(dtype, 1, "C")
    size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(dtype)))
    array = make_array(array_type)(context, builder)  # type: ignore[no-untyped-call]
    data = builder.bitcast(address, context.get_data_type(dtype).as_pointer())
    layout = {"shape": [count], "strides": [size], "itemsize": size, "meminfo": None}
    populate_array(array, data=data, **layout)  # type: ignore[no-untyped-call]
    return array._getvalue()


def _view(dtype: Any) -> Any:
    def view(typingctx: Any, address: Any, offset: Any, count: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            base = builder.inttoptr(args[0], context.get_data_type(dtype).as_pointer())
            return _array_over(dtype, context, builder, builder.gep(base, [args[1]]), args[2])

        return types.Array(dtype, 1, "C")(types.intp, types.intp, types.intp), codegen

    return inlined(view)


def _stack(typingctx: Any, count: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        floats_type = ir.ArrayType(ir.FloatType(), count.literal_value)
        memory = cgutils.alloca_once(builder, floats_type)  # type: ignore[no-untyped-call]
        memory.align = 64
        size = context.get_constant(types.intp, count.literal_value)
        return _array_over(types.float32, context, builder, memory, size)

    return types.Array(types.float32, 1, "C")(count), codegen


# The array of `count` elements that starts `offset` elements after `address`: f(address, offset, count).
floats: Callable[[int, int, int], Floats] = _view(types.float32)
int32s: Callable[[int, int, int], npt.NDArray[np.int32]] = _view(types.int32)
flags: Callable[[int, int, int], npt.NDArray[np.bool_]] = _view(types.boolean)
# `count` (a constant) uninitialised float32 in the stack frame of the caller: f(count).
stack: Callable[[int], Floats] = inlined(_stack)


@serial
def clear(address: int, offset: int, count: int) -> None:
    """Zero `count` float32 from `offset` elements after `address`."""
    row = floats(address, offset, count)
    for i in range(count):
        row[i] = 0


@serial
def load_state(src: int, dst: int, is_fresh: bool, count: int) -> None:
    """Make the `count` float32 at `dst` those at `src`, or zero where `is_fresh`, whatever `src` holds."""
    if is_fresh:
        clear(dst, 0, count)
    elif src != dst:
        state, source = floats(dst, 0, count), floats(src, 0, count)
        for i in range(count):
            state[i] = source[i]
