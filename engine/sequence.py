"""A request and its sequences while the engine holds them. Bookkeeping only: no decisions, no tensors of state."""

import time
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from remuda.engine.guide import Guide
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.wire import TokenLogprobs

_GOLDEN: Final = 0x9E3779B97F4A7C15
_MASK: Final = 2**64 - 1
# Seeds of one sequence differ by multiples of this odd number, as an int64.
SEED_STRIDE: Final = _GOLDEN - 2**64


def mix64(value: int) -> int:
    """A bijection of 64-bit integers whose output bits look independent (SplitMix64: Steele et al. 2014)."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def row_seed(key: int, position: int) -> int:
    """Seed of a state's rounding, as int64. position: tokens drawn, or minus the prompt tokens read, never both 0.

    The kernels hash it, so that a multiple of an odd number is enough to tell positions apart.
    """
    seed = (key + position * SEED_STRIDE) % 2**64
    return seed - 2**64 if seed >= 2**63 else seed


@dataclass(eq=False)
class TokenCounts:
    """What the penalties need: which ids the prompt has, (V,) bool, and how often each was drawn, (V,) int32."""

    in_prompt: torch.Tensor
    drawn: torch.Tensor


@dataclass(eq=False, slots=True)
class Sequence:
    """One continuation of a request's prompt. Its state is in `slot` and nowhere else.

    num_tokens: tokens accepted from the runner. row: its place in the decode batch, or -1.
    """

    request: "Request"
    index: int
    key: int
    slot: int | None = None
    num_tokens: int = 0
    last_token: int = -1
    counts: TokenCounts | None = None
    guide: Guide | None = None
    is_finished: bool = False
    row: int = -1

    def uniform(self) -> float:
        """A number in [0, 1) that depends on the sequence's key and the position alone."""
        return (mix64(self.key ^ mix64(self.num_tokens)) >> 11) * 2.0**-53


@dataclass(eq=False, slots=True)
class Request:
    """A prompt, read once into the slot of sequence 0, and `params.n` sequences that continue it.

    num_computed: prompt tokens that are read, or will be by a step under way. num_live: sequences that
    have not ended. stop_ids: the ids that end a sequence. queued_s: how long it waited for its slots.
    """

    request_id: str
    prompt: npt.NDArray[np.int32]
    params: SamplingParams
    num_prompt_tokens: int
    stop_ids: frozenset[int]
    num_computed: int = 0
    num_live: int = 0
    # False once logits of the prompt were not finite.
    is_healthy: bool = True
    sequences: list[Sequence] = field(default_factory=list)
    created_at: float = field(default_factory=time.monotonic)
    queued_s: float = 0.0
    # One entry per prompt token read so far, where the request asks for them.
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=lambda: [None])
    # Sum of the hidden states read so far, (hidden_size,) float64, where a mean is asked for.
    hidden_sum: torch.Tensor | None = None
    # The pooled hidden state as the wire wants it, once the prompt is read.
    embedding: bytes | None = None

    @classmethod
    def create(
        cls,
        request_id: str,
        prompt: npt.NDArray[np.int32],
        params: SamplingParams,
        seed: int,
        eos_token_ids: tuple[int, ...] = (),
    ) -> "Request":
        """`seed` is used where the request names none."""
        stop_ids = frozenset(params.stop_token_ids + (() if params.ignore_eos else eos_token_ids))
        request = cls(request_id, prompt, params, len(prompt), stop_ids, num_live=params.n)
        base = mix64((seed if params.seed is None else params.seed) & _MASK)
        request.sequences = [Sequence(request, i, mix64(base ^ i)) for i in range(params.n)]
        return request

    @property
    def is_prefilling(self) -> bool:
        """The prompt is not read to its end, nor will be by a step under way."""
        return self.num_computed < self.num_prompt_tokens

    @property
    def is_finished(self) -> bool:
        """Every sequence has ended."""
        return self.num_live == 0

    def drop_prompt(self) -> int:
        """Forget the prompt's ids, and say how many they were: the state holds what the model needs of them."""
        num_tokens = len(self.prompt)
        self.prompt = self.prompt[:0].copy()
        return num_tokens
