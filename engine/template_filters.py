"""The filters of chat templates: those of jinja2 that cannot run away, and guarded forms of some that can."""

import json
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, Final

from jinja2 import Environment, pass_environment
from jinja2.filters import FILTERS, make_attrgetter
from markupsafe import escape

from remuda.engine.template_budget import (
    STEP_UNITS,
    TemplateLimitError,
    charge,
    charge_text,
    charged,
    counted,
    size,
    text,
)

_MAX_INDENT: Final = 64
_MAX_DIGITS: Final = 20

_PLAIN: Final = frozenset(
    {"abs", "count", "d", "default", "dictsort", "first", "float", "int", "items", "last", "length", "list"}
    | {"map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort", "unique"}
)
# These make a text of their first argument, whatever it is.
_OF_TEXT: Final = frozenset({"capitalize", "lower", "title", "trim", "upper", "wordcount"})


def chat_template_filters() -> dict[str, Callable[..., Any]]:
    """Name to function, each of which charges the budget in force."""
    guarded: dict[str, Callable[..., Any]] = {
        "e": _escape,
        "escape": _escape,
        "indent": _indent,
        "join": _join,
        "replace": replace_text,
        "round": _round,
        "safe": text,
        "string": text,
        "sum": _sum,
        "tojson": _tojson,
    }
    plain = {name: _charging(FILTERS[name]) for name in _PLAIN}
    return plain | {name: _of_text(FILTERS[name]) for name in _OF_TEXT} | guarded


def join_texts(separator: str, entries: Iterable[Any]) -> str:
    """`separator.join` of the entries' texts, charged before it is made."""
    entries = list(counted(entries))
    for entry in entries:
        charge_text(entry)
    charge(len(entries) * len(separator))
    return separator.join(map(str, entries))


def replace_text(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    """`str.replace`, charged before it is made."""
    written, old, new = text(value), text(old), text(new)
    charge(written.count(old) * len(new))
    return written.replace(old, new, -1 if count is None else count)


def _charging(function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, paying for its arguments and result. `wraps` keeps jinja2's mark of what it is passed."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        charge(STEP_UNITS + sum(map(size, args)))
        return charged(function(*args, **kwargs))

    return wrapper


def _of_text(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(value: Any, *args: Any) -> Any:
        return charged(function(text(value), *args))

    return wrapper


@pass_environment
def _join(environment: Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return join_texts(d, value)


def _indent(value: Any, width: int = 4, first: bool = False, blank: bool = False) -> str:
    written = text(value)
    charge(written.count("\n") * _checked_indent(width))
    result: str = charged(FILTERS["indent"](written, width, first, blank))
    return result


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if not abs(precision) <= _MAX_DIGITS:
        raise TemplateLimitError(f"it rounds to more than {_MAX_DIGITS} digits")
    result: float = FILTERS["round"](value, precision, method)
    return result


def _sum(value: Iterable[float], start: float = 0) -> float:
    entries = list(counted(value))
    if not all(isinstance(entry, int | float) for entry in [start, *entries]):
        raise TemplateLimitError("it sums something else than numbers")
    return sum(entries, start)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """As transformers has it: plain JSON, with nothing escaped for HTML."""
    if options.keys() - {"separators", "sort_keys"}:
        raise TemplateLimitError(f"tojson has no option {sorted(options)[0]}")
    charge_text(value)
    if indent is not None:
        _checked_indent(indent)
    result: str = charged(json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options))
    return result


def _escape(value: Any) -> str:
    return str(escape(text(value)))


def _checked_indent(width: int) -> int:
    if not isinstance(width, int) or not 0 <= width <= _MAX_INDENT:
        raise TemplateLimitError(f"it indents by something else than 0 to {_MAX_INDENT}")
    return width
