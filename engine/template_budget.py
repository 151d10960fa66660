"""What one rendering of a chat template may cost, and the charging of it. Knows nothing of templates."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from jinja2 import Undefined

# One unit is about a byte of text. What an entry of a list costs, and what a pass of a loop or a call does.
ENTRY_UNITS: Final = 16
STEP_UNITS: Final = 64


class TemplateLimitError(Exception):
    """A template asked for more than its budget, or for something that the sandbox does not offer."""


class _Budget:
    def __init__(self, units: int, seconds: float) -> None:
        self._left = units
        self._deadline = time.monotonic() + seconds

    def charge(self, units: int) -> None:
        self._left -= units
        if self._left < 0:
            raise TemplateLimitError("it takes more memory or more steps than a chat template may")
        if time.monotonic() > self._deadline:
            raise TemplateLimitError("it takes too long")


_budget: ContextVar[_Budget | None] = ContextVar("_budget", default=None)


@contextmanager
def limited(units: int, seconds: float) -> Iterator[None]:
    """Give what is rendered in this block, in this thread, so much work and time together."""
    token = _budget.set(_Budget(units, seconds))
    try:
        yield
    finally:
        _budget.reset(token)


def charge(units: int) -> None:
    """Take `units` from the budget in force. Raises TemplateLimitError when it, or the time, is spent."""
    budget = _budget.get()
    if budget is not None:
        budget.charge(units)


def size(value: object) -> int:
    """Units of a value itself, without what it refers to."""
    if isinstance(value, str | bytes):
        return len(value)
    return ENTRY_UNITS * len(value) if isinstance(value, list | tuple | dict | set) else 0


def charge_text(value: object) -> None:
    """Charge for writing `value` as text; refuse what has no text."""
    for entry in _unfolded(value):
        if not isinstance(entry, str | int | float | list | tuple | dict | set | Undefined | None):
            raise TemplateLimitError(f"a {type(entry).__name__} cannot be written as text")


def charged_whole(value: Any) -> Any:
    """`value`, charged with all that it refers to. What nests deeper at every step soon costs too much."""
    for _ in _unfolded(value):
        pass
    return value


def _unfolded(value: object) -> Iterator[object]:
    """`value` and its entries at every depth, each charged as it is drawn; shared parts come again."""
    stack = [value]
    while stack:
        entry = stack.pop()
        charge(ENTRY_UNITS + size(entry))
        yield entry
        if isinstance(entry, dict):
            stack += [*entry.keys(), *entry.values()]
        elif isinstance(entry, list | tuple | set):
            stack += entry


def text(value: object) -> str:
    """`str(value)`, charged before it is made."""
    charge_text(value)
    return str(value)


def charged(value: Any) -> Any:
    """`value`, charged."""
    charge(size(value))
    return value


def counted(values: Iterable[Any]) -> Iterator[Any]:
    """`values`, each charged as it is drawn."""
    for value in values:
        charge(ENTRY_UNITS)
        yield value
