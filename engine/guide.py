"""Sequences' places in their grammars: which tokens may come next, and whether a text is complete. No torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from remuda.engine.grammar_reason import shorten_reason

if TYPE_CHECKING:
    import llguidance

# Bits of a word of a mask.
WORD_BITS: Final = 32
_ALL: Final = np.uint32(0xFFFFFFFF)

Words = npt.NDArray[np.uint32]


def num_words(vocab_size: int) -> int:
    """Words of a mask."""
    return -(-vocab_size // WORD_BITS)


class Guide:
    """Follows one sequence through a grammar.

    error: why the grammar cannot be followed any further; the sequence has failed then. is_finished: the text
    is complete, and nothing may follow it.
    """

    __slots__ = ("_matcher", "_min_tokens", "_stop_bits", "_vocab_size", "error", "is_finished")

    def __init__(
        self, matcher: "llguidance.LLMatcher", vocab_size: int, stop_ids: frozenset[int], min_tokens: int = 0
    ) -> None:
        """matcher: at the beginning, nobody else's. stop_ids: what may end a complete text.

        min_tokens: before so many, they may not, unless nothing else is possible.
        """
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._stop_bits = [(i // WORD_BITS, np.uint32(1 << i % WORD_BITS)) for i in sorted(stop_ids)]
        self._min_tokens = min_tokens
        self.error: str | None = None
        self.is_finished = False

    def _settle(self, words: Words, num_tokens: int) -> None:
        """Make a mask, (num_words,), of what the matcher has written there, in place."""
        if self._matcher.is_error():
            self._fail()
            words[:] = _ALL
            return
        if self._vocab_size % WORD_BITS:
            # Above the vocabulary stands the bit of the end.
            words[-1] &= np.uint32((1 << self._vocab_size % WORD_BITS) - 1)
        if num_tokens < self._min_tokens:
            others = words.copy()
            for word, bit in self._stop_bits:
                others[word] &= ~bit
            if others.any():
                words[:] = others
                return
        if self._matcher.is_accepting():
            for word, bit in self._stop_bits:
                words[word] |= bit
        if not words.any():
            self.is_finished = True
            words[:] = _ALL

    def accept(self, token: int) -> None:
        """Go on by a token that is no stop id."""
        if not self._matcher.consume_token(token):
            self._fail()
        elif self._matcher.is_stopped():
            self.is_finished = True

    def _fail(self) -> None:
        self.error = f"the grammar cannot be followed any further: {shorten_reason(self._matcher.get_error())}"


def masks(guides: Sequence[Guide], nums_tokens: Sequence[int]) -> Words:
    """For guides of one vocabulary, bits of the ids that may come after so many tokens of each, lowest first.

    (G, num_words) uint32. None is all zero: where nothing may come, the guide's `error` or `is_finished` says so,
    and every bit is set. Stop ids are allowed where the text may end and `min_tokens` are there, or where nothing
    else is possible.
    """
    vocab_size = guides[0]._vocab_size
    # The matchers know of one id more, the end's.
    found = np.zeros((len(guides), num_words(vocab_size + 1)), dtype=np.uint32)
    place, num_bytes = found.ctypes.data, found.strides[0]
    for i, guide in enumerate(guides):
        guide._matcher.unsafe_compute_mask_ptr(place + i * num_bytes, num_bytes)
    found = np.ascontiguousarray(found[:, : num_words(vocab_size)])
    for words, guide, num_tokens in zip(found, guides, nums_tokens, strict=True):
        guide._settle(words, num_tokens)
    return found


def banned(words: Words, vocab_size: int) -> npt.NDArray[np.bool_]:
    """(V,) bool, true where a mask's bit is not set. Bits are in the order of bytes on a little-endian machine."""
    return np.unpackbits((~words).view(np.uint8), count=vocab_size, bitorder="little").view(np.bool_)
