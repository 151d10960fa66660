"""Finds the calls in a text that is still being written, in the formats that models are trained to write.

hermes: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number, with text around them (Hermes, Qwen).
llama3_json: the whole text is `{"name": …, "parameters": {…}}`, or several with semicolons between (Llama 3).
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from remuda.server.tool_calls import CallScanner, TextPiece, ToolEvent


@dataclass(frozen=True)
class CallFormat:
    """How calls are written: `opening`, the object, `closing`, and `separator` between two calls."""

    opening: str
    arguments_key: str
    closing: str
    separator: str

    def around_arguments(self, name: str) -> tuple[str, str]:
        """What a call of the function has before and after the arguments."""
        return f'{self.opening}{{"name": {json.dumps(name)}, "{self.arguments_key}": ', f"}}{self.closing}"


CALL_FORMATS: Final = {
    "hermes": CallFormat("<tool_call>\n", "arguments", "\n</tool_call>", "\n"),
    "llama3_json": CallFormat("", "parameters", "", "; "),
}
# What `--tool-call-parser` may be; with "none", only calls that are enforced are found.
TOOL_CALL_PARSERS: Final = (*CALL_FORMATS, "none")
DEFAULT_PARSER: Final = "hermes"
# So much white space beside a mark belongs to it; what is before, or after that, is text.
_MAX_SPACE: Final = 256


class ToolCallParser:
    """Splits a text into text and calls of the functions `names`, at most `max_calls`; further ones are left out.

    White space beside calls is no text. What looks like a call and is none is text, as it stands. Nothing depends
    on the pieces in which the text comes.
    """

    def __init__(self, name: str, names: Collection[str], max_calls: int | None = None) -> None:
        """name: a key of CALL_FORMATS."""
        call_format = CALL_FORMATS[name]
        self._opening = call_format.opening.strip()
        self._closing = call_format.closing.strip()
        self._begin, self._may_begin = _patterns(self._opening, call_format.separator.strip())
        # Without a mark, a brace in the middle of a text is no call.
        self._is_marked = bool(self._closing)
        self._names = names
        self._max_calls = max_calls
        self.num_calls = 0
        # Text that may be, or come before, the beginning or the end of a call.
        self._held = ""
        self._has_text = False
        self._scanner: CallScanner | None = None
        self._is_closing = False

    def push(self, text: str) -> list[ToolEvent]:
        """What more of the text brought."""
        events: list[ToolEvent] = []
        while text:
            if self._scanner is not None:
                text = self._push_call(self._scanner, text, events)
            elif self._is_closing:
                text = self._push_closing(text)
            else:
                text = self._push_text(text, events)
        return events

    def finish(self, *, is_cut: bool = False) -> list[ToolEvent]:
        """What was held back, at the end of the text.

        is_cut: it has not ended by itself. Then what has the mark of a call is one, as far as it goes.
        """
        events: list[ToolEvent] = []
        held, self._held = self._held, ""
        is_cut_call = is_cut and self._is_marked and (self._scanner is not None or self._opening in held)
        if self._scanner is not None:
            held += "" if self._scanner.has_started else self._scanner.raw
            if is_cut_call and self._may_call_more:
                events += self._scanner.end_early()
            self.num_calls += self._scanner.has_started and self._scanner.has_arguments
        if self._scanner is not None and self._scanner.has_started:
            held = ""
        is_beside_call = self.num_calls and not held.strip(" \n\r\t;")
        if not (is_cut_call or self._is_closing or is_beside_call):
            self._emit(held, events)
        return events

    @property
    def _may_call_more(self) -> bool:
        return self._max_calls is None or self.num_calls < self._max_calls

    def _push_text(self, text: str, events: list[ToolEvent]) -> str:
        pending, self._held = self._held + text, ""
        if not self._is_marked and self._has_text:
            self._emit(pending, events)
            return ""
        begin = self._begin.search(pending)
        if begin is not None:
            start = self._with_space_before(pending, begin.start())
            self._emit(pending[:start], events)
            self._held = pending[start : begin.end()]
            self._scanner = CallScanner(self.num_calls, self._names)
            return pending[begin.end() :]
        # A mark that is still to come to its end is not longer than this, with the space behind it.
        longest = len(self._opening) + _MAX_SPACE if self._is_marked else len(pending)
        may_begin = self._may_begin.search(pending, max(0, len(pending) - longest))
        if self._is_marked or may_begin is not None:
            start = self._with_space_before(pending, len(pending) if may_begin is None else may_begin.start())
            self._held = pending[start:]
        self._emit(pending[: len(pending) - len(self._held)], events)
        return ""

    def _with_space_before(self, text: str, place: int) -> int:
        """Where the white space begins that belongs to a mark at `place`."""
        if not self._is_marked:
            return place
        before = text[max(0, place - _MAX_SPACE) : place]
        return place - (len(before) - len(before.rstrip()))

    def _push_call(self, scanner: CallScanner, text: str, events: list[ToolEvent]) -> str:
        found, rest = scanner.push(text)
        if self._may_call_more:
            events += found
        if scanner.has_failed:
            self._emit(self._held + scanner.raw, events)
        elif scanner.is_done:
            self.num_calls += 1
            self._is_closing = self._is_marked
        if scanner.has_failed or scanner.is_done:
            self._scanner, self._held = None, ""
        return rest

    def _push_closing(self, text: str) -> str:
        """Leave the closing mark out; a model that forgets it goes on with what it wrote instead."""
        pending = (self._held + text).lstrip()
        self._held = ""
        if self._closing.startswith(pending) and pending != self._closing:
            self._held = pending
            return ""
        self._is_closing = False
        return pending.removeprefix(self._closing)

    def _emit(self, text: str, events: list[ToolEvent]) -> None:
        if text:
            self._has_text = True
            events.append(TextPiece(text))


def _patterns(opening: str, separator: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What comes before the object of a call, and an end of text which may become that.

    White space is looked at from its beginning on and never backwards: a model may write a great deal of it.
    """
    space = rf"\s{{0,{_MAX_SPACE}}}+"
    if not opening:
        between = rf"\A{space}(?:{re.escape(separator)}{space})?"
        return re.compile(between + r"(?=\{)"), re.compile(between + r"\Z")
    marks = "|".join(re.escape(opening[:i]) for i in range(1, len(opening)))
    return re.compile(rf"{opening}{space}(?=\{{)"), re.compile(rf"(?:{marks}|{opening}{space})\Z")
