"""Decode steps as CUDA graphs, one for each size of batch; without CUDA, or beyond the sizes, plain calls."""

from bisect import bisect_left
from collections.abc import Callable
from typing import Final

import torch

_SIZES: Final = (
    *(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024),
    *range(1280, 65536, 256),
)  # fmt: skip


def graph_sizes(max_rows: int) -> tuple[int, ...]:
    """Numbers of rows that a decode step is padded to, ascending; the last is `max_rows`."""
    return (*_SIZES[: bisect_left(_SIZES, max_rows)], max_rows)


class DecodeGraphs:
    """Runs `step(size)`, which reads and writes fixed memory alone, by replay once it is captured."""

    def __init__(self, step: Callable[[int], None], max_rows: int) -> None:
        self._step = step
        self.sizes = graph_sizes(max_rows)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def padded(self, num_rows: int) -> int:
        """The size that `num_rows` rows run at."""
        return self.sizes[bisect_left(self.sizes, num_rows)]

    def run(self, size: int) -> None:
        """One step of `size` rows, a value of `padded`."""
        graph = self._graphs.get(size)
        if graph is None:
            self._step(size)
        else:
            graph.replay()

    def capture(self, progress: Callable[[float], None]) -> None:
        """Capture every size into one memory pool, the largest first, whose memory the others then share.

        The rows must be pad rows: each size runs once before, to compile and load what capture cannot.
        """
        pool = torch.cuda.graph_pool_handle()
        for done, size in enumerate(reversed(self.sizes)):
            progress(done / len(self.sizes))
            self._step(size)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._step(size)
            self._graphs[size] = graph
