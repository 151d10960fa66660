"""The definition of sampling over a table of slots: a plain loop over rows, in float64. Slow."""

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from remuda.kernels.sample import table as words
from remuda.kernels.sample.table import SamplingTable

_MASK: Final = 2**64 - 1


def sample(logits: Tensor, slots: Tensor, table: SamplingTable, work: Tensor) -> tuple[Tensor, Tensor]:
    """Draw the next token of the slot of each row, and note it in `table`.

    logits: (R, V or more) float32, rows of any stride, unchanged; columns beyond V of `table.counts` are padding.
    slots: (R,) int32, each once; rows of PAD_SLOT give token 0 and healthy, and note nothing.
    work: (R or more, V) float32, overwritten.
    Returns tokens (R,) int64 and healthy (R,) bool: whether all logits were finite; where not, the token is 0 and
    is not counted.

    In this order: penalties (the prompt and what was drawn), biases, held-back ids, mask; the largest where
    greedy, ties to the lowest id; else softmax of the logits over temperature, cut by top_k, top_p and min_p, ties
    kept from the lowest id; the first id, in the order of ids, whose cumulative mass passes a uniform number that
    depends on the slot's key and number of tokens alone.
    """
    tokens = torch.zeros(len(slots), dtype=torch.int64, device=logits.device)
    healthy = torch.ones(len(slots), dtype=torch.bool, device=logits.device)
    num_ids = table.counts.shape[1]
    for i, slot in _live(slots):
        healthy[i] = torch.isfinite(logits[i, :num_ids]).all()
        token = 0
        if healthy[i]:
            row = adjusted(logits[i, :num_ids], table, slot)
            token = _draw(row, table, slot)
            if int(table.packed[slot, words.FLAGS]) & words.PENALISED:
                table.counts[slot, token] += 1
        tokens[i] = table.last_token[slot] = token
        table.num_tokens[slot] += 1
    return tokens, healthy


def mark_prompt(table: SamplingTable, token_ids: Tensor, row_slots: Tensor) -> None:
    """Note that the prompts have these ids, where penalties ask for it.

    token_ids: (T,) int64; row_slots: (T,) int32, the slot of each, or PAD_SLOT.
    """
    for i, slot in _live(row_slots):
        if int(table.packed[slot, words.FLAGS]) & words.PENALISED:
            table.counts[slot, token_ids[i]] |= words.IN_PROMPT


def reset(table: SamplingTable, slots: Tensor) -> None:
    """Forget what was drawn in `slots`, (S,) int32, and their prompts. Reads their new rows of `table.packed`."""
    for _, slot in _live(slots):
        table.num_tokens[slot] = 0
        if int(table.packed[slot, words.FLAGS]) & words.PENALISED:
            table.counts[slot] = 0


def adjusted(row: Tensor, table: SamplingTable, slot: int) -> Tensor:
    """Logits (V,) of a slot after penalties (repetition: Keskar et al. 2019, CTRL, eq. 3.1), bias, holds, mask."""
    packed, floats = table.packed[slot], table.packed[slot].view(torch.float32)
    flags, row = int(packed[words.FLAGS]), row.clone()
    if flags & words.PENALISED:
        drawn = table.counts[slot] & ~words.IN_PROMPT
        seen, penalty = table.counts[slot] != 0, floats[words.REPETITION]
        row = torch.where(seen, torch.where(row > 0, row / penalty, row * penalty), row)
        row -= floats[words.FREQUENCY] * drawn + floats[words.PRESENCE] * (drawn > 0)
    if flags & words.BIASED:
        num_bias = int(packed[words.NUM_BIAS])
        row[packed[words.BIAS_IDS : words.BIAS_IDS + num_bias]] += floats[
            words.BIAS_VALUES : words.BIAS_VALUES + num_bias
        ]
    if flags & words.HELD and table.num_tokens[slot] < packed[words.MIN_TOKENS]:
        row[packed[words.HELD_IDS : words.HELD_IDS + int(packed[words.NUM_HELD])]] = -torch.inf
    if flags & words.GUIDED:
        ids = torch.arange(len(row), device=row.device)
        row[(table.masks[slot, ids // 32] >> (ids % 32)) & 1 == 0] = -torch.inf
    return row


def weights(row: Tensor, table: SamplingTable, slot: int) -> Tensor:
    """What each of the adjusted logits (V,) weighs in the draw, float64; 0 where a filter cut it."""
    packed, floats = table.packed[slot], table.packed[slot].view(torch.float32).double()
    weight = torch.exp((row.double() - row.max()) / floats[words.TEMPERATURE])
    if not int(packed[words.FLAGS]) & words.FILTERED:
        return weight
    # Of equal logits the lowest id stands first.
    order = torch.argsort(row, descending=True, stable=True)
    best = weight[order]
    if packed[words.TOP_K] > 0:
        best[int(packed[words.TOP_K]) :] = 0
    if floats[words.TOP_P] < 1:
        before = best.cumsum(0) - best
        best[1:][before[1:] >= floats[words.TOP_P] * best.sum()] = 0
    best[best < floats[words.MIN_P]] = 0
    return torch.zeros_like(weight).scatter_(0, order, best)


def uniform(table: SamplingTable, slot: int) -> float:
    """A number in [0, 1) that depends on the slot's key and its number of tokens alone."""
    low, high = (int(word) & 0xFFFFFFFF for word in table.packed[slot, words.KEY : words.KEY + 2])
    return float((_mix64((high << 32 | low) ^ _mix64(int(table.num_tokens[slot]))) >> 11) * 2.0**-53)


def _draw(row: Tensor, table: SamplingTable, slot: int) -> int:
    if int(table.packed[slot, words.FLAGS]) & words.GREEDY or not torch.isfinite(row.max()):
        return int(row.argmax())
    weight = weights(row, table, slot)
    mass = weight.cumsum(0)
    index = int(torch.searchsorted(mass, uniform(table, slot) * mass[-1], right=True))
    # The product may round up to the whole, and then the last id of some mass is it.
    return min(index, int(weight.nonzero()[-1]))


def _mix64(value: int) -> int:
    """SplitMix64's bijection of 64-bit integers (Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _live(slots: Tensor) -> Iterator[tuple[int, int]]:
    """Row and slot where there is one."""
    return ((i, slot) for i, slot in enumerate(slots.tolist()) if slot >= 0)
