"""One sequence's place in its grammar: which tokens may come next, and whether the text is complete. No torch."""

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from remuda.engine.grammar_reason import shorten_reason

if TYPE_CHECKING:
    import llguidance

# Bits of a word of a mask.
WORD_BITS: Final = 32

Words = npt.NDArray[np.uint32]


def num_words(vocab_size: int) -> int:
    """Words of a mask."""
    return -(-vocab_size // WORD_BITS)


class Guide:
    """Follows one sequence through a grammar.

    error: why the grammar cannot be followed any further; the sequence has failed then. is_finished: the text
    is complete, and nothing may follow it.
    """

    __slots__ = ("_matcher", "_min_tokens", "_stop_ids", "_vocab_size", "error", "is_finished")

    def __init__(
        self, matcher: "llguidance.LLMatcher", vocab_size: int, stop_ids: frozenset[int], min_tokens: int = 0
    ) -> None:
        """matcher: at the beginning, nobody else's. stop_ids: what may end a complete text.

        min_tokens: before so many, they may not, unless nothing else is possible.
        """
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._stop_ids = np.array(sorted(stop_ids), dtype=np.int64)
        self._min_tokens = min_tokens
        self.error: str | None = None
        self.is_finished = False

    def mask(self, num_tokens: int) -> Words:
        """Bits of the ids that may come after `num_tokens` tokens, lowest first, (num_words,) uint32.

        Never all zero: where nothing may come, `error` or `is_finished` says so, and every bit is set.
        Stop ids are allowed where the text may end and `min_tokens` are there, or where nothing else is possible.
        """
        words = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint32)[
            : num_words(self._vocab_size)
        ].copy()
        if self._matcher.is_error():
            self._fail()
            return np.full_like(words, 0xFFFFFFFF)
        if self._vocab_size % WORD_BITS:
            # Above the vocabulary stands the bit of the end.
            words[-1] &= np.uint32((1 << self._vocab_size % WORD_BITS) - 1)
        may_end = self._matcher.is_accepting()
        if num_tokens < self._min_tokens:
            others = words.copy()
            _clear(others, self._stop_ids)
            if others.any():
                return others
        if may_end:
            _set(words, self._stop_ids)
        if not words.any():
            self.is_finished = True
            return np.full_like(words, 0xFFFFFFFF)
        return words

    def accept(self, token: int) -> None:
        """Go on by a token that is no stop id."""
        if not self._matcher.consume_token(token):
            self._fail()
        elif self._matcher.is_stopped():
            self.is_finished = True

    def _fail(self) -> None:
        self.error = f"the grammar cannot be followed any further: {shorten_reason(self._matcher.get_error())}"


def _set(words: Words, ids: npt.NDArray[np.int64]) -> None:
    np.bitwise_or.at(words, ids // WORD_BITS, np.uint32(1) << (ids % WORD_BITS).astype(np.uint32))


def _clear(words: Words, ids: npt.NDArray[np.int64]) -> None:
    np.bitwise_and.at(words, ids // WORD_BITS, ~(np.uint32(1) << (ids % WORD_BITS).astype(np.uint32)))


def banned(words: Words, vocab_size: int) -> npt.NDArray[np.bool_]:
    """(V,) bool, true where a mask's bit is not set. Bits are in the order of bytes on a little-endian machine."""
    return np.unpackbits((~words).view(np.uint8), count=vocab_size, bitorder="little").view(np.bool_)
