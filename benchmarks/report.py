"""How every benchmark here reports: the machine, a table for people, one JSON line for programs."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.table import Table


def machine() -> str:
    """Processor, cores given to this process, Python and torch."""
    cores = len(os.sched_getaffinity(0))
    return f"{_processor()}, {cores} cores, Python {platform.python_version()}, torch {version('torch')}"


def report(name: str, rows: list[dict[str, Any]], notes: list[str] | None = None) -> None:
    """Print `rows`, all of the same keys, as a table and as JSON."""
    table = Table(title=name, caption="\n".join([machine(), *(notes or [])]), caption_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(_format(value) for value in row.values()))
    Console(width=120).print(table)
    print(json.dumps({"benchmark": name, "machine": machine(), "notes": notes or [], "rows": rows}))


def medians(candidates: dict[str, Callable[[], object]], *, rounds: int, warm_up: int = 2) -> dict[str, float]:
    """Median seconds of each candidate, run in turn so that a slow spell of the machine hits all alike."""
    for run in candidates.values():
        for _ in range(warm_up):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def _format(value: Any) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
