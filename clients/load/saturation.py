"""Says where a server is full: its throughput no longer grows, or the objective breaks. Pure arithmetic."""

from collections.abc import Sequence
from typing import Final

from remuda.clients.report.results import Stage

# From one value to the next, as a share.
LEAST_GROWTH: Final = 0.05
# Of requests that must keep the objective, and of those that may fail.
LEAST_GOOD: Final = 0.95
MOST_FAILED: Final = 0.05


def is_full(before: Stage | None, stage: Stage) -> str | None:
    """Why `stage` is beyond what the server can do, in words; None where it is not."""
    if stage.num_requests and stage.num_failed > MOST_FAILED * stage.num_requests:
        return f"{stage.num_failed} of {stage.num_requests} requests fail"
    if stage.goodput is not None and stage.goodput.share < LEAST_GOOD:
        return f"{stage.goodput.share:.0%} of requests keep the objective"
    if before is not None and stage.output_tokens_per_s < (1 + LEAST_GROWTH) * before.output_tokens_per_s:
        return (
            f"{stage.output_tokens_per_s:,.0f} output tokens/s, after {before.output_tokens_per_s:,.0f} "
            f"at {before.label}: growth below {LEAST_GROWTH:.0%}"
        )
    return None


def find_saturation(stages: Sequence[Stage]) -> str | None:
    """Of the stages of a sweep, smallest first; None of fewer than two."""
    if len(stages) < 2:
        return None
    before: Stage | None = None
    for stage in stages:
        reason = is_full(before, stage)
        if reason is not None:
            where = f"saturated at {before.label}" if before else f"beyond saturation at {stage.label} already"
            return f"{where}: at {stage.label} {reason}"
        before = stage
    return f"not saturated at {stages[-1].label}: {stages[-1].output_tokens_per_s:,.0f} output tokens/s"
