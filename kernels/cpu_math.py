"""exp and SiLU for numba kernels, inlined and branch-free so that the loops around them vectorise.

The same bits in a vector lane and in a scalar tail, in decode and in prefill: every operation is IEEE as
written, and every fused multiply-add is asked for by name.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from remuda.kernels.cpu_jit import inlined, serial

ZERO = np.float32(0)
ONE = np.float32(1)
TWO = np.float32(2)
LOG2_E = np.float32(1.4426950408889634)
# ln 2 in two parts, the first with nine bits, so that n times it is exact.
MINUS_LN2_HIGH = np.float32(-0.693359375)
MINUS_LN2_LOW = np.float32(2.12194440e-4)
# Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
ROUND = np.float32(12582912.0)
ROUND_BITS = 0x4B400000
# Outside these the result is inf and 0.
EXP_HIGH = np.float32(89.0)
EXP_LOW = np.float32(-87.0)
# Minimax of (exp(r) - 1 - r) / r^2 on |r| <= ln(2)/2: Cephes expf (Moshier), relative error 2e-7.
P0 = np.float32(1.9875691500e-4)
P1 = np.float32(1.3981999507e-3)
P2 = np.float32(8.3334519073e-3)
P3 = np.float32(4.1665795894e-2)
P4 = np.float32(1.6666665459e-1)
P5 = np.float32(5.0000001201e-1)


def _fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        float32 = ir.FloatType()
        prototype = ir.FunctionType(float32, [float32] * 3)
        return builder.call(builder.module.declare_intrinsic("llvm.fmuladd", [float32], prototype), args)

    return types.float32(types.float32, types.float32, types.float32), codegen


def _half_power_of_two(typingctx: Any, rounded: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integer = ir.IntType(32)
        bits = builder.bitcast(args[0], integer)
        exponent = builder.add(bits, ir.Constant(integer, 126 - ROUND_BITS))
        return builder.bitcast(builder.shl(exponent, ir.Constant(integer, 23)), ir.FloatType())

    return types.float32(types.float32), codegen


# a * b + c, rounded once where the processor can: one answer per machine, whatever code is around it.
fma: Callable[[np.float32, np.float32, np.float32], np.float32] = inlined(_fma)
# 2^(n-1) for the float32 n + ROUND, -126 < n <= 128, and 0 for n = -126.
half_power_of_two: Callable[[np.float32], np.float32] = inlined(_half_power_of_two)


@serial
def exp(x: np.float32) -> np.float32:
    """e^x within 1.5 ulp; inf above 88.7228, 0 below -86.99 (no subnormal results), NaN for NaN."""
    x = EXP_HIGH if x > EXP_HIGH else x
    x = EXP_LOW if x < EXP_LOW else x
    rounded = fma(x, LOG2_E, ROUND)
    n = rounded - ROUND
    r = fma(n, MINUS_LN2_LOW, fma(n, MINUS_LN2_HIGH, x))
    p = fma(fma(fma(fma(fma(P0, r, P1), r, P2), r, P3), r, P4), r, P5)
    return (fma(p, r * r, r) + ONE) * half_power_of_two(rounded) * TWO


@serial
def silu(x: np.float32) -> np.float32:
    """x * sigmoid(x); -0 below -88.7."""
    return x / (ONE + exp(-x))
