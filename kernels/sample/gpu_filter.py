"""What top_k and top_p keep of a row of logits, exactly and without sorting: Triton functions for `gpu.py`.

A filter keeps what is above a threshold, which is searched among one block of logits on chip. In most rows
all that may be kept fits there (`take_likeliest`). For the others the row is gone over a few times, counting
and weighing what is above three values at once, until few logits are left to decide on.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

_STAGES = tl.constexpr(3)


@triton.jit
def load_block(p_row, i_block, V: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Logits of one block of a row, (BLOCK,), -inf from id V on. WIDTH columns can be read."""
    o_v = i_block * BLOCK + tl.arange(0, BLOCK)
    b_row = tl.load(p_row + o_v, mask=o_v < WIDTH, other=float("-inf"))
    return tl.where(o_v < V, b_row, float("-inf"))


@triton.jit
def take_likeliest(
    p_row, p_groups, p_left, b_top_k, b_top_p, b_top, b_low, b_scale, b_whole,
    V: tl.constexpr, NUM_BLOCKS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The groups of GROUP neighbours that hold all that top_k and top_p keep, where they are few.

    p_groups: the largest logit of each group. If those at or above a value are k, or weigh what top_p asks for,
    then so do the logits at or above it, and no logit below it is kept. b_low: the key of the least logit.
    Returns such a value's key, the groups' logits (BLOCK,), their ids, in order, and whether they fit.
    """
    NUM_GROUPS: tl.constexpr = NUM_BLOCKS * (BLOCK // GROUP)
    MAX_GROUPS: tl.constexpr = BLOCK // GROUP
    o_n = tl.arange(0, BLOCK)
    b_largest = tl.load(p_groups + o_n, mask=o_n < NUM_GROUPS, other=float("-inf"))
    b_weight = tl.exp2((b_largest - b_top) * b_scale)
    is_mass = (b_top_k == 0) | (b_top_k >= V)
    b_goal = tl.where(is_mass, b_top_p.to(tl.float64) * b_whole, b_top_k.to(tl.float64))
    b_high = to_key(b_top) + 1
    b_count_low = tl.sum((b_largest >= _from_key(b_low)).to(tl.int32), 0)
    b_count_high = 0
    b_mass_high = b_whole * 0.0
    i_step = 0
    # Without a filter of the two there is nothing to search for.
    if is_mass & (b_top_p >= 1):
        b_count_high = BLOCK
    while (b_count_low > MAX_GROUPS) & (b_count_high < MAX_GROUPS) & (b_high - b_low > 1):
        b_key = _pivot(b_low, b_high, i_step, 1, 2)
        m_over = b_largest >= _from_key(b_key)
        b_count = tl.sum(m_over.to(tl.int32), 0)
        b_mass = tl.sum(tl.where(m_over, b_weight, 0.0), 0).to(tl.float64)
        b_low, b_count_low, b_high, b_count_high, b_mass_high = _narrow(
            b_low, b_count_low, b_high, b_count_high, b_mass_high, b_key, b_count, b_mass, b_goal, is_mass
        )
        i_step += 1
    is_fit = b_count_low <= MAX_GROUPS
    b_left = tl.full((BLOCK,), float("-inf"), tl.float32)
    o_v = o_n
    if is_fit:
        m_taken = b_largest >= _from_key(b_low)
        o_left = tl.cumsum(m_taken.to(tl.int32), 0) - 1
        tl.store(p_left + o_left, o_n.to(tl.float32), mask=m_taken)
        # Others wrote what this thread reads.
        tl.debug_barrier()
        m_left = o_n // GROUP < b_count_low
        i_group = tl.load(p_left + o_n // GROUP, mask=m_left, other=0.0).to(tl.int32)
        o_v = i_group * GROUP + o_n % GROUP
        b_left = tl.load(p_row + o_v, mask=m_left & (o_v < V), other=float("-inf"))
    return b_low, b_left, o_v, is_fit


@triton.jit
def filter_row(
    p_row, p_left, b_left, b_top_k, b_top_p, b_top, b_low, b_scale, b_whole,
    V: tl.constexpr, WIDTH: tl.constexpr, NUM_BLOCKS: tl.constexpr, BLOCK: tl.constexpr, IS_ON_CHIP: tl.constexpr,
):  # fmt: skip
    """What top_k, then top_p leave: the logits above a value, and of those equal to it the first few.

    A logit weighs 2 ** ((logit - b_top) * b_scale). b_top: the largest logit. b_low: a key that is not above any
    logit that may be kept. b_whole: what all weigh, float64. p_left: room for BLOCK logits. b_left: all those that
    may be kept, (BLOCK,), where IS_ON_CHIP.
    Returns the value, how many of those equal to it are kept, and how many equal it.
    """
    b_value = float("-inf")
    b_num_kept = V
    b_equal = V
    b_count_low = V
    for i_filter in range(2):
        is_mass = i_filter == 1
        if tl.where(is_mass, b_top_p < 1, (b_top_k > 0) & (b_top_k < V)):
            b_goal = tl.where(is_mass, b_top_p.to(tl.float64) * b_whole, b_top_k.to(tl.float64))
            b_high = to_key(b_top) + 1
            b_count = 0
            b_mass = b_whole * 0.0
            if not IS_ON_CHIP:
                b_low, b_count_low, b_high, b_count, b_mass = _close_in(
                    p_row, b_top, b_scale, b_low, b_count_low, b_high, b_goal, is_mass, V, WIDTH, NUM_BLOCKS, BLOCK
                )
            b_next = _from_key(b_low)
            b_equal = b_count_low - b_count
            if b_high - b_low > 1:
                if not IS_ON_CHIP:
                    b_left = _take_between(p_row, p_left, b_next, _from_key(b_high), V, WIDTH, NUM_BLOCKS, BLOCK)
                b_next, b_count, b_mass, b_equal = _search(
                    b_left, b_top, b_scale, b_low, b_high, b_count, b_mass, b_goal, is_mass
                )
            b_weight = tl.maximum(tl.exp2((b_next - b_top) * b_scale), 1e-37).to(tl.float64)
            b_num = tl.ceil(tl.where(is_mass, (b_goal - b_mass) / b_weight, b_goal - b_count))
            b_num = tl.minimum(tl.maximum(b_num, 1.0), b_equal).to(tl.int32)
            # Of those equal to it, what top_k cut stays cut.
            b_num_kept = tl.where(b_next == b_value, tl.minimum(b_num, b_num_kept), b_num)
            b_value = b_next
            b_whole = b_mass + b_num_kept * b_weight
            b_low = to_key(b_value)
            b_count_low = b_count + b_equal
    return b_value, b_num_kept, b_equal


@triton.jit
def _close_in(
    p_row, b_top, b_scale, b_low, b_count_low, b_high, b_goal, is_mass,
    V: tl.constexpr, WIDTH: tl.constexpr, NUM_BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Bounds, as keys, of the largest logit such that those at least as large are `b_goal` many, or weigh as much.

    b_low: a bound from below, with at most `b_count_low` logits at or above it; b_high: a key above all.
    Returns both, nearer, and how many are at or above each, and what those at or above the second weigh.
    At most BLOCK logits are between, or equal ones.
    """
    b_count_high = 0
    b_mass_high = (b_top * 0.0).to(tl.float64)
    i_step = 0
    while (b_count_low - b_count_high > BLOCK) & (b_high - b_low > 1):
        b_key1, b_key2 = _pivot(b_low, b_high, i_step, 1, 4), _pivot(b_low, b_high, i_step, 2, 4)
        b_key3 = _pivot(b_low, b_high, i_step, 3, 4)
        b_count1, b_count2, b_count3, b_mass1, b_mass2, b_mass3 = _masses_from(
            p_row, b_top, b_scale, _from_key(b_key1), _from_key(b_key2), _from_key(b_key3),
            V, WIDTH, NUM_BLOCKS, BLOCK,
        )  # fmt: skip
        b_low, b_count_low, b_high, b_count_high, b_mass_high = _narrow(
            b_low, b_count_low, b_high, b_count_high, b_mass_high, b_key1, b_count1, b_mass1, b_goal, is_mass
        )
        b_low, b_count_low, b_high, b_count_high, b_mass_high = _narrow(
            b_low, b_count_low, b_high, b_count_high, b_mass_high, b_key2, b_count2, b_mass2, b_goal, is_mass
        )
        b_low, b_count_low, b_high, b_count_high, b_mass_high = _narrow(
            b_low, b_count_low, b_high, b_count_high, b_mass_high, b_key3, b_count3, b_mass3, b_goal, is_mass
        )
        i_step += 1
    return b_low, b_count_low, b_high, b_count_high, b_mass_high


@triton.jit
def _search(b_left, b_top, b_scale, b_low, b_high, b_count_high, b_mass_high, b_goal, is_mass):
    """The largest logit such that those at least as large are `b_goal` many, or weigh `b_goal` (is_mass).

    b_left: (BLOCK,), all logits between two keys, perhaps with others below; the arguments ..._high tell how many
    are at or above the second key, and what these weigh.
    Returns it, how many logits are above it, what these weigh (float64), and how many equal it.
    """
    b_weight = tl.exp2((b_left - b_top) * b_scale)
    m_between = (b_left >= _from_key(b_low)) & (b_left < _from_key(b_high))
    b_count_low = b_count_high + tl.sum(m_between.to(tl.int32), 0)
    i_step = 0
    while (b_count_low - b_count_high > 1) & (b_high - b_low > 1):
        b_key = _pivot(b_low, b_high, i_step, 1, 2)
        m_over = (b_left >= _from_key(b_key)) & (b_left < _from_key(b_high))
        b_count = b_count_high + tl.sum(m_over.to(tl.int32), 0)
        b_mass = b_mass_high + tl.sum(tl.where(m_over, b_weight, 0.0), 0).to(tl.float64)
        b_low, b_count_low, b_high, b_count_high, b_mass_high = _narrow(
            b_low, b_count_low, b_high, b_count_high, b_mass_high, b_key, b_count, b_mass, b_goal, is_mass
        )
        i_step += 1
    # What is between the two is one logit, or several equal ones.
    b_value = tl.max(tl.where(b_left < _from_key(b_high), b_left, float("-inf")), 0)
    b_value = tl.maximum(b_value, _from_key(b_low))
    b_equal = tl.sum((b_left == b_value).to(tl.int32), 0)
    return b_value, b_count_high, b_mass_high, b_equal


@triton.jit
def _narrow(
    b_low, b_count_low, b_high, b_count_high, b_mass_high, b_key, b_count, b_mass, b_goal, is_mass
):  # fmt: skip
    """The bounds of the threshold, given how many logits are at or above `b_key` and what they weigh."""
    is_low = tl.where(is_mass, b_mass, b_count.to(tl.float64)) >= b_goal
    is_high = (is_low == 0) & (b_key < b_high)
    return (
        tl.where(is_low, b_key, b_low),
        tl.where(is_low, b_count, b_count_low),
        tl.where(is_high, b_key, b_high),
        tl.where(is_high, b_count, b_count_high),
        tl.where(is_high, b_mass, b_mass_high),
    )


@triton.jit
def to_key(b_value):
    """An int64 that orders as the float32 does."""
    b_bits = b_value.to(tl.int32, bitcast=True)
    return (b_bits ^ ((b_bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def _from_key(b_key):
    b_bits = b_key.to(tl.int32)
    return (b_bits ^ ((b_bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _pivot(b_low, b_high, i_step, PART: tl.constexpr, OF: tl.constexpr):
    """A key strictly between two that are not neighbours, about PART / OF of the way.

    Parts of the values' distance find the place soonest; parts of the keys' bound the number of steps.
    """
    b_from, b_to = _from_key(b_low), _from_key(b_high)
    b_even = to_key(b_from + (b_to - b_from) * (PART / OF))
    b_key = tl.where(i_step % 4 == 3, b_low + (b_high - b_low) * PART // OF, b_even)
    return tl.minimum(tl.maximum(b_key, b_low + 1), b_high - 1)


@triton.jit
def _masses_from(
    p_row, b_top, b_scale, b_first, b_second, b_third,
    V: tl.constexpr, WIDTH: tl.constexpr, NUM_BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many logits are at least each of three values, and what they weigh, float64."""
    b_count1, b_mass1 = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.float32)
    b_count2, b_mass2 = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.float32)
    b_count3, b_mass3 = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.float32)
    for i_block in tl.range(0, NUM_BLOCKS, num_stages=_STAGES):
        b_row = load_block(p_row, i_block, V, WIDTH, BLOCK)
        b_weight = tl.exp2((b_row - b_top) * b_scale)
        b_count1 += (b_row >= b_first).to(tl.int32)
        b_count2 += (b_row >= b_second).to(tl.int32)
        b_count3 += (b_row >= b_third).to(tl.int32)
        b_mass1 += tl.where(b_row >= b_first, b_weight, 0.0)
        b_mass2 += tl.where(b_row >= b_second, b_weight, 0.0)
        b_mass3 += tl.where(b_row >= b_third, b_weight, 0.0)
    return (
        tl.sum(b_count1, 0), tl.sum(b_count2, 0), tl.sum(b_count3, 0),
        tl.sum(b_mass1.to(tl.float64), 0), tl.sum(b_mass2.to(tl.float64), 0), tl.sum(b_mass3.to(tl.float64), 0),
    )  # fmt: skip


@triton.jit
def _take_between(
    p_row, p_left, b_from, b_to,
    V: tl.constexpr, WIDTH: tl.constexpr, NUM_BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The at most BLOCK logits of a row in [b_from, b_to), then -inf, (BLOCK,). `p_left` gets them too."""
    # Each place of a block has its own stretch of `p_left`, so that one scan serves all blocks.
    b_num = tl.zeros((BLOCK,), tl.int32)
    for i_block in tl.range(0, NUM_BLOCKS, num_stages=_STAGES):
        b_row = load_block(p_row, i_block, V, WIDTH, BLOCK)
        b_num += ((b_row >= b_from) & (b_row < b_to)).to(tl.int32)
    b_taken = tl.sum(b_num, 0)
    o_next = tl.cumsum(b_num, 0) - b_num
    for i_block in tl.range(0, NUM_BLOCKS, num_stages=_STAGES):
        b_row = load_block(p_row, i_block, V, WIDTH, BLOCK)
        m_in = (b_row >= b_from) & (b_row < b_to)
        tl.store(p_left + o_next, b_row, mask=m_in & (o_next < BLOCK))
        o_next += m_in.to(tl.int32)
    # Others wrote what this thread reads.
    tl.debug_barrier()
    o_left = tl.arange(0, BLOCK)
    return tl.load(p_left + o_left, mask=o_left < b_taken, other=float("-inf"))


@triton.jit
def last_kept(
    p_row, b_value, b_num_kept,
    V: tl.constexpr, WIDTH: tl.constexpr, NUM_BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The id of the `b_num_kept`-th logit that equals `b_value`, from the lowest id."""
    b_seen = 0
    b_last = 0
    for i_block in tl.range(0, NUM_BLOCKS, num_stages=_STAGES):
        m_equal = load_block(p_row, i_block, V, WIDTH, BLOCK) == b_value
        b_num = tl.sum(m_equal.to(tl.int32), 0)
        if (b_seen < b_num_kept) & (b_seen + b_num >= b_num_kept):
            b_rank = b_seen + tl.cumsum(m_equal.to(tl.int32), 0)
            o_v = i_block * BLOCK + tl.arange(0, BLOCK)
            b_last = tl.sum(tl.where(m_equal & (b_rank == b_num_kept), o_v, 0), 0)
        b_seen += b_num
    return b_last
