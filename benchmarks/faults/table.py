"""Figures beside their targets."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure of one test."""

    test: str
    figure: str
    target: str
    is_met: bool


def at_most(test: str, value: float, limit: float, unit: str) -> Row:
    """A figure that is to stay below a limit."""
    return Row(test, f"{value:.3g} {unit}", f"≤ {limit:g} {unit}", value <= limit)


def is_none(test: str, count: int, of: str) -> Row:
    """A count that is to be zero."""
    return Row(test, f"{count} {of}", "0", count == 0)


def at_rest(test: str, unrest: str) -> Row:
    """What `Server.unrest` says."""
    return Row(f"{test}: afterwards", unrest or "at rest", "at rest", not unrest)


def render(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = ["| Test | Figure | Target | |", "|---|---|---|---|"]
    lines += [f"| {row.test} | {row.figure} | {row.target} | {'ok' if row.is_met else 'MISSED'} |" for row in rows]
    return "\n".join(lines)
