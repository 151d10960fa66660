"""The Triton kernels of a fused decode step; `gpu_decode.py` chains them. One token a row, weights read once.

With IS_PDL a kernel may start while its predecessor ends (programmatic dependent launch, CUDA C++ guide 13.0,
section 4.5): until `gdc_wait` it touches weights and states only, which no kernel of the same step before it
writes.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from remuda.kernels.longhorn.gpu_rounding import round_state, rounding_key
from remuda.kernels.slots import PAD_SLOT

_PAD_SLOT = tl.constexpr(PAD_SLOT)


@triton.jit(do_not_specialize=["num_rows"])
def embed_kernel(p_tokens, p_embedding, p_residual, num_rows, M: tl.constexpr, BLOCK_M: tl.constexpr):
    """residual (B, M) = embedding[tokens]."""
    i_b = tl.program_id(0).to(tl.int64)
    o_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    b_token = tl.load(p_tokens + i_b).to(tl.int64)
    b_row = tl.load(p_embedding + b_token * M + o_m, mask=o_m < M)
    tl.store(p_residual + i_b * M + o_m, b_row.to(p_residual.dtype.element_ty), mask=o_m < M)


@triton.jit(do_not_specialize=["num_rows"])
def reduce_norm_kernel(
    p_partial, p_residual, p_weight, p_bias, p_out, num_rows, eps,
    M: tl.constexpr, BLOCK_M: tl.constexpr, NUM_PARTS: tl.constexpr,
    HAS_BIAS: tl.constexpr, IS_RMS: tl.constexpr, IS_PDL: tl.constexpr,
):  # fmt: skip
    """residual += sum of the parts (NUM_PARTS, B, M); out = norm(residual). NUM_PARTS may be 0."""
    if IS_PDL:
        gdc_launch_dependents()
    i_b = tl.program_id(0).to(tl.int64)
    o_m = tl.arange(0, BLOCK_M)
    m_m = o_m < M
    b_weight = tl.load(p_weight + o_m, mask=m_m, other=0.0).to(tl.float32)
    if IS_PDL:
        gdc_wait()
    p_row = p_residual + i_b * M + o_m
    b_value = tl.load(p_row, mask=m_m, other=0.0).to(tl.float32)
    if NUM_PARTS > 0:
        b_sum = tl.load(p_partial + i_b * M + o_m, mask=m_m, other=0.0).to(tl.float32)
        for i_part in tl.static_range(1, NUM_PARTS):
            b_sum += tl.load(p_partial + (i_part * num_rows + i_b) * M + o_m, mask=m_m, other=0.0)
        b_stored = (b_value + b_sum).to(p_residual.dtype.element_ty)
        tl.store(p_row, b_stored, mask=m_m)
        b_value = b_stored.to(tl.float32)
    if not IS_RMS:
        b_value = tl.where(m_m, b_value - tl.sum(b_value, 0) / M, 0.0)
    b_scale = tl.rsqrt(tl.sum(b_value * b_value, 0) / M + eps)
    b_out = b_value * b_scale * b_weight
    if HAS_BIAS:
        b_out += tl.load(p_bias + o_m, mask=m_m, other=0.0).to(tl.float32)
    tl.store(p_out + i_b * M + o_m, b_out.to(p_out.dtype.element_ty), mask=m_m)


@triton.jit(do_not_specialize=["num_rows"])
def gemm_kernel(
    p_a, p_w, p_bias, p_out, num_rows,
    N: tl.constexpr, K: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr, HAS_BIAS: tl.constexpr,
    IS_PDL: tl.constexpr,
):  # fmt: skip
    """out[s] (B, N) = a (B, K) @ w (N, K)^T over the s-th part of K; the bias goes to part 0.

    Computes the transpose, so that few rows fill the short side of the matrix instructions.
    """
    if IS_PDL:
        gdc_launch_dependents()
    i_b, i_n, i_s = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    PART_K: tl.constexpr = (K + SPLIT_K * BLOCK_K - 1) // (SPLIT_K * BLOCK_K) * BLOCK_K
    if IS_PDL:
        gdc_wait()
    o_b = (i_b * BLOCK_B + tl.arange(0, BLOCK_B)).to(tl.int64)
    o_n = (i_n * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    o_k = tl.arange(0, BLOCK_K)
    m_b, m_n = o_b < num_rows, o_n < N
    b_acc = tl.zeros((BLOCK_N, BLOCK_B), dtype=tl.float32)
    for i_k in range(0, PART_K, BLOCK_K):
        b_k = i_s * PART_K + i_k + o_k
        if K % (SPLIT_K * BLOCK_K) == 0 and N % BLOCK_N == 0:
            b_w = tl.load(p_w + o_n[:, None] * K + b_k[None, :])
            b_a = tl.load(p_a + o_b[:, None] * K + b_k[None, :], mask=m_b[:, None], other=0.0)
        else:
            m_k = (b_k < K)[None, :]
            b_w = tl.load(p_w + o_n[:, None] * K + b_k[None, :], mask=m_n[:, None] & m_k, other=0.0)
            b_a = tl.load(p_a + o_b[:, None] * K + b_k[None, :], mask=m_b[:, None] & m_k, other=0.0)
        b_acc = tl.dot(b_w, b_a.T, b_acc, input_precision="ieee")
    b_acc = b_acc.T
    if HAS_BIAS and i_s == 0:
        b_acc += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    p_tile = p_out + (i_s * num_rows + o_b[:, None]) * N + o_n[None, :]
    tl.store(p_tile, b_acc.to(p_out.dtype.element_ty), mask=m_b[:, None] & m_n[None, :])


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["p_src", "p_dst", "p_fresh"])
def conv_project_kernel(
    p_xz, p_packed, p_state, p_src, p_dst, p_fresh, p_w, p_x, p_partial, num_rows, stride_slot,
    D: tl.constexpr, W: tl.constexpr, P: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr, PART_C: tl.constexpr, IS_PDL: tl.constexpr,
):  # fmt: skip
    """x (B, D) = silu(conv of xz's first half), states moved on; partial[s] (B, P) = x @ w (P, D)^T over part s.

    BLOCK_P holds all of P, so each channel is convolved by one program.
    """
    if IS_PDL:
        gdc_launch_dependents()
    i_s, i_b = tl.program_id(0), tl.program_id(1)
    o_b = (i_b * BLOCK_B + tl.arange(0, BLOCK_B)).to(tl.int64)
    o_p = tl.arange(0, BLOCK_P)
    m_b = o_b < num_rows
    m_p = o_p < P
    b_src = tl.load(p_src + o_b, mask=m_b, other=_PAD_SLOT).to(tl.int64)
    b_dst = tl.load(p_dst + o_b, mask=m_b, other=_PAD_SLOT).to(tl.int64)
    m_past = tl.load(p_fresh + o_b, mask=m_b, other=1).to(tl.int1) == 0
    m_live = b_dst != _PAD_SLOT
    if IS_PDL:
        gdc_wait()
    b_acc = tl.zeros((BLOCK_B, BLOCK_P), dtype=tl.float32)
    for i_c in range(0, PART_C, BLOCK_C):
        o_c = i_s * PART_C + i_c + tl.arange(0, BLOCK_C)
        m_c = o_c < D
        b_w = tl.load(p_w + o_p[:, None] * D + o_c[None, :], mask=m_p[:, None] & m_c[None, :], other=0.0)
        m_tile = m_live[:, None] & m_c[None, :]
        b_now = tl.load(p_xz + o_b[:, None] * (2 * D) + o_c[None, :], mask=m_tile, other=0.0)
        b_y = tl.load(p_packed + W * D + o_c, mask=m_c, other=0.0)[None, :]
        p_from = p_state + b_src[:, None] * stride_slot + o_c[None, :]
        p_to = p_state + b_dst[:, None] * stride_slot + o_c[None, :]
        for w in tl.static_range(W - 1):
            b_past = tl.load(p_from + w * D, mask=m_tile & m_past[:, None], other=0.0)
            b_tap = tl.load(p_packed + w * D + o_c, mask=m_c, other=0.0)
            b_y = tl.fma(tl.broadcast_to(b_tap[None, :], (BLOCK_B, BLOCK_C)), b_past.to(tl.float32),
                         tl.broadcast_to(b_y, (BLOCK_B, BLOCK_C)))  # fmt: skip
            # The thread that has read a place writes it: both tiles have one layout.
            if w > 0:
                tl.store(p_to + (w - 1) * D, b_past, mask=m_tile)
        b_tap = tl.load(p_packed + (W - 1) * D + o_c, mask=m_c, other=0.0)
        b_y = tl.fma(tl.broadcast_to(b_tap[None, :], (BLOCK_B, BLOCK_C)), b_now.to(tl.float32),
                     tl.broadcast_to(b_y, (BLOCK_B, BLOCK_C)))  # fmt: skip
        if W > 1:
            tl.store(p_to + (W - 2) * D, b_now.to(p_state.dtype.element_ty), mask=m_tile)
        b_y = tl.where(m_tile, b_y / (1.0 + tl.exp(-b_y)), 0.0)
        b_x = b_y.to(p_x.dtype.element_ty)
        tl.store(p_x + o_b[:, None] * D + o_c[None, :], b_x, mask=m_b[:, None] & m_c[None, :])
        b_acc = tl.dot(b_x, b_w.T, b_acc, input_precision="ieee")
    p_tile = p_partial + (i_s * num_rows + o_b[:, None]) * P + o_p[None, :]
    tl.store(p_tile, b_acc, mask=m_b[:, None] & m_p[None, :])


@triton.jit(do_not_specialize_on_alignment=["p_src", "p_dst", "p_fresh"])
def conv_project_row_kernel(
    p_xz, p_packed, p_state, p_src, p_dst, p_fresh, p_w, p_x, p_partial, num_rows, stride_slot,
    D: tl.constexpr, W: tl.constexpr, P: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, IS_PDL: tl.constexpr,
):  # fmt: skip
    """`conv_project_kernel` for one row a program; with P = 0 the convolution alone."""
    if IS_PDL:
        gdc_launch_dependents()
    i_s = tl.program_id(0)
    i_b = tl.program_id(1).to(tl.int64)
    o_c = i_s * BLOCK_C + tl.arange(0, BLOCK_C)
    o_p = tl.arange(0, BLOCK_P)
    m_c, m_p = o_c < D, o_p < P
    if P > 0:
        b_w = tl.load(p_w + o_p[:, None] * D + o_c[None, :], mask=m_p[:, None] & m_c[None, :], other=0.0)
    b_src = tl.load(p_src + i_b).to(tl.int64)
    b_dst = tl.load(p_dst + i_b).to(tl.int64)
    m_past = tl.load(p_fresh + i_b) == 0
    m_tile = m_c & (b_dst != _PAD_SLOT)
    p_from = p_state + b_src * stride_slot + o_c
    p_to = p_state + b_dst * stride_slot + o_c
    b_y = tl.load(p_packed + W * D + o_c, mask=m_c, other=0.0)
    rows = ()
    for w in tl.static_range(W - 1):
        b_past = tl.load(p_from + w * D, mask=m_tile & m_past, other=0.0)
        b_y = tl.fma(tl.load(p_packed + w * D + o_c, mask=m_c, other=0.0), b_past.to(tl.float32), b_y)
        rows = rows + (b_past,)  # noqa: RUF005
    b_tap = tl.load(p_packed + (W - 1) * D + o_c, mask=m_c, other=0.0)
    if IS_PDL:
        gdc_wait()
    # A tile has fewer channels than threads, so several warps read a place that one of them writes.
    tl.debug_barrier()
    for w in tl.static_range(1, W - 1):
        tl.store(p_to + (w - 1) * D, rows[w], mask=m_tile)
    b_now = tl.load(p_xz + i_b * (2 * D) + o_c, mask=m_tile, other=0.0)
    if W > 1:
        tl.store(p_to + (W - 2) * D, b_now.to(p_state.dtype.element_ty), mask=m_tile)
    b_y = tl.fma(b_tap, b_now.to(tl.float32), b_y)
    b_x = tl.where(m_tile, b_y / (1.0 + tl.exp(-b_y)), 0.0).to(p_x.dtype.element_ty)
    tl.store(p_x + i_b * D + o_c, b_x, mask=m_c)
    if P > 0:
        b_sum = tl.sum(b_w.to(tl.float32) * b_x.to(tl.float32)[None, :], 1)
        tl.store(p_partial + (i_s * num_rows + i_b) * P + o_p, b_sum, mask=m_p)


@triton.jit
def reduce_kernel(
    p_partial, p_out, num_values,
    NUM_PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr, BLOCK: tl.constexpr, IS_PDL: tl.constexpr,
):  # fmt: skip
    """out (num_values,) = sum of the parts (NUM_PARTS, num_values)."""
    if IS_PDL:
        gdc_launch_dependents()
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if IS_PDL:
        gdc_wait()
    b_sum = _sum_parts(p_partial, o, o < num_values, num_values, NUM_PARTS, BLOCK_PARTS)
    tl.store(p_out + o, b_sum, mask=o < num_values)


@triton.jit
def _sum_parts(p_first, o, m, stride, NUM_PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr):
    """Values o (C,) of NUM_PARTS parts that lie `stride` apart, summed."""
    o_part = tl.arange(0, BLOCK_PARTS)
    p_parts = p_first + o_part[:, None] * stride + o[None, :]
    return tl.sum(tl.load(p_parts, mask=(o_part < NUM_PARTS)[:, None] & m[None, :], other=0.0), 0)


@triton.jit(
    do_not_specialize=["num_rows", "salt"],
    do_not_specialize_on_alignment=["p_src", "p_dst", "p_fresh", "p_seeds"],
)
def dt_step_kernel(
    p_projected, p_w, p_bias, p_x, p_xz, p_skip, p_h, p_src, p_dst, p_fresh, p_seeds, p_out,
    num_rows, stride_slot, salt, D: tl.constexpr, N: tl.constexpr, R: tl.constexpr,
    NUM_PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, IS_PDL: tl.constexpr,
):  # fmt: skip
    """dt_head, recurrence, skip and gate: y (B, D), the states from slots src to slots dst.

    projected (NUM_PARTS, B, R + 2N): parts of dt, k, q to be summed; NUM_PARTS is 1 unless BLOCK_B is.
    """
    if IS_PDL:
        gdc_launch_dependents()
    i_d, i_b = tl.program_id(0), tl.program_id(1)
    P: tl.constexpr = R + 2 * N
    DTYPE: tl.constexpr = p_x.dtype.element_ty
    o_b = (i_b * BLOCK_B + tl.arange(0, BLOCK_B)).to(tl.int64)
    o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    o_n, o_r = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_R)
    m_row, m_out, m_r = o_b < num_rows, o_d < D, o_r < R
    b_w = tl.load(p_w + o_d[:, None] * R + o_r[None, :], mask=m_out[:, None] & m_r[None, :], other=0.0)
    b_bias = tl.load(p_bias + o_d, mask=m_out, other=0.0).to(tl.float32)
    b_skip = tl.load(p_skip + o_d, mask=m_out, other=0.0).to(tl.float32)
    b_src = tl.load(p_src + o_b, mask=m_row, other=_PAD_SLOT).to(tl.int64)
    b_dst = tl.load(p_dst + o_b, mask=m_row, other=_PAD_SLOT).to(tl.int64)
    m_past = tl.load(p_fresh + o_b, mask=m_row, other=1).to(tl.int1) == 0
    m_live = b_dst != _PAD_SLOT
    m_d = m_live[:, None] & m_out[None, :]
    m_n = m_live[:, None] & (o_n < N)[None, :]
    m_tile = m_d[:, None, :] & m_n[:, :, None]
    o_tile = o_n[None, :, None] * D + o_d[None, None, :]
    p_from = p_h + b_src[:, None, None] * stride_slot + o_tile
    b_h = tl.load(p_from, mask=m_tile & m_past[:, None, None], other=0.0).to(tl.float32)
    if IS_PDL:
        gdc_wait()
    if BLOCK_B == 1:
        p_row = p_projected + i_b.to(tl.int64) * P
        b_r = _sum_parts(p_row, o_r, m_r, num_rows * P, NUM_PARTS, BLOCK_PARTS).to(DTYPE).to(tl.float32)
        b_k = _sum_parts(p_row + R, o_n, o_n < N, num_rows * P, NUM_PARTS, BLOCK_PARTS)[None, :]
        b_q = _sum_parts(p_row + R + N, o_n, o_n < N, num_rows * P, NUM_PARTS, BLOCK_PARTS)[None, :]
        b_dt = tl.sum(b_w.to(tl.float32) * b_r[None, :], 1)[None, :]
    else:
        # The matrix instruction wants 16 rows; those beyond BLOCK_B are zero and folded away.
        ROWS: tl.constexpr = max(BLOCK_B, 16)
        o_row = tl.arange(0, ROWS)
        m_dot = (o_row < BLOCK_B) & (i_b * BLOCK_B + o_row < num_rows)
        p_rows = p_projected + (i_b * BLOCK_B + o_row)[:, None].to(tl.int64) * P + o_r[None, :]
        b_r = tl.load(p_rows, mask=m_dot[:, None] & m_r[None, :], other=0.0).to(DTYPE)
        b_dt = tl.dot(b_r, b_w.T, input_precision="ieee")
        b_dt = tl.sum(tl.reshape(b_dt, (ROWS // BLOCK_B, BLOCK_B, BLOCK_D)), 0)
        b_k = tl.load(p_projected + o_b[:, None] * P + R + o_n[None, :], mask=m_n, other=0.0)
        b_q = tl.load(p_projected + o_b[:, None] * P + R + N + o_n[None, :], mask=m_n, other=0.0)
    b_dt = (b_dt + b_bias[None, :]).to(DTYPE).to(tl.float32)
    b_k, b_q = b_k.to(DTYPE).to(tl.float32), b_q.to(DTYPE).to(tl.float32)
    b_x = tl.load(p_x + o_b[:, None] * D + o_d[None, :], mask=m_d, other=0.0).to(tl.float32)
    b_z = tl.load(p_xz + o_b[:, None] * (2 * D) + D + o_d[None, :], mask=m_d, other=0.0).to(tl.float32)
    # As `_advance` of gpu.py, for a tile of rows.
    b_delta = 1.0 / (1.0 + tl.sum(b_k * b_k, 1)[:, None] + tl.exp(-b_dt))
    b_error = tl.fma(-b_k[:, :, None], b_h, b_x[:, None, :])
    b_h = tl.fma(b_delta[:, None, :] * b_k[:, :, None], b_error, b_h)
    b_y = tl.fma(tl.broadcast_to(b_skip[None, :], (BLOCK_B, BLOCK_D)), b_x, tl.sum(b_h * b_q[:, :, None], 1))
    b_y = tl.where(m_d, b_y * (b_z / (1.0 + tl.exp(-b_z))), 0.0)
    tl.store(p_out + o_b[:, None] * D + o_d[None, :], b_y.to(DTYPE), mask=m_row[:, None] & m_out[None, :])
    if p_seeds is None:
        b_new = b_h.to(p_h.dtype.element_ty)
    else:
        b_key = rounding_key(tl.load(p_seeds + o_b, mask=m_row, other=0), salt)
        b_new = round_state(
            b_h, b_key[:, None, None], o_d[None, None, :], o_n[None, :, None], N, p_h.dtype.element_ty
        )
    tl.store(p_h + b_dst[:, None, None] * stride_slot + o_tile, b_new, mask=m_tile)
