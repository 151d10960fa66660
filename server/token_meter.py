"""Measures when the tokens of one request come: the first, and the gaps after it. Touches no shared metric.

A histogram's label look-up and lock for each token would cost more than the rest of the bookkeeping; the
gaps are counted here by bucket, and added to the histogram once, when the request has ended.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from remuda.engine.wire import SequenceOutput

# Seconds between two tokens; the last bucket is for all that is longer.
GAP_BOUNDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1),
    *(0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
)


class TokenMeter:
    """first_at: when the first output came, by the clock of `note`. queued_s: what the engine said of it.

    gap_counts: tokens by the bucket of their gap; gap_sum: seconds of all gaps.
    """

    __slots__ = ("_last_at", "_num_streams", "first_at", "gap_counts", "gap_sum", "queued_s")

    def __init__(self, num_streams: int) -> None:
        self.first_at: float | None = None
        self.queued_s: float | None = None
        self.gap_counts = [0] * (len(GAP_BOUNDS) + 1)
        self.gap_sum = 0.0
        self._last_at = 0.0
        self._num_streams = num_streams

    def note(self, outputs: Sequence[SequenceOutput], num_streams: int, now: float) -> None:
        """Outputs have come at `now`; `num_streams` choices go on after them.

        What came together counts as having come evenly since the last time.
        """
        num_tokens = len(outputs[0].token_ids) if len(outputs) == 1 else sum(len(o.token_ids) for o in outputs)
        if self.first_at is None:
            self.first_at = now
            self.queued_s = outputs[0].queued_s
            # Where more than the first has come for each choice, it has come at once.
            self.gap_counts[0] += max(0, num_tokens - self._num_streams)
        elif num_tokens:
            gap = (now - self._last_at) * self._num_streams / num_tokens
            self.gap_counts[bisect_left(GAP_BOUNDS, gap)] += num_tokens
            self.gap_sum += gap * num_tokens
        self._last_at = now
        self._num_streams = num_streams or 1
