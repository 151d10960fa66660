"""Compiles kernels where their wrappers would launch them: needs no GPU, and a process that interprets none."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

TRITON_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}


def compiled_by(file: str, cache: Path) -> list[dict[str, Any]]:
    """What `file` prints as a script, one JSON object a line. Skips where triton cannot compile for NVIDIA."""
    # Without importing triton, which would settle whether this process interprets kernels.
    spec = importlib.util.find_spec("triton")
    if spec is None or not (Path(str(spec.origin)).parent / "backends" / "nvidia").is_dir():
        pytest.skip("triton has no nvidia backend here")
    root = str(Path(__file__).parents[2])
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join([root, env.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-P", file], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def intercept(capability: Callable[[], int], on_built: Callable[[str, Any], None]) -> None:
    """From now on a launch compiles for `capability()`; `on_built` gets the kernel's name and what came out."""
    from triton import compile as triton_compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource
    from triton.runtime.jit import JITFunction

    def compile_launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(kernel.params):
            value = values.pop(parameter.name)
            signature[parameter.name] = _type(value, parameter)
            if signature[parameter.name] == "constexpr":
                constants[parameter.name] = value
            elif _is_aligned(value) and not (
                parameter.do_not_specialize or parameter.do_not_specialize_on_alignment
            ):
                attributes[(index,)] = [["tt.divisibility", 16]]
        kind = GluonASTSource if kernel.is_gluon() else ASTSource
        # A Gluon kernel may take its number of warps as a constant too.
        options = values | {"num_warps": kwargs.get("num_warps", 4)}
        source = kind(kernel, signature, constants, attributes)
        on_built(
            kernel.__name__, triton_compile(source, target=GPUTarget("cuda", capability(), 32), options=options)
        )

    JITFunction.run = compile_launch


def _type(value: Any, parameter: Any) -> str:
    if parameter.is_constexpr or value is None:
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return f"*{TRITON_TYPES[value.dtype]}"
    if hasattr(value, "block_shape"):
        return f"tensordesc<{TRITON_TYPES[value.base.dtype]}{list(value.block_shape)},{value.layout!r}>"
    return "fp32" if isinstance(value, float) else "i32"


def _is_aligned(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.data_ptr() % 16 == 0
    return isinstance(value, int) and value % 16 == 0
