"""Steps of fixed shapes as CUDA graphs; where none was captured, as without CUDA, plain calls."""

from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, Generic, TypeVar

import torch

Shape = TypeVar("Shape", bound=Hashable)

_DECODE_SIZES: Final = (
    *(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024),
    *range(1280, 65536, 256),
)  # fmt: skip


def decode_sizes(max_rows: int) -> tuple[int, ...]:
    """Numbers of rows that a decode step is padded to, ascending; the last is `max_rows`."""
    return (*_DECODE_SIZES[: bisect_left(_DECODE_SIZES, max_rows)], max_rows)


def padded(sizes: Sequence[int], number: int) -> int:
    """The least of the ascending `sizes` that holds `number`, which the last does."""
    return sizes[bisect_left(sizes, number)]


class StepGraphs(Generic[Shape]):
    """Runs `step(shape)`, which reads and writes fixed memory alone, by replay once it is captured."""

    def __init__(self, step: Callable[[Shape], None], shapes: Sequence[Shape]) -> None:
        self._step = step
        self._shapes = shapes
        self._graphs: dict[Shape, torch.cuda.CUDAGraph] = {}

    def run(self, shape: Shape) -> None:
        """One step of this shape."""
        graph = self._graphs.get(shape)
        if graph is None:
            self._step(shape)
        else:
            graph.replay()

    def clear(self) -> None:
        """Forget what was captured: steps are plain calls again."""
        self._graphs.clear()

    def capture(self, pool: Any, progress: Callable[[float], None]) -> None:
        """Capture every shape into a pool of torch.cuda's, the last first, whose memory the others then share.

        The inputs must name no slot: each shape runs once before, to compile and load what capture cannot.
        """
        for done, shape in enumerate(reversed(self._shapes)):
            progress(done / len(self._shapes))
            self._step(shape)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._step(shape)
            self._graphs[shape] = graph
