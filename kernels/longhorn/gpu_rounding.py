"""Stochastic rounding of 16-bit states in Triton, bit for bit `reference._round`. Kernels call `round_state`."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def _mix(x):
    """A bijection of uint32 (the hash `lowbias32` of C. Wellons and T. Ettinger)."""
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0xD35A2D97
    return x ^ (x >> 15)


@triton.jit
def rounding_key(b_seed, salt):
    """uint32 of a row's seed (int64) and a layer's salt (int32)."""
    low, high = b_seed.to(tl.uint32), (b_seed >> 32).to(tl.uint32)
    return _mix(low ^ _mix(high ^ _mix(salt.to(tl.uint32))))


@triton.jit
def round_state(b_h, b_key, o_d, o_n, N: tl.constexpr, dtype: tl.constexpr):
    """float32 -> `dtype`, bfloat16 or float16. o_d, o_n: channels and n; b_key: of `rounding_key`."""
    tl.static_assert(dtype == tl.bfloat16 or dtype == tl.float16)
    b_bits = b_h.to(tl.uint32, bitcast=True)
    if dtype == tl.bfloat16:
        # Both channels of a pair lie in one thread, which then computes their hash once.
        b_random = _mix((o_d // 2 * N + o_n).to(tl.uint32) ^ b_key)
        b_half = tl.where(o_d % 2 == 0, b_random & 0xFFFF, b_random >> 16)
        # Arithmetic makes NaNs of 0x7FFFFFFF, out of which a carry would make a zero.
        b_most = tl.minimum(b_bits.to(tl.int32, bitcast=True), 0x7FFE0000).to(tl.uint32, bitcast=True)
        return ((b_most + b_half) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    b_random = _mix((o_d * N + o_n).to(tl.uint32) ^ b_key)
    b_cut = ((b_bits + (b_random & 0x1FFF)) & 0xFFFFE000).to(tl.float32, bitcast=True)
    # Below 2^-14 the steps of float16 are 2^-24, whatever the exponent.
    b_scaled = tl.abs(b_h) * 16777216.0
    b_floor = tl.floor(b_scaled)
    b_up = b_scaled - b_floor > (b_random >> 8).to(tl.float32) * (1.0 / 16777216.0)
    b_small = (b_floor + b_up.to(tl.float32)) * (1.0 / 16777216.0)
    b_signed = b_small.to(tl.uint32, bitcast=True) | (b_bits & 0x80000000)
    b_cut = tl.where(b_scaled < 1024.0, b_signed.to(tl.float32, bitcast=True), b_cut)
    return tl.where((b_bits & 0x7F800000) != 0x7F800000, b_cut, b_h).to(dtype)
