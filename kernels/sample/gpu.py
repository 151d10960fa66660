"""Sampling over a table of slots in Triton, two launches whose grids depend on the number of rows alone.

The first goes over the logits in blocks, adjusts the rows that ask for it and leaves a few numbers a block; the
second, a program per row, draws from these and one block, or, where there are filters, finds what they keep first.
The order of all sums is the same for any number of rows, so a row's token does not depend on its neighbours.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, attr-defined"

import torch
import triton
import triton.language as tl
from torch import Tensor

from remuda.kernels.sample import table as words
from remuda.kernels.sample.gpu_filter import filter_row, last_kept, load_block, take_likeliest, to_key
from remuda.kernels.sample.table import SamplingTable

_TEMPERATURE, _TOP_P, _MIN_P = (tl.constexpr(i) for i in (words.TEMPERATURE, words.TOP_P, words.MIN_P))
_REPETITION, _PRESENCE = tl.constexpr(words.REPETITION), tl.constexpr(words.PRESENCE)
_FREQUENCY, _TOP_K = tl.constexpr(words.FREQUENCY), tl.constexpr(words.TOP_K)
_MIN_TOKENS, _KEY, _FLAGS = tl.constexpr(words.MIN_TOKENS), tl.constexpr(words.KEY), tl.constexpr(words.FLAGS)
_NUM_BIAS, _NUM_HELD = tl.constexpr(words.NUM_BIAS), tl.constexpr(words.NUM_HELD)
_BIAS_IDS, _BIAS_VALUES = tl.constexpr(words.BIAS_IDS), tl.constexpr(words.BIAS_VALUES)
_HELD_IDS, _WORDS = tl.constexpr(words.HELD_IDS), tl.constexpr(words.WORDS)
_GREEDY, _FILTERED = tl.constexpr(words.GREEDY), tl.constexpr(words.FILTERED)
_PENALISED, _BIASED = tl.constexpr(words.PENALISED), tl.constexpr(words.BIASED)
_HELD, _IN_PROMPT = tl.constexpr(words.HELD), tl.constexpr(words.IN_PROMPT)
_GUIDED = tl.constexpr(words.GUIDED)
_ADJUSTED = tl.constexpr(words.PENALISED | words.BIASED | words.HELD | words.GUIDED)

_LOG2_E = tl.constexpr(1.4426950408889634)
# What the first launch leaves of a block: its largest logit (NaN where one is not finite), the id of that,
# the mass relative to it, and the least finite logit. Of rows with filters also the largest of each group of ids.
_NUM_PARTS = tl.constexpr(4)
# Ids in a block. The filters stop going over the row once this many ids are left to decide on.
_BLOCK = 4096
# So that four programs of the first launch share a multiprocessor.
_SCAN_REGISTERS = 64
_SCAN_WARPS, _DRAW_WARPS, _MARK_WARPS = 8, 16, 4
_STAGES = tl.constexpr(3)
# Ids of a list, or of prompts, that a program takes at a time.
_LIST = 256


@triton.jit
def _word(p_packed, b_slot, I_WORD: tl.constexpr):
    return tl.load(p_packed + b_slot * _WORDS + I_WORD)


@triton.jit
def _float_word(p_packed, b_slot, I_WORD: tl.constexpr):
    return tl.load(p_packed + b_slot * _WORDS + I_WORD).to(tl.float32, bitcast=True)


@triton.jit
def _adjust(
    b_row, p_packed, p_counts, p_masks, p_work, b_slot, b_flags, b_num_tokens, i_block,
    V: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    """One block of logits (BLOCK,) after penalties, biases, holds and mask; `p_work` gets it too."""
    o_v = i_block * BLOCK + tl.arange(0, BLOCK)
    m_v = o_v < V
    if b_flags & _GUIDED:
        # Before all else, which saves registers: nothing that follows brings a masked id back.
        b_bits = tl.load(p_masks + b_slot * ((V + 31) // 32) + o_v // 32, mask=m_v, other=0)
        b_row = tl.where(((b_bits >> (o_v % 32)) & 1) != 0, b_row, float("-inf"))
    if b_flags & _PENALISED:
        b_count = tl.load(p_counts + b_slot * V + o_v, mask=m_v, other=0)
        b_drawn = b_count & ~_IN_PROMPT
        b_penalty = _float_word(p_packed, b_slot, _REPETITION)
        b_penalised = tl.where(b_row > 0, tl.div_rn(b_row, tl.zeros_like(b_row) + b_penalty), b_row * b_penalty)
        b_row = tl.where(b_count != 0, b_penalised, b_row)
        b_once = tl.where(b_drawn > 0, _float_word(p_packed, b_slot, _PRESENCE), 0.0)
        b_row -= _float_word(p_packed, b_slot, _FREQUENCY) * b_drawn.to(tl.float32) + b_once
    tl.store(p_work + o_v, b_row, mask=m_v)
    # The lists name ids in any order, so other threads change what this one stored.
    tl.debug_barrier()
    if b_flags & _BIASED:
        b_num = _word(p_packed, b_slot, _NUM_BIAS)
        for i_first in range(0, b_num, LIST):
            o_n = i_first + tl.arange(0, LIST)
            b_ids = tl.load(p_packed + b_slot * _WORDS + _BIAS_IDS + o_n, mask=o_n < b_num, other=V)
            m_n = (b_ids < V) & (b_ids // BLOCK == i_block)
            p_bias = p_packed + b_slot * _WORDS + _BIAS_VALUES + o_n
            b_bias = tl.load(p_bias, mask=m_n, other=0).to(tl.float32, bitcast=True)
            tl.store(p_work + b_ids, tl.load(p_work + b_ids, mask=m_n, other=0.0) + b_bias, mask=m_n)
        tl.debug_barrier()
    if ((b_flags & _HELD) != 0) & (b_num_tokens < _word(p_packed, b_slot, _MIN_TOKENS)):
        b_num = _word(p_packed, b_slot, _NUM_HELD)
        for i_first in range(0, b_num, LIST):
            o_n = i_first + tl.arange(0, LIST)
            b_ids = tl.load(p_packed + b_slot * _WORDS + _HELD_IDS + o_n, mask=o_n < b_num, other=V)
            m_n = (b_ids < V) & (b_ids // BLOCK == i_block)
            tl.store(p_work + b_ids, tl.full((LIST,), float("-inf"), tl.float32), mask=m_n)
        tl.debug_barrier()
    return load_block(p_work, i_block, V, WIDTH, BLOCK)


@triton.jit
def _scan_kernel(
    p_logits, p_slots, p_packed, p_num_tokens, p_counts, p_masks, p_work, p_parts, p_groups, stride_logits,
    stride_work,
    V: tl.constexpr, WIDTH: tl.constexpr, NUM_BLOCKS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
    LIST: tl.constexpr,
):  # fmt: skip
    i_block = tl.program_id(0)
    i_r = tl.program_id(1).to(tl.int64)
    b_slot = tl.load(p_slots + i_r).to(tl.int64)
    if b_slot >= 0:
        o_v = i_block * BLOCK + tl.arange(0, BLOCK)
        b_row = load_block(p_logits + i_r * stride_logits, i_block, V, WIDTH, BLOCK)
        b_flags = _word(p_packed, b_slot, _FLAGS)
        b_bad = tl.sum(((o_v < V) & ~(tl.abs(b_row) < float("inf"))).to(tl.int32), 0)
        if b_flags & _ADJUSTED:
            b_num_tokens = tl.load(p_num_tokens + b_slot)
            b_row = _adjust(
                b_row, p_packed, p_counts, p_masks, p_work + i_r * stride_work, b_slot, b_flags, b_num_tokens,
                i_block, V, WIDTH, BLOCK, LIST,
            )  # fmt: skip
        b_top, b_id = tl.max(b_row, 0, return_indices=True)
        b_mass = 0.0
        b_least = 0.0
        if (b_flags & _GREEDY) == 0:
            b_scale = _scale(p_packed, b_slot)
            # A block without any finite logit has no mass.
            b_mass = tl.sum(tl.exp2((b_row - tl.where(tl.abs(b_top) < float("inf"), b_top, 0.0)) * b_scale), 0)
            if b_flags & _FILTERED:
                b_least = tl.min(tl.where(b_row > float("-inf"), b_row, float("inf")), 0)
                o_n = i_block * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
                b_largest = tl.max(tl.reshape(b_row, (BLOCK // GROUP, GROUP)), 1)
                tl.store(p_groups + i_r * BLOCK + o_n, b_largest)
        p_part = p_parts + (i_r * _NUM_PARTS) * NUM_BLOCKS + i_block
        tl.store(p_part, tl.where(b_bad > 0, float("nan"), b_top))
        tl.store(p_part + NUM_BLOCKS, (i_block * BLOCK + b_id).to(tl.float32, bitcast=True))
        tl.store(p_part + 2 * NUM_BLOCKS, b_mass)
        tl.store(p_part + 3 * NUM_BLOCKS, b_least)


@triton.jit
def _scale(p_packed, b_slot):
    """What a difference of logits is multiplied by to be the exponent of 2."""
    return tl.div_rn(_LOG2_E, _float_word(p_packed, b_slot, _TEMPERATURE))


@triton.jit
def _mix64(b_value):
    """SplitMix64's bijection of uint64 (Steele et al. 2014)."""
    b_value += 0x9E3779B97F4A7C15
    b_value = (b_value ^ (b_value >> 30)) * 0xBF58476D1CE4E5B9
    b_value = (b_value ^ (b_value >> 27)) * 0x94D049BB133111EB
    return b_value ^ (b_value >> 31)


@triton.jit
def _uniform(p_packed, p_num_tokens, b_slot):
    """A float64 in [0, 1) that depends on the slot's key and its number of tokens alone."""
    b_low = _word(p_packed, b_slot, _KEY).to(tl.uint32, bitcast=True).to(tl.uint64)
    b_high = _word(p_packed, b_slot, _KEY + 1).to(tl.uint32, bitcast=True).to(tl.uint64)
    b_count = tl.load(p_num_tokens + b_slot).to(tl.uint64)
    b_bits = _mix64((b_low | (b_high << 32)) ^ _mix64(b_count))
    return (b_bits >> 11).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def _kept_weights(
    p_row, i_block, b_top, b_scale, b_value, b_last, b_min_p,
    V: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What the logits of a block weigh in the draw, (BLOCK,) float32; 0 where a filter cut them."""
    b_row = load_block(p_row, i_block, V, WIDTH, BLOCK)
    o_v = i_block * BLOCK + tl.arange(0, BLOCK)
    b_weight = tl.exp2((b_row - b_top) * b_scale)
    m_kept = (b_row > b_value) | ((b_row == b_value) & (o_v <= b_last))
    return tl.where(m_kept & (b_weight >= b_min_p), b_weight, 0.0)


@triton.jit
def _pick_block(b_masses, b_uniform, PARTS: tl.constexpr):
    """The block that the draw falls into, the mass before it, and the mass that the draw must pass, float64."""
    o_n = tl.arange(0, PARTS)
    b_sums = tl.cumsum(b_masses, 0)
    b_goal = b_uniform * tl.max(b_sums, 0)
    # The product may round up to the whole, and then the last of some mass is it.
    i_block = tl.minimum(tl.sum((b_sums <= b_goal).to(tl.int32), 0), tl.max(tl.where(b_masses > 0, o_n, 0), 0))
    return i_block, tl.sum(tl.where(o_n < i_block, b_masses, 0.0), 0), b_goal


@triton.jit
def _weigh_filtered(
    p_row, p_groups, p_left, p_packed, b_slot, b_uniform, b_top, b_least, b_scale, b_masses,
    V: tl.constexpr, WIDTH: tl.constexpr, NUM_BLOCKS: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """What the logits that the draw falls among weigh, their ids, the mass before them and that to pass."""
    b_min_p = _float_word(p_packed, b_slot, _MIN_P)
    b_top_k, b_top_p = _word(p_packed, b_slot, _TOP_K), _float_word(p_packed, b_slot, _TOP_P)
    b_whole = tl.sum(b_masses, 0)
    b_low, b_left, o_v, is_fit = take_likeliest(
        p_row, p_groups, p_left, b_top_k, b_top_p, b_top, to_key(b_least), b_scale, b_whole,
        V, NUM_BLOCKS, BLOCK, PARTS,
    )  # fmt: skip
    b_weight = tl.exp2((b_left - b_top) * b_scale)
    b_before = b_whole * 0.0
    b_goal = b_before
    if is_fit:
        b_value, b_num_kept, b_equal = filter_row(
            p_row, p_left, b_left, b_top_k, b_top_p, b_top, b_low, b_scale, b_whole,
            V, WIDTH, NUM_BLOCKS, BLOCK, True,
        )  # fmt: skip
        m_equal = b_left == b_value
        m_kept = (b_left > b_value) | (m_equal & (tl.cumsum(m_equal.to(tl.int32), 0) <= b_num_kept))
        b_weight = tl.where(m_kept & (b_weight >= b_min_p), b_weight, 0.0)
        b_goal = b_uniform * tl.sum(b_weight.to(tl.float64), 0)
    else:
        b_value, b_num_kept, b_equal = filter_row(
            p_row, p_left, b_left, b_top_k, b_top_p, b_top, b_low, b_scale, b_whole,
            V, WIDTH, NUM_BLOCKS, BLOCK, False,
        )  # fmt: skip
        b_last = V
        if b_num_kept < b_equal:
            b_last = last_kept(p_row, b_value, b_num_kept, V, WIDTH, NUM_BLOCKS, BLOCK)
        for i_block in tl.range(0, NUM_BLOCKS, num_stages=_STAGES):
            b_weight = _kept_weights(p_row, i_block, b_top, b_scale, b_value, b_last, b_min_p, V, WIDTH, BLOCK)
            b_masses = tl.where(tl.arange(0, PARTS) == i_block, tl.sum(b_weight, 0).to(tl.float64), b_masses)
        i_picked, b_before, b_goal = _pick_block(b_masses, b_uniform, PARTS)
        b_weight = _kept_weights(p_row, i_picked, b_top, b_scale, b_value, b_last, b_min_p, V, WIDTH, BLOCK)
        o_v = i_picked * BLOCK + tl.arange(0, BLOCK)
    return b_weight, o_v, b_before, b_goal


@triton.jit
def _draw(
    p_row, p_groups, p_left, p_packed, b_slot, b_flags, b_uniform, b_tops, b_top, p_part,
    V: tl.constexpr, WIDTH: tl.constexpr, NUM_BLOCKS: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The first id whose cumulative mass passes `b_uniform` of the whole."""
    o_n = tl.arange(0, PARTS)
    b_scale = _scale(p_packed, b_slot)
    b_masses = tl.load(p_part + 2 * NUM_BLOCKS + o_n, mask=o_n < NUM_BLOCKS, other=0.0)
    b_masses = (b_masses * tl.exp2((b_tops - b_top) * b_scale)).to(tl.float64)
    if b_flags & _FILTERED:
        b_least = tl.min(tl.load(p_part + 3 * NUM_BLOCKS + o_n, mask=o_n < NUM_BLOCKS, other=float("inf")), 0)
        b_weight, o_v, b_before, b_goal = _weigh_filtered(
            p_row, p_groups, p_left, p_packed, b_slot, b_uniform, b_top, b_least, b_scale, b_masses,
            V, WIDTH, NUM_BLOCKS, BLOCK, PARTS,
        )  # fmt: skip
    else:
        i_block, b_before, b_goal = _pick_block(b_masses, b_uniform, PARTS)
        b_weight = tl.exp2((load_block(p_row, i_block, V, WIDTH, BLOCK) - b_top) * b_scale)
        o_v = i_block * BLOCK + tl.arange(0, BLOCK)
    b_sums = b_before + tl.cumsum(b_weight.to(tl.float64), 0)
    o_b = tl.arange(0, BLOCK)
    b_index = tl.minimum(tl.sum((b_sums <= b_goal).to(tl.int32), 0), tl.max(tl.where(b_weight > 0, o_b, 0), 0))
    return tl.sum(tl.where(o_b == b_index, o_v, 0), 0)


@triton.jit
def _draw_kernel(
    p_logits, p_slots, p_packed, p_num_tokens, p_last_token, p_counts, p_work, p_parts, p_groups, p_left,
    p_tokens, p_healthy, stride_logits, stride_work,
    V: tl.constexpr, WIDTH: tl.constexpr, NUM_BLOCKS: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    i_r = tl.program_id(0).to(tl.int64)
    b_slot = tl.load(p_slots + i_r).to(tl.int64)
    b_token = 0
    b_bad = 0
    if b_slot >= 0:
        b_flags = _word(p_packed, b_slot, _FLAGS)
        p_part = p_parts + (i_r * _NUM_PARTS) * NUM_BLOCKS
        o_n = tl.arange(0, PARTS)
        b_tops = tl.load(p_part + o_n, mask=o_n < NUM_BLOCKS, other=float("-inf"))
        b_bad = tl.sum((b_tops != b_tops).to(tl.int32), 0)
        if b_bad == 0:
            b_top = tl.max(b_tops, 0)
            b_ids = tl.load(p_part + NUM_BLOCKS + o_n, mask=o_n < NUM_BLOCKS, other=0.0).to(tl.int32, bitcast=True)
            b_token = tl.min(tl.where((b_tops == b_top) & (o_n < NUM_BLOCKS), b_ids, V), 0)
            if ((b_flags & _GREEDY) == 0) & (tl.abs(b_top) < float("inf")):
                # Zero has two signs and must have one place in the order.
                b_top = tl.where(b_top == 0, 0.0, b_top)
                p_row = tl.where(
                    (b_flags & _ADJUSTED) != 0, p_work + i_r * stride_work, p_logits + i_r * stride_logits
                )
                b_uniform = _uniform(p_packed, p_num_tokens, b_slot)
                b_token = _draw(
                    p_row, p_groups + i_r * BLOCK, p_left + i_r * BLOCK, p_packed, b_slot, b_flags, b_uniform,
                    b_tops, b_top, p_part, V, WIDTH, NUM_BLOCKS, BLOCK, PARTS,
                )  # fmt: skip
            if b_flags & _PENALISED:
                p_count = p_counts + b_slot * V + b_token
                tl.store(p_count, tl.load(p_count) + 1)
        tl.store(p_last_token + b_slot, b_token.to(tl.int64))
        tl.store(p_num_tokens + b_slot, tl.load(p_num_tokens + b_slot) + 1)
    tl.store(p_tokens + i_r, b_token.to(tl.int64))
    tl.store(p_healthy + i_r, b_bad == 0)


def sample(logits: Tensor, slots: Tensor, table: SamplingTable, work: Tensor) -> tuple[Tensor, Tensor]:
    """Draw the next token of the slot of each row, and note it in `table`. Equal to `reference.sample`.

    logits: (R, V or more) float32, rows of any stride, unchanged; slots: (R,) int32; work: (R or more, V or more).
    Fastest where rows are aligned to 64 bytes and both have a multiple of four columns, padding included.
    Returns tokens (R,) int64 and healthy (R,) bool. Nothing waits for the device, and a CUDA graph can hold it.
    """
    R, V = slots.shape[0], table.counts.shape[1]
    assert logits.dtype == work.dtype == torch.float32
    assert logits.shape[0] >= R
    assert logits.shape[1] >= V
    assert work.shape[0] >= R
    assert work.shape[1] >= V
    assert logits.stride(1) == work.stride(1) == slots.stride(0) == 1
    assert all(part.is_contiguous() for part in table)
    # Four logits are loaded at once where padding makes that many columns of the last ones.
    width = triton.cdiv(V, 4) * 4
    width = width if width <= min(logits.shape[1], work.shape[1]) else V
    num_blocks = triton.cdiv(V, _BLOCK)
    parts = torch.empty((R, 4, num_blocks), dtype=torch.float32, device=logits.device)
    group = triton.next_power_of_2(num_blocks)
    groups, left = torch.empty((2, R, _BLOCK), dtype=torch.float32, device=logits.device)
    tokens = torch.empty(R, dtype=torch.int64, device=logits.device)
    healthy = torch.empty(R, dtype=torch.bool, device=logits.device)
    _scan_kernel[(num_blocks, R)](
        logits, slots, table.packed, table.num_tokens, table.counts, table.masks, work, parts, groups,
        logits.stride(0), work.stride(0),
        V=V, WIDTH=width, NUM_BLOCKS=num_blocks, BLOCK=_BLOCK, GROUP=group, LIST=_LIST,
        num_warps=_SCAN_WARPS, maxnreg=_SCAN_REGISTERS, enable_fp_fusion=False,
    )  # fmt: skip
    _draw_kernel[(R,)](
        logits, slots, table.packed, table.num_tokens, table.last_token, table.counts, work, parts,
        groups, left, tokens, healthy, logits.stride(0), work.stride(0),
        V=V, WIDTH=width, NUM_BLOCKS=num_blocks, BLOCK=_BLOCK, PARTS=group,
        num_warps=_DRAW_WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    return tokens, healthy


@triton.jit(do_not_specialize=["num_tokens"])
def _mark_kernel(p_counts, p_packed, p_ids, p_slots, num_tokens, V: tl.constexpr, BLOCK: tl.constexpr):
    o_t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_slot = tl.load(p_slots + o_t, mask=o_t < num_tokens, other=-1).to(tl.int64)
    b_flags = tl.load(p_packed + b_slot * _WORDS + _FLAGS, mask=b_slot >= 0, other=0)
    m_marked = (b_flags & _PENALISED) != 0
    p_count = p_counts + b_slot * V + tl.load(p_ids + o_t, mask=m_marked, other=0)
    # Whoever writes the same count writes the same value, since nothing is drawn before the prompt is read.
    tl.store(p_count, tl.load(p_count, mask=m_marked, other=0) | _IN_PROMPT, mask=m_marked)


def mark_prompt(table: SamplingTable, token_ids: Tensor, row_slots: Tensor) -> None:
    """Note that the prompts have these ids, where penalties ask for it. Equal to `reference.mark_prompt`.

    token_ids: (T,) int64; row_slots: (T,) int32, the slot of each, or PAD_SLOT.
    """
    T = token_ids.shape[0]
    assert token_ids.stride(0) == row_slots.stride(0) == 1
    _mark_kernel[(triton.cdiv(T, _LIST),)](
        table.counts, table.packed, token_ids, row_slots, T,
        V=table.counts.shape[1], BLOCK=_LIST, num_warps=_MARK_WARPS,
    )  # fmt: skip


@triton.jit
def _reset_kernel(p_counts, p_packed, p_num_tokens, p_slots, V: tl.constexpr, BLOCK: tl.constexpr):
    i_block = tl.program_id(0)
    b_slot = tl.load(p_slots + tl.program_id(1)).to(tl.int64)
    if b_slot >= 0:
        if i_block == 0:
            tl.store(p_num_tokens + b_slot, 0)
        if _word(p_packed, b_slot, _FLAGS) & _PENALISED:
            o_v = i_block * BLOCK + tl.arange(0, BLOCK)
            tl.store(p_counts + b_slot * V + o_v, tl.zeros((BLOCK,), tl.int32), mask=o_v < V)


def reset(table: SamplingTable, slots: Tensor) -> None:
    """Forget what was drawn in `slots`, (S,) int32, and their prompts. Equal to `reference.reset`."""
    V = table.counts.shape[1]
    assert slots.stride(0) == 1
    _reset_kernel[(triton.cdiv(V, _BLOCK), slots.shape[0])](
        table.counts, table.packed, table.num_tokens, slots, V=V, BLOCK=_BLOCK, num_warps=_SCAN_WARPS,
    )  # fmt: skip
