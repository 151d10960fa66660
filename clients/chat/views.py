"""Where an answer is shown: plain, as it comes, or as markdown in a terminal."""

from collections.abc import Callable
from types import TracebackType
from typing import IO, Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from remuda.clients.chat.markdown import SafeMarkdown, Tail, split_finished
from remuda.clients.chat.turn import TurnStats

_REDRAWS_PER_S: Final = 10


class PlainView:
    """Writes the text as it comes, and a newline at the end where there is none."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._last and self._last != "\n":
            self._file.write("\n")
            self._file.flush()

    def add(self, text: str) -> None:
        """New text."""
        self._file.write(text)
        self._file.flush()
        self._last = text[-1:] or self._last

    def show_status(self, stats: TurnStats) -> None:
        """Not here."""


class MarkdownView:
    """Finished blocks are printed once and for all; the last one is drawn anew, at most ten times a second.

    So nothing above it moves, and a long answer scrolls like any output. status: the line below, from the stats.
    """

    def __init__(self, console: Console, status: Callable[[TurnStats], str] | None = None) -> None:
        self._console = console
        self._make_status = status
        self._pending = ""
        self._status = ""
        self._is_first = True
        self._live = Live(
            console=console,
            get_renderable=self._draw,
            refresh_per_second=_REDRAWS_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        rest, self._pending, self._status = self._pending, "", ""
        self._print(rest)
        self._live.stop()

    def add(self, text: str) -> None:
        """New text."""
        pending = self._pending + text
        # Only a whole line tells whether it begins a block.
        finished, rest = split_finished(pending) if "\n" in text else ("", pending)
        self._pending = rest
        self._print(finished)

    def show_status(self, stats: TurnStats) -> None:
        """Drawn with the next redraw."""
        if self._make_status is not None:
            self._status = self._make_status(stats)

    def _print(self, block: str) -> None:
        if not block.strip():
            return
        if not self._is_first:
            self._console.print()
        self._is_first = False
        self._console.print(SafeMarkdown(block))

    def _draw(self) -> RenderableType:
        """Called by Live, in its own thread."""
        parts: list[RenderableType] = []
        pending = self._pending
        if pending.strip():
            parts += [Text("")] if not self._is_first else []
            parts.append(Tail(SafeMarkdown(pending)))
        if self._status:
            parts.append(Text(self._status, style="dim", no_wrap=True, overflow="ellipsis"))
        return Group(*parts)
