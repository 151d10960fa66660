"""What `gpu_scan` does with one tile, 32 tokens of 32 channels: prepare, scan, finish; and the layouts for it.

The sums over n, which end in 16-bit outputs, are products of tensor cores, which cut the state to 11 bits there.
"""

# Kernels know tuples that grow, but no unpacking.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"
# ruff: noqa: RUF005

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

TILE_D = gl.constexpr(32)
TILE_T = gl.constexpr(32)
_LOG2_E = gl.constexpr(1.4426950408889634)
# A tensor core cuts float32 operands to 11 bits, which takes 3.5e-4 off the sums over n on average. The gate makes
# up for that: the sigmoid's 1 + exp(-z) is computed times this, less than 1.
_CUT = gl.constexpr(1 - 3.5e-4)
_LOG2_CUT = gl.constexpr(-5.0503e-4)

# Channels lie in shared memory as 16 even ones, then 16 odd ones: the halves of 32-bit words. Element bit by bit,
# x and delta (channel, token) have four tokens of one channel in 16 bytes, y (token, channel) has 8 channels of
# four tokens in 128. What is added to the plain order of bits keeps both sides free of bank conflicts.
IN = gl.constexpr(
    gl.SharedLinearLayout([[0, 1], [0, 2], [1, 0], [2, 0], [4, 0], [10, 0], [16, 0], [1, 4], [0, 8], [0, 16]])
)
OUT = gl.constexpr(
    gl.SharedLinearLayout([[0, 1], [0, 2], [0, 4], [1, 0], [2, 0], [2, 8], [0, 16], [4, 0], [8, 0], [16, 0]])
)
# Words of k (token, word), two tokens in 16 bytes.
PAIRS = gl.constexpr(gl.SharedLinearLayout([[0, 1], [1, 0], [0, 2], [0, 4], [2, 0], [4, 0], [8, 0], [16, 0]]))
PLAIN = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
# Of the warps that scan: the state (32 channels, n // 4; n % 4 are four tensors), 8 rows of it a warp, eight
# tokens of each channel, the words of k or q of four tokens.
STATE = gl.constexpr(gl.BlockedLayout([1, 1], [8, 4], [4, 1], [1, 0]))
_BY_WARP = gl.constexpr(gl.BlockedLayout([1, 1, 1], [1, 8, 4], [4, 1, 1], [2, 1, 0]))
_TOKENS = gl.constexpr(gl.SliceLayout(1, gl.BlockedLayout([1, 1, 8], [8, 4, 1], [4, 1, 1], [2, 1, 0])))
_KEY = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 1], [1, 0], [2, 0]], [[0, 2], [0, 4], [0, 0], [0, 0], [0, 0]], [[0, 0], [0, 0]], [], [4, 8]
    )
)
_QUERY = gl.constexpr(
    gl.DistributedLinearLayout([], [[0, 2], [0, 4], [0, 1], [1, 0], [2, 0]], [[0, 0], [0, 0]], [], [4, 8])
)
# Of the others: a thread has four words of one token, or two of k and of q.
ROWS = gl.constexpr(gl.BlockedLayout([1, 4], [8, 4], [4, 1], [1, 0]))
KEYS = gl.constexpr(gl.BlockedLayout([1, 2], [8, 4], [4, 1], [1, 0]))


@gluon.jit
def _reciprocal(x):
    return gl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def _exp2(x):
    return gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def _halves(words, dtype: gl.constexpr):
    """Words of two 16-bit values -> the low ones and the high ones, in float32."""
    if dtype == gl.bfloat16:
        low = (words << 16).to(gl.float32, bitcast=True)
        high = (words & -65536).to(gl.float32, bitcast=True)
    else:
        low = words.to(gl.int16).to(gl.float16, bitcast=True).to(gl.float32)
        high = (words >> 16).to(gl.int16).to(gl.float16, bitcast=True).to(gl.float32)
    return low, high


@gluon.jit
def _words(low, high, dtype: gl.constexpr):
    """The inverse of `_halves`, rounded to nearest."""
    if dtype == gl.bfloat16:
        return gl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [low, high], dtype=gl.int32, is_pure=True, pack=1
        )
    else:
        return gl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [low, high], dtype=gl.int32, is_pure=True, pack=1
        )


@gluon.jit
def _unstack(x, T: gl.constexpr):
    """(M, T) with T in the registers of a thread -> tuple of T tensors (M,)."""
    if T == 1:
        return (x.reshape([x.shape[0]]),)
    else:
        first, second = gl.split(x.reshape([x.shape[0], 2, T // 2]).permute([0, 2, 1]))
        return _unstack(first, T // 2) + _unstack(second, T // 2)


@gluon.jit
def _operand(b_q):
    """(token of four, (n // 4, n // 2 % 2)) -> (32, n // 4): 8 rows (token, n // 2 % 2) for each warp."""
    b_q = b_q.reshape([4, 4, 2]).permute([0, 2, 1]).reshape([8, 4])
    b_q = gl.convert_layout(b_q, gl.SliceLayout(0, _BY_WARP))[None, :, :]
    return gl.convert_layout(b_q.broadcast_to([4, 8, 4]).reshape([32, 4]), STATE)


@gluon.jit
def _load_eight(s_x, s_delta, g: gl.constexpr):
    """x and delta of the tokens [8g, 8g + 8) of a tile."""
    b_x = s_x.slice(8 * g, 8, dim=1).load(_TOKENS)
    b_delta = s_delta.slice(8 * g, 8, dim=1).load(_TOKENS)
    return _unstack(b_x, 8), _unstack(b_delta, 8)


@gluon.jit
def _load_four(s_k, s_q, g: gl.constexpr, dtype: gl.constexpr):
    """k of each of the tokens [4g, 4g + 4) of a tile, and the words' halves of q of all."""
    low, high = _halves(s_k.slice(4 * g, 4).load(_KEY), dtype)
    lows = _unstack(low.reshape([4, 4, 2]).permute([1, 0, 2]).reshape([4, 8]), 8)
    highs = _unstack(high.reshape([4, 4, 2]).permute([1, 0, 2]).reshape([4, 8]), 8)
    keys = ()
    for i in gl.static_range(4):
        keys = keys + ((lows[2 * i], highs[2 * i], lows[2 * i + 1], highs[2 * i + 1]),)
    low, high = _halves(s_q.slice(4 * g, 4).load(_QUERY), dtype)
    return keys, _operand(low), _operand(high)


@gluon.jit
def _sums(h0, h1, h2, h3, q_low, q_high):
    """sum_n h*q by the tensor cores: (32, 4), where column i is right if the state is that of token i of the four.

    A warp multiplies 16 rows (n // 2 % 2, channel), 8 deep (n % 2, n // 4), by 8 columns, the q of (token of the
    four, n // 2 % 2). Of a thread's four products the first and the last have n // 2 % 2 alike.
    """
    return gl.inline_asm_elementwise(
        """
        {
            .reg .f32 a, b, c, d, zero;
            mov.f32 zero, 0f00000000;
            mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32
                {a, b, c, d}, {$1, $3, $2, $4}, {$5, $6}, {zero, zero, zero, zero};
            add.f32 $0, a, d;
        }
        """,
        "=r,r,r,r,r,r,r", [h0, h1, h2, h3, q_low, q_high], dtype=gl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def _advance(h, b_x, b_delta, b_k):
    """h + delta*k*(x - k*h) for one of a thread's four n; x, delta: (32,), k: (4,)."""
    b_x = gl.convert_layout(b_x, gl.SliceLayout(1, STATE))[:, None]
    b_delta = gl.convert_layout(b_delta, gl.SliceLayout(1, STATE))[:, None]
    b_k = gl.convert_layout(b_k, gl.SliceLayout(0, STATE))[None, :]
    return gl.fma(b_delta * b_k, gl.fma(b_k * -1.0, h, b_x), h)


@gluon.jit
def scan_tile(h0, h1, h2, h3, s_x, s_delta, s_k, s_q, s_y, dtype: gl.constexpr):
    """A tile's tokens: the state's new values; the sums over n go into s_y."""
    o_token = gl.arange(0, 4, gl.SliceLayout(0, STATE))[None, :]
    # Read well ahead, since the compiler reads as late as it may: before the write of y that follows here.
    next_eight = _load_eight(s_x, s_delta, 0)
    next_four, later_four = _load_four(s_k, s_q, 0, dtype), _load_four(s_k, s_q, 1, dtype)
    for g in gl.static_range(TILE_T // 4):
        keys, q_low, q_high = next_four
        next_four = later_four
        if g + 2 < TILE_T // 4:
            later_four = _load_four(s_k, s_q, g + 2, dtype)
        if g % 2 == 0:
            xs, deltas = next_eight
        if g % 2 == 0 and g + 2 < TILE_T // 4:
            next_eight = _load_eight(s_x, s_delta, g // 2 + 1)
        b_y = gl.full([32, 4], 0.0, gl.float32, STATE)
        for i in gl.static_range(4):
            b_x, b_delta = xs[g % 2 * 4 + i], deltas[g % 2 * 4 + i]
            h0 = _advance(h0, b_x, b_delta, keys[i][0])
            h1 = _advance(h1, b_x, b_delta, keys[i][1])
            h2 = _advance(h2, b_x, b_delta, keys[i][2])
            h3 = _advance(h3, b_x, b_delta, keys[i][3])
            b_y = gl.where(o_token == i, _sums(h0, h1, h2, h3, q_low, q_high), b_y)
        s_y.slice(4 * g, 4).store(b_y.permute([1, 0]))
    return h0, h1, h2, h3


@gluon.jit
def prepare(b_x, b_dt, b_k, b_q, s_x, s_delta, s_k, s_q, dtype: gl.constexpr):
    """A tile's x and delta in float32, words of k and q into shared memory. Zeros leave the state as it is.

    What all lanes read alike costs the return path its bytes times 32, so k and q stay in 16 bits.
    """
    k_low, k_high = _halves(b_k, dtype)
    b_norm = 1.0 + gl.sum(gl.fma(k_low, k_low, k_high * k_high), 1)
    b_norm = gl.convert_layout(b_norm, gl.SliceLayout(1, ROWS))[:, None]
    x_low, x_high = _halves(b_x, dtype)
    dt_low, dt_high = _halves(b_dt, dtype)
    s_x.slice(0, 16).store(x_low.permute([1, 0]))
    s_x.slice(16, 16).store(x_high.permute([1, 0]))
    s_delta.slice(0, 16).store(_reciprocal(b_norm + _exp2(dt_low * -_LOG2_E)).permute([1, 0]))
    s_delta.slice(16, 16).store(_reciprocal(b_norm + _exp2(dt_high * -_LOG2_E)).permute([1, 0]))
    s_k.store(b_k)
    s_q.store(b_q)


@gluon.jit
def _gate(b_y, b_x, b_z, b_skip):
    """(y / _CUT + skip*x) * silu(z)"""
    b_silu = b_z * _reciprocal(_exp2(b_z * -_LOG2_E + _LOG2_CUT) + _CUT)
    return gl.fma(b_skip * _CUT, b_x, b_y) * b_silu


@gluon.jit
def finish(s_y, b_x, b_z, skip_low, skip_high, p_out, m_t, dtype: gl.constexpr):
    """Skip and gate of a tile; rows without m_t are not written."""
    x_low, x_high = _halves(b_x, dtype)
    z_low, z_high = _halves(b_z, dtype)
    b_low = _gate(s_y.slice(0, 16, dim=1).load(ROWS), x_low, z_low, skip_low)
    b_high = _gate(s_y.slice(16, 16, dim=1).load(ROWS), x_high, z_high, skip_high)
    gl.store(p_out, _words(b_low, b_high, dtype), mask=m_t)
