"""Who decodes: a row per sequence, with what a step needs of each in arrays that change only where a row does."""

import numpy as np
import numpy.typing as npt

from remuda.engine.sequence import Sequence

DecodeRows = tuple[list[Sequence], npt.NDArray[np.int32]]


class DecodeBatch:
    """At most `max_rows` sequences, in no order that matters: the last row takes the place of one that leaves."""

    def __init__(self, max_rows: int) -> None:
        self._sequences: list[Sequence] = []
        self._slots = np.zeros(max_rows, dtype=np.int32)
        # Tokens that no step has been told to draw yet.
        self._num_left = np.zeros(max_rows, dtype=np.int64)
        self._rows: DecodeRows | None = None
        # Rows of sequences that follow a grammar.
        self.num_guided = 0

    def __len__(self) -> int:
        return len(self._sequences)

    def add(self, sequence: Sequence, num_left: int) -> None:
        """Give a sequence a row for its next `num_left` tokens, at least one."""
        assert sequence.slot is not None
        sequence.row = len(self._sequences)
        self._sequences.append(sequence)
        self._slots[sequence.row] = sequence.slot
        self._num_left[sequence.row] = num_left
        self.num_guided += sequence.guide is not None
        self._rows = None

    def remove(self, sequence: Sequence) -> None:
        """Take the sequence's row away, if it has one."""
        row = sequence.row
        if row < 0:
            return
        last = self._sequences.pop()
        if last is not sequence:
            end = last.row
            self._sequences[row], last.row = last, row
            self._slots[row], self._num_left[row] = self._slots[end], self._num_left[end]
        sequence.row = -1
        self.num_guided -= sequence.guide is not None
        self._rows = None

    def take_step(self) -> DecodeRows:
        """Rows of a step and their slots, neither ever changed afterwards. Rows whose last token it is leave."""
        if self._rows is None:
            self._rows = list(self._sequences), self._slots[: len(self)].copy()
        rows = self._rows
        num_left = self._num_left[: len(self)]
        num_left -= 1
        if not num_left.all():
            # From the end, so that the row that moves is one that stays.
            for row in np.flatnonzero(num_left == 0)[::-1].tolist():
                self.remove(self._sequences[row])
        return rows
