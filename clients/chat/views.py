"""Where an answer is shown: plain, as it comes, or as markdown in a terminal."""

import threading
import time
from collections.abc import Callable
from typing import IO, Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from remuda.clients.chat.markdown import SafeMarkdown, Tail, split_finished
from remuda.clients.chat.turn import TurnStats

_LEAST_PAUSE_S: Final = 0.1


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

    So nothing above it moves, and a long answer scrolls like any output. make_status: the line below, if any.
    """

    def __init__(self, console: Console, make_status: Callable[[TurnStats], str] | None = None) -> None:
        self._console = console
        self._make_status = make_status
        self._pending = ""
        self._status = ""
        self._is_first = True
        self._is_stale = False
        # rich's own thread would draw while a block is printed, and either count the other's lines wrong.
        self._lock = threading.Lock()
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._redraw, daemon=True)
        self._live = Live(
            console=console,
            get_renderable=self._draw,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )

    def __enter__(self) -> Self:
        self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._has_ended.set()
        self._thread.join()
        finished, rest = split_finished(self._pending + "\n")
        self._pending, self._status = "", ""
        self._print(*finished, rest)
        self._live.stop()

    def add(self, text: str) -> None:
        """New text."""
        with self._lock:
            pending = self._pending + text
            # Only a whole line tells whether it begins a block.
            finished, self._pending = split_finished(pending) if "\n" in text else ([], pending)
            self._print(*finished)
            self._is_stale = True

    def show_status(self, stats: TurnStats) -> None:
        """Drawn with the next redraw."""
        if self._make_status is not None:
            with self._lock:
                self._status = self._make_status(stats)
                self._is_stale = True

    def _print(self, *blocks: str) -> None:
        parts: list[RenderableType] = []
        for block in blocks:
            if block.strip():
                parts += [] if self._is_first else [Text("")]
                parts.append(SafeMarkdown(block))
                self._is_first = False
        if parts:
            self._console.print(Group(*parts))

    def _redraw(self) -> None:
        pause = _LEAST_PAUSE_S
        while not self._has_ended.wait(pause):
            start = time.monotonic()
            with self._lock:
                if self._is_stale:
                    self._is_stale = False
                    self._live.refresh()
            # A very long block takes long to draw; reading goes before.
            pause = max(_LEAST_PAUSE_S, 4 * (time.monotonic() - start))

    def _draw(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._pending.strip():
            parts += [] if self._is_first else [Text("")]
            parts.append(Tail(SafeMarkdown(self._pending)))
        if self._status:
            parts.append(Text(self._status, style="dim", no_wrap=True, overflow="ellipsis"))
        return Group(*parts)
