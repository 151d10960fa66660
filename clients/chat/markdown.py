"""Markdown of a model, as rich draws it: nothing of the text gets lost, and no control character gets through."""

import itertools
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Markdown
from rich.segment import Segment

from remuda.clients.chat.sanitize import clean

# rich leaves out HTML, and of images all but the title: here both are text.
_PARSER: Final = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).disable("image")
# Lines of the terminal that a redrawn block leaves free, for what stands around it.
_FREE_LINES: Final = 4


class SafeMarkdown:
    """A renderable. Line ends are kept, as models write verse and lists without markup."""

    def __init__(self, text: str) -> None:
        # Links show their target: what they are called is the model's word.
        self._markdown = Markdown("", code_theme="ansi_dark", hyperlinks=False)
        self._markdown.parsed = _parse(text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._markdown, options, pad=False)
        # rich puts empty lines around some blocks; here whoever prints a block puts one before it.
        for line in _without_empty_ends([_without_padding(_cleaned(line)) for line in lines]):
            yield from line
            yield Segment.line()


class Tail:
    """As much of the end of a renderable as the terminal has room for."""

    def __init__(self, markdown: SafeMarkdown) -> None:
        self._markdown = markdown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._markdown, options, pad=False)
        for line in lines[-max(1, console.height - _FREE_LINES) :]:
            yield from line
            yield Segment.line()


def split_finished(text: str) -> tuple[list[str], str]:
    """Markdown that is still being written, as its finished blocks and the rest.

    A block is finished once a whole line after it begins another one.
    """
    whole, newline, _ = text.rpartition("\n")
    starts = [
        token.map[0]
        for token in _PARSER.parse(whole + newline)
        if token.level == 0 and token.nesting >= 0 and token.map
    ]
    if len(starts) < 2:
        return [], text
    lines = text.split("\n")
    starts[0] = 0
    blocks = ["\n".join(lines[start:end]) + "\n" for start, end in itertools.pairwise(starts)]
    return blocks, "\n".join(lines[starts[-1] :])


def _parse(text: str) -> list[Token]:
    tokens = _PARSER.parse(text)
    for token in tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return tokens


def _cleaned(line: list[Segment]) -> list[Segment]:
    """An entity such as `&#27;` makes a character that was not in the text."""
    return [Segment(clean(segment.text), segment.style) for segment in line]


def _without_padding(line: list[Segment]) -> list[Segment]:
    """rich fills lines with spaces, which are in the way of whoever copies text; those with a colour stay."""
    while line:
        text, style, _ = line[-1]
        if style is not None and style.bgcolor is not None:
            return line
        stripped = text.rstrip(" ")
        if stripped:
            return [*line[:-1], Segment(stripped, style)]
        line = line[:-1]
    return line


def _without_empty_ends(lines: list[list[Segment]]) -> list[list[Segment]]:
    full = [place for place, line in enumerate(lines) if line]
    return lines[full[0] : full[-1] + 1] if full else []
