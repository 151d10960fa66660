"""What the chat shows: no control characters get through, no text is lost, numbers are in words."""

import io
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

from remuda.clients.answers import Usage
from remuda.clients.chat import views
from remuda.clients.chat.markdown import SafeMarkdown, Tail, split_finished
from remuda.clients.chat.sanitize import clean, clean_line
from remuda.clients.chat.status import Totals, megabytes, status_line
from remuda.clients.chat.turn import Turn, TurnStats
from remuda.clients.chat.views import MarkdownView, PlainView
from tests.clients.chat.screen import screen
from tests.server.fakes import eventually

ATTACKS = [
    "\x1b]0;title\x07",
    "\x1b[2J\x1b[H",
    "\x1b]8;;http://evil\x1b\\name\x1b]8;;\x1b\\",
    "\x1b]52;c;cm0gLXJm\x07",
    "\x9b2J",
    "\x90q\x9c",
    "a\rb",
    "a\x08b\x7f",
    "&#27;[2J &#x9b;2J &#8;",
    "`\x1b[2J`",
    "```\n\x1b[2J\n```",
    "# \x1b[2J",
    "[\x1b[2J](http://x/\x1b[2J)",
    "| \x1b[2J |\n|---|\n| \x9b |",
    "<\x1b[2J>",
]


def drawn(text: str, width: int = 60) -> str:
    """As markdown on a console without colours."""
    console = Console(width=width, file=io.StringIO(), color_system=None, force_terminal=False, highlight=False)
    console.print(SafeMarkdown(text))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def controls(text: str) -> set[str]:
    """Control characters but for newlines and tabs."""
    return {c for c in text if (ord(c) < 32 or 127 <= ord(c) < 160) and c not in "\n\t"}


@pytest.mark.parametrize("text", ATTACKS)
def test_no_control_character_gets_through(text: str) -> None:
    assert controls(clean(text)) == set()
    # Even if it had not been cleaned before.
    assert controls(drawn(text)) == set()
    assert "\n" not in clean_line(text + "\n\n" + text)


@given(st.text())
def test_cleaned_text_can_be_written(text: str) -> None:
    assert controls(clean(text)) == set()
    clean(text).encode()


def test_ordinary_text_stays() -> None:
    text = "naïve 🐎\n\ttab « ﷽ » עברית\n"
    assert clean(text) == text
    assert clean("a\r\nb") == "a\nb"
    assert clean("\x1b[31m\ud800") == "␛[31m\ufffd"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<think>\nhm\n</think>", "<think>\nhm\n</think>"),
        ("a <b>bold</b> <!-- c -->", "a <b>bold</b> <!-- c -->"),
        ("one\ntwo", "one\ntwo"),
        ("![title](http://x/y.png)", "!title (http://x/y.png)"),
        ("[name](http://x)", "name (http://x)"),
        ("~~gone~~ **bold** `code`", "gone bold code"),
        ("[red]not markup[/red]", "[red]not markup[/red]"),
    ],
)
def test_markdown_loses_no_text(text: str, shown: str) -> None:
    assert "\n".join(line.rstrip() for line in drawn(text).strip().split("\n")) == shown


BLOCKS = (
    "# Title\n\nOne\nline.\n\n- a\n- b\n\n  more\n\n1. x\n\n2. y\n\n```py\na\n\nb\n```\n\n"
    "| a |\n|---|\n| 1 |\n\nEnd"
)

SHOWN = """\
                 Title

One
line.

 • a
 • b
   more

 1 x
 2 y

 a

 b

 a
 ─
 1

End
"""


def test_blocks_are_finished_when_another_begins() -> None:
    assert split_finished("One") == ([], "One")
    assert split_finished("One\n\nTwo") == ([], "One\n\nTwo")
    assert split_finished("One\n\nTwo\n") == (["One\n\n"], "Two\n")
    assert split_finished("\nOne\n\n- Two\n\nThree\nstill") == (["\nOne\n\n", "- Two\n\n"], "Three\nstill")
    assert split_finished("- a\n\n- b\n\n1") == ([], "- a\n\n- b\n\n1")
    assert split_finished("```\na\n\n# b\n") == ([], "```\na\n\n# b\n")
    assert split_finished("a\x0b\u2028\n\nb\n") == (["a\x0b\u2028\n\n"], "b\n")


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_blocks_come_out_as_they_would_whole(size: int) -> None:
    """To a file, nothing is drawn but what is final."""
    console = Console(width=40, file=io.StringIO(), color_system=None, highlight=False)
    with MarkdownView(console) as view:
        for start in range(0, len(BLOCKS), size):
            view.add(BLOCKS[start : start + size])
    file = console.file
    assert isinstance(file, io.StringIO)
    assert file.getvalue() == SHOWN


class SlowDraw:
    """What a view draws, after a while."""

    def __init__(self, draw: Callable[[], RenderableType]) -> None:
        self._draw = draw
        self.num_draws = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.num_draws += 1
        time.sleep(0.002)
        yield self._draw()


def test_redraws_leave_what_printing_it_whole_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a screen that holds every block, with redraws so slow and frequent that one is always under way."""
    monkeypatch.setattr(views, "_LEAST_PAUSE_S", 0.001)
    console = Console(width=40, height=40, file=io.StringIO(), force_terminal=True, color_system=None)
    text = "\n\n".join([BLOCKS] * 3)
    with MarkdownView(console, lambda stats: f"{stats.num_pieces} pieces") as view:
        slow = SlowDraw(view._draw)
        monkeypatch.setattr(view._live, "_get_renderable", lambda: slow)
        for place, piece in enumerate(text[start : start + 2] for start in range(0, len(text), 2)):
            view.show_status(TurnStats(num_pieces=place))
            if "\n" in piece:
                before = slow.num_draws
                assert eventually(lambda: slow.num_draws > before)  # noqa: B023
            view.add(piece)
    file = console.file
    assert isinstance(file, io.StringIO)
    assert "\n".join(screen(file.getvalue())).strip("\n") == "\n".join([SHOWN] * 3).strip("\n")


def test_a_block_longer_than_the_screen_shows_its_end() -> None:
    console = Console(width=20, height=10, file=io.StringIO(), color_system=None)
    console.print(Tail(SafeMarkdown("\n".join(f"line {i}" for i in range(100)))), end="")
    file = console.file
    assert isinstance(file, io.StringIO)
    assert file.getvalue().split() == [word for i in range(94, 100) for word in ("line", str(i))]


@pytest.mark.parametrize(
    ("pieces", "written"), [(["a", "b"], "ab\n"), (["a\n"], "a\n"), ([], ""), (["a", ""], "a\n")]
)
def test_the_plain_view_ends_with_a_newline(pieces: list[str], written: str) -> None:
    file = io.StringIO()
    with PlainView(file) as view:
        for piece in pieces:
            view.add(piece)
    assert file.getvalue() == written


def test_status_line() -> None:
    stats = TurnStats(0.25, 2.25, 9, Usage(1000, 11, 1011), "stop")
    line = "11 tokens · 5.0/s · first after 0.25 s · context 1,011 · state 311 kB, constant"
    assert status_line(stats, 311_296) == line
    assert status_line(TurnStats(0.25, 2.25, 9), None) == "about 9 tokens · about 4.0/s · first after 0.25 s"
    assert status_line(TurnStats(0.25, 0.25, 1), None) == "about 1 tokens · first after 0.25 s"
    assert status_line(TurnStats(), None) == "waiting for the first token"
    assert status_line(TurnStats(), None, is_stopped=True) == "about 0 tokens · stopped"
    assert status_line(TurnStats(0.1, 0.1, 1, finish_reason="length"), None).endswith(" · cut by max_tokens")


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(311_296, "311 kB"), (13_800_000, "13.8 MB"), (2_000_000_000, "2 GB"), (8, "0.008 kB")]
)
def test_bytes_in_words(num_bytes: int, text: str) -> None:
    assert megabytes(num_bytes) == text


def test_totals_leave_out_answers_without_text() -> None:
    totals = Totals()
    totals.add(Turn("", TurnStats()))
    totals.add(Turn("x", TurnStats(0.1, 0.2, 2, Usage(10, 2, 12))))
    totals.add(Turn("x", TurnStats(0.3, 0.4, 3)))
    assert totals.lines("m", 1000) == [
        "model: m",
        "answers: 2, with 5 tokens",
        "prompt tokens read: 10",
        "time to first token, median: 0.30 s",
        "last answer: about 3 tokens · about 20.0/s · first after 0.30 s",
        "state of a conversation: 1,000 bytes, however long it is",
    ]
