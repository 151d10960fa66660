"""Reads one `{"name": …, "arguments": …}` as it comes, and gives its arguments out early."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

ARGUMENT_KEYS: Final = ("arguments", "parameters")
# What may stand before a call's name and arguments are known; after more it is text. Arguments may be longer.
MAX_HELD_CHARS: Final = 65_536


@dataclass(frozen=True)
class TextPiece:
    """Text that is no call."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """Call number `index` of an answer begins."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """The next part of a call's arguments, which are a JSON text."""

    index: int
    text: str


ToolEvent = TextPiece | CallStart | CallArguments


class CallScanner:
    """Takes the text of one JSON object. is_done: it has ended. has_failed: it is not a call.

    The name may come before or after the arguments, which are given out once it is known. `raw` is what was
    taken, while nothing has been given out. has_arguments: the arguments are complete. After them the object may
    end without its brace, which models forget.
    """

    def __init__(self, index: int, names: Collection[str]) -> None:
        self._index = index
        self._names = names
        self.raw = ""
        self.is_done = False
        self.has_failed = False
        self.has_started = False
        self.has_arguments = False
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        # Of the object itself: the key whose value comes, and where in `raw` its parts are.
        self._key: str | None = None
        self._string_start = 0
        self._name: str | None = None
        self._arguments_start: int | None = None
        self._arguments_end: int | None = None
        self._in_arguments = False
        self._is_value_next = False

    def push(self, text: str) -> tuple[list[ToolEvent], str]:
        """Take text, up to the object's end; gives what it brought and what is left of the text."""
        events: list[ToolEvent] = []
        sent_to, before = 0, len(self.raw)
        if not self.has_started:
            self.raw += text
        for place, character in enumerate(text):
            if self.has_started and self.has_arguments and self._is_beyond(character):
                self.is_done = True
                return events, text[place:]
            was_in_arguments = self._in_arguments
            self._take(character, before + place)
            if not self.has_started and self._can_start():
                events += self._start()
                sent_to = place + 1
            elif self.has_started and was_in_arguments and not self._in_arguments:
                events.append(CallArguments(self._index, text[sent_to : place + 1]))
            elif not self.has_started and not self.is_done and before + place + 1 == MAX_HELD_CHARS:
                self.has_failed = True
            if self.is_done or self.has_failed:
                self.raw = self.raw[: before + place + 1]
                events += self._end() if self.is_done else []
                return events, text[place + 1 :]
        if self.has_started and self._in_arguments and text[sent_to:]:
            events.append(CallArguments(self._index, text[sent_to:]))
        return events, ""

    def end_early(self) -> list[ToolEvent]:
        """The text has ended within the object: the call's beginning, where its name is known by now."""
        if self.has_started or self._name is None:
            return []
        self.has_started = True
        return [CallStart(self._index, self._name)]

    def _is_beyond(self, character: str) -> bool:
        """It cannot belong to the object, of which a call's arguments are complete."""
        if self._in_string or self._depth > 1 or character.isspace() or character in ',:}"':
            return False
        return not (self._is_value_next and (character.isalnum() or character in "{[+-."))

    def _take(self, character: str, place: int) -> None:
        """place: of the character in `raw`, while nothing has been given out."""
        if self._in_string:
            self._take_in_string(character, place)
        elif character == '"':
            self._in_string, self._string_start = True, place
        elif character in "{[":
            self._depth += 1
            if self._depth == 2 and character == "{" and self._key in ARGUMENT_KEYS and not self.has_arguments:
                self._in_arguments, self._arguments_start = True, place
        elif character in "}]":
            self._close(place)
        elif self._depth == 1 and character in ",:":
            self._is_value_next = character == ":"
            if character == ",":
                self._key = None
        elif self._depth == 0 and not character.isspace():
            self.has_failed = True

    def _close(self, place: int) -> None:
        self._depth -= 1
        self._is_value_next = False
        if self._in_arguments and self._depth == 1:
            self._in_arguments, self.has_arguments = False, True
            self._arguments_end = place + 1
            self._key = None
        self.is_done = self._depth == 0

    def _take_in_string(self, character: str, place: int) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._in_string = self._is_value_next = False
            if self._depth == 1 and not self.has_started:
                self._end_string(self.raw[self._string_start : place + 1])

    def _end_string(self, literal: str) -> None:
        value = _loads(literal)
        if not isinstance(value, str):
            self.has_failed = True
        elif self._key is None:
            self._key = value
        elif self._key == "name":
            self._name = value
            self.has_failed = value not in self._names

    def _can_start(self) -> bool:
        return self._name is not None and not self.has_failed and self._arguments_start is not None

    def _start(self) -> list[ToolEvent]:
        assert self._name is not None
        assert self._arguments_start is not None
        self.has_started = True
        # Where the name came after them, they have ended already; else their brace has just been taken.
        arguments = self.raw[self._arguments_start : self._arguments_end or self._arguments_start + 1]
        self.raw = ""
        return [CallStart(self._index, self._name), CallArguments(self._index, arguments)]

    def _end(self) -> list[ToolEvent]:
        """Of a call whose arguments are no object: they are missing, or written as a string."""
        if self.has_started:
            return []
        call = _loads(self.raw)
        arguments: object = None
        if isinstance(call, dict):
            arguments = next((call[key] for key in ARGUMENT_KEYS if key in call), {})
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        if self._name is None or not isinstance(_loads(text), dict):
            self.has_failed = True
            return []
        self.has_started = True
        return [CallStart(self._index, self._name), CallArguments(self._index, text)]


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
