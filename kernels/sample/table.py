"""What sampling needs of every slot, kept on the device: parameters as one row of words, and what was drawn.

A row is packed on the host and copied in one piece, so starting a sequence costs one transfer.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Most entries of a row's lists.
MAX_BIAS: Final = 1024
MAX_HELD: Final = 512

# Words of a row. The first six are float32 bits; the key is split into its low and high half.
TEMPERATURE: Final = 0
TOP_P: Final = 1
MIN_P: Final = 2
REPETITION: Final = 3
PRESENCE: Final = 4
FREQUENCY: Final = 5
TOP_K: Final = 6
MIN_TOKENS: Final = 7
KEY: Final = 8
FLAGS: Final = 10
NUM_BIAS: Final = 11
NUM_HELD: Final = 12
HELD_IDS: Final = 16
BIAS_IDS: Final = HELD_IDS + MAX_HELD
BIAS_VALUES: Final = BIAS_IDS + MAX_BIAS
WORDS: Final = BIAS_VALUES + MAX_BIAS

# Bits of the word FLAGS.
GREEDY: Final = 1
FILTERED: Final = 2
PENALISED: Final = 4
BIASED: Final = 8
HELD: Final = 16
GUIDED: Final = 32

# The bit of `counts` that says that the prompt has the id; the others count how often it was drawn.
IN_PROMPT: Final = -(2**31)
# Logits divided by less than this would overflow float32, and no other token would ever be drawn.
GREEDY_BELOW: Final = 1e-5


class SamplingTable(NamedTuple):
    """One row per slot. What a slot's former sequence left is forgotten by writing `packed` and then `reset`.

    packed: (num_slots, WORDS) int32, rows of `encode`.
    num_tokens: (num_slots,) int32, tokens drawn so far: the position of the next one.
    last_token: (num_slots,) int64, the token drawn last.
    counts: (num_slots, V) int32, kept for slots with penalties alone: IN_PROMPT, and how often each id was drawn.
    masks: (num_slots, ceil(V / 32)) int32, of guided slots alone: bit i % 32 of word i // 32 allows id i.
    """

    packed: Tensor
    num_tokens: Tensor
    last_token: Tensor
    counts: Tensor
    masks: Tensor


def mask_words(vocab_size: int) -> int:
    """Words of a row of `SamplingTable.masks`."""
    return -(-vocab_size // 32)


def make_table(num_slots: int, vocab_size: int, device: torch.device) -> SamplingTable:
    """A table whose slots are all greedy and have drawn nothing."""
    packed = torch.zeros(num_slots, WORDS, dtype=torch.int32, device=device)
    packed[:, FLAGS] = GREEDY
    return SamplingTable(
        packed,
        torch.zeros(num_slots, dtype=torch.int32, device=device),
        torch.zeros(num_slots, dtype=torch.int64, device=device),
        torch.zeros(num_slots, vocab_size, dtype=torch.int32, device=device),
        torch.zeros(num_slots, mask_words(vocab_size), dtype=torch.int32, device=device),
    )


def encode(
    *,
    key: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    held_ids: Sequence[int] = (),
    min_tokens: int = 0,
    is_guided: bool = False,
) -> npt.NDArray[np.int32]:
    """One row of `SamplingTable.packed`, (WORDS,) int32.

    key: 64 bits that the sequence's random numbers depend on. held_ids: not drawn before `min_tokens` tokens were.
    is_guided: only ids that the slot's row of `masks` allows are drawn.
    The others mean what they mean in a request. Raises ValueError for more than MAX_BIAS or MAX_HELD ids.
    """
    bias, held = dict(logit_bias or {}), sorted(set(held_ids)) if min_tokens > 0 else []
    if len(bias) > MAX_BIAS or len(held) > MAX_HELD:
        raise ValueError(
            f"{len(bias)} biased and {len(held)} held-back ids, the limits are {MAX_BIAS} and {MAX_HELD}"
        )
    row = np.zeros(WORDS, dtype=np.int32)
    floats = row.view(np.float32)
    floats[:6] = (temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty)
    row[TOP_K] = min(max(top_k, 0), 2**31 - 1)
    row[MIN_TOKENS] = min_tokens
    row[KEY : KEY + 2].view(np.uint32)[:] = (key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF)
    is_filtered = top_k > 0 or bool(floats[TOP_P] < 1) or min_p > 0
    is_penalised = repetition_penalty != 1 or presence_penalty != 0 or frequency_penalty != 0
    flags = (temperature < GREEDY_BELOW, is_filtered, is_penalised, bool(bias), bool(held), is_guided)
    bits = (GREEDY, FILTERED, PENALISED, BIASED, HELD, GUIDED)
    row[FLAGS] = sum(bit for bit, is_set in zip(bits, flags, strict=True) if is_set)
    row[NUM_BIAS], row[NUM_HELD] = len(bias), len(held)
    row[HELD_IDS : HELD_IDS + len(held)] = held
    row[BIAS_IDS : BIAS_IDS + len(bias)] = list(bias)
    floats[BIAS_VALUES : BIAS_VALUES + len(bias)] = list(bias.values())
    return row
