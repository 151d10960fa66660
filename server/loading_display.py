"""What a person sees while the engine loads: a progress bar on a terminal, plain lines elsewhere."""

from types import TracebackType
from typing import Final, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from remuda.engine.config import EngineInfo
from remuda.engine.wire import EngineLoading

_MB: Final = 1_000_000


class LoadingDisplay:
    """Shows `EngineLoading` messages until it is closed; closing twice is harmless."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""

    def __enter__(self) -> "LoadingDisplay":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, loading: EngineLoading) -> None:
        """Show how far the start has come."""
        if not self._console.is_terminal:
            if loading.stage != self._stage:
                self._console.print(f"remuda: {loading.stage}", highlight=False, markup=False, soft_wrap=True)
        else:
            progress, task = self._bar()
            progress.update(task, description=loading.stage, completed=loading.fraction)
        self._stage = loading.stage

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _bar(self) -> tuple[Progress, TaskID]:
        if self._progress is None or self._task is None:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TimeElapsedColumn(),
            )
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._task = self._progress.add_task("starting", total=1.0)
            self._progress.start()
        return self._progress, self._task


def ready_line(info: EngineInfo, url: str) -> str:
    """One line: what is served, how, for how many, and where."""
    dtypes = info.dtype if info.state_dtype == info.dtype else f"{info.dtype}, state {info.state_dtype}"
    model = f"{info.model} ({info.model_type}, {_count(info.num_parameters)} parameters)"
    slots = f"{info.num_slots} slots × {info.slot_bytes / _MB:.3g} MB"
    return f"remuda: {model} on {info.device}, {info.backend} backend, {dtypes}, {slots}, ready at {url}"


def _count(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
