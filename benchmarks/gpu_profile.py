"""Where the device's time goes: a profiler's trace, how much of it the device is busy, and its longest kernels."""

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_lab import Lab, Row
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Operation:
    """A kernel or a copy, in microseconds. All kernels of one replay of a graph have one `launch`."""

    name: str
    start: float
    end: float
    launch: int


def trace(lab: Lab, run: Callable[[], Any]) -> list[Operation]:
    """What the device does during `run`; nothing in a dry run."""
    if lab.is_dry:
        run()
        return []
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        lab.sync()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return [
        Operation(event["name"], event["ts"], event["ts"] + event["dur"], event["args"].get("correlation", index))
        for index, event in enumerate(events)
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    ]


def busy_share(operations: list[Operation]) -> float | None:
    """Share of the time between first and last operation in which a launch runs.

    A replayed graph counts from its first kernel to its last: pauses within it are not the host's.
    """
    if not operations:
        return None
    spans: dict[int, tuple[float, float]] = {}
    for operation in operations:
        start, end = spans.get(operation.launch, (operation.start, operation.end))
        spans[operation.launch] = min(start, operation.start), max(end, operation.end)
    busy, reached = 0.0, min(start for start, _ in spans.values())
    first = reached
    for start, end in sorted(spans.values()):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy / (reached - first)


def longest_kernels(case: str, operations: list[Operation], num_steps: int, limit: int = 14) -> list[Row]:
    """Rows of the kernels that take the most time, and of the time in which none runs."""
    times: dict[str, list[float]] = defaultdict(list)
    for operation in operations:
        times[operation.name].append(operation.end - operation.start)
    ranked = sorted(times.items(), key=lambda item: -sum(item[1]))
    window = max((o.end for o in operations), default=0.0) - min((o.start for o in operations), default=0.0)
    used = sum(sum(values) for values in times.values())

    def row(name: str, count: float, microseconds: float) -> Row:
        share = 100 * microseconds / window if window else 0.0
        return {
            "case": case,
            "kernel": name[:56],
            "calls/step": count,
            "µs/step": microseconds / num_steps,
            "%": share,
        }

    rows = [row(name, len(values) / num_steps, sum(values)) for name, values in ranked[:limit]]
    rest = sum(sum(values) for _, values in ranked[limit:])
    return [*rows, row("all others", 0.0, rest), row("no kernel runs", 0.0, max(0.0, window - used))]


@contextmanager
def replayed_graphs() -> Iterator[list[torch.cuda.CUDAGraph]]:
    """Gathers the graphs that are replayed in here."""
    graphs: list[torch.cuda.CUDAGraph] = []
    original = torch.cuda.CUDAGraph.replay

    def replay(self: torch.cuda.CUDAGraph) -> None:
        graphs.append(self)
        original(self)

    torch.cuda.CUDAGraph.replay = replay  # type: ignore[method-assign]
    try:
        yield graphs
    finally:
        torch.cuda.CUDAGraph.replay = original  # type: ignore[method-assign]
