"""The machine under test: how to time on it, what it can do at best, and what a row of a table is.

On a machine without a GPU everything runs once, by the wall clock, to show that it runs: a dry run.
"""

import gc
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch

Row = dict[str, Any]

# Launches of a captured graph: enough to hide its own start, and as many as a model has layers.
MAX_LAUNCHES: Final = 48
_GRAPH_SECONDS: Final = 0.02
# Inputs are rotated until they are this many times the cache.
_CACHES: Final = 6
_COPY_BYTES: Final = 4 << 30
_GEMM_SIZE: Final = 8192


class WrongResult(Exception):
    """What was to be timed computes something else: no speed is printed."""


@dataclass(frozen=True)
class Case:
    """A row to be: `run` checks, measures, and returns its columns, or those of several. Raises WrongResult."""

    name: str
    run: Callable[[], Row | list[Row]]


@dataclass(frozen=True)
class Ceilings:
    """Copy: bytes read plus bytes written a second. gemm: bf16 operations a second."""

    copy: float
    gemm: float


@dataclass
class Lab:
    """A device, how often to measure on it, and its ceilings once measured."""

    device: torch.device
    rounds: int
    ceilings: Ceilings = field(default_factory=lambda: Ceilings(math.nan, math.nan))

    @property
    def is_dry(self) -> bool:
        """No GPU: times mean nothing."""
        return self.device.type != "cuda"

    def sync(self) -> None:
        """Wait for the device."""
        if not self.is_dry:
            torch.cuda.synchronize()

    def release(self) -> None:
        """Give back cached memory, and what only cycles hold, so that the next case sees what is free."""
        gc.collect()
        if not self.is_dry:
            torch.cuda.empty_cache()

    def free_memory(self) -> int:
        """Bytes that a next case may take."""
        return 1 << 30 if self.is_dry else torch.cuda.mem_get_info()[0]

    def num_sets(self, num_bytes: int, wanted: int = 1) -> int:
        """How many input sets to rotate among, so that none of a set of `num_bytes` is found in the cache.

        wanted: more than that, where they fit.
        """
        if self.is_dry:
            return 2
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        fitting = max(1, self.free_memory() // 2 // num_bytes)
        return min(max(wanted, math.ceil(_CACHES * cache / num_bytes)), MAX_LAUNCHES, fitting)

    def seconds_per_launch(self, launch: Callable[[int], Any], num_sets: int) -> float:
        """Median seconds of `launch(i)`, i in range(num_sets), in replays of a CUDA graph of many launches.

        Every launch of the graph keeps its own output, so that outputs go to memory too.
        """
        for i in range(num_sets):
            launch(i)
        if self.is_dry:
            return self.median_wall(lambda: launch(0))
        estimate = self._event_seconds(lambda: launch(0), 1)
        num_launches = max(1, min(MAX_LAUNCHES, int(_GRAPH_SECONDS / estimate)))
        num_launches = max(num_sets, num_launches // num_sets * num_sets)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = [launch(i % num_sets) for i in range(num_launches)]
        seconds = self.seconds_of(graph.replay) / num_launches
        del graph, outputs
        self.release()
        return seconds

    def seconds_per_copy(self, num_bytes: int) -> float:
        """Median seconds of a kernel that reads half of `num_bytes` and writes as many, as `seconds_per_launch`.

        It inverts bits, because a graph hands plain copies of some sizes to slower copy engines.
        """
        num_sets = self.num_sets(num_bytes)
        source = torch.randint(2**31, (num_sets, num_bytes // 8), dtype=torch.int32, device=self.device)
        target = torch.empty_like(source)
        return self.seconds_per_launch(lambda i: torch.bitwise_not(source[i], out=target[i]), num_sets)

    def seconds_of(self, run: Callable[[], Any]) -> float:
        """Median seconds that the device takes for `run`, which is repeated back to back between events."""
        for _ in range(2):
            run()
        estimate = max(self._event_seconds(run, 1), 1e-6)
        # A while of work first: an idle chip has its clocks down.
        self._event_seconds(run, max(1, int(0.05 / estimate)))
        repeats = max(1, int(0.003 / estimate))
        return statistics.median(self._event_seconds(run, repeats) for _ in range(self.rounds))

    def median_wall(self, run: Callable[[], Any], rounds: int | None = None) -> float:
        """Median seconds by the clock on the wall, the device waited for."""
        seconds = []
        for _ in range(rounds or self.rounds):
            self.sync()
            began = time.perf_counter()
            run()
            self.sync()
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)

    def _event_seconds(self, run: Callable[[], Any], repeats: int) -> float:
        # torch leaves events without types.
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / repeats

    def measure_ceilings(self) -> list[Row]:
        """A large device-to-device copy, and a large bf16 product of random matrices."""
        size = 1 << 20 if self.is_dry else _COPY_BYTES
        n = 64 if self.is_dry else _GEMM_SIZE
        source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        a, b = (torch.randn(n, n, device=self.device).bfloat16() for _ in range(2))
        timed = self.median_wall if self.is_dry else self.seconds_of
        copy = timed(lambda: target.copy_(source))
        gemm = timed(lambda: torch.mm(a, b))
        if not torch.equal(target, source):
            raise WrongResult("the copy differs from its source")
        self.ceilings = Ceilings(copy=2 * size / copy, gemm=2 * n**3 / gemm)
        return [
            {"case": f"copy of {size / 1e9:.1f} GB", "ms": copy * 1e3, "GB/s": self.ceilings.copy / 1e9},
            {"case": f"bf16 product {n}³", "ms": gemm * 1e3, "TFLOP/s": self.ceilings.gemm / 1e12},
        ]


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖ in float64; NaN where anything is not finite."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def require(name: str, error: float, limit: float) -> float:
    """Return `error`. Raises WrongResult where it exceeds `limit` or is NaN."""
    if not error <= limit:
        raise WrongResult(f"{name} {error:.2g} > {limit:g}")
    return error


@contextmanager
def poisoned() -> Iterator[None]:
    """In here `torch.empty` is full of NaN, so that what a kernel leaves unwritten shows."""
    # The fill belongs to deterministic mode; warn_only, since the mode itself is not what is wanted.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def machine_notes(lab: Lab) -> list[str]:
    """The GPU, its driver and its clocks as they are now; nothing is changed."""
    from importlib.metadata import version

    versions = f"triton {version('triton')}"
    if lab.is_dry:
        return [f"DRY RUN on a CPU: the figures mean nothing; {versions}"]
    fields = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    except (OSError, subprocess.CalledProcessError):
        return [f"{torch.cuda.get_device_name()}; {versions}; nvidia-smi did not answer"]
    name, driver, clock, most, memory, power, heat = found
    return [
        f"{name}, driver {driver}, CUDA {torch.version.cuda}, {versions}",
        f"as found, nothing set: SM {clock} of {most}, memory {memory}, {power}, {heat} °C",
    ]
