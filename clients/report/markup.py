"""HTML that is escaped unless it says otherwise: a `str` is text, a `Markup` is what this module made."""

import html
import re
from collections.abc import Sequence
from typing import Final

from remuda.clients.report.units import printable


class Markup(str):
    """HTML that is safe as it stands."""

    __slots__ = ()


NOTHING: Final = Markup("")
# A number and its unit stay on one line.
_BEFORE_UNIT: Final = re.compile(r"(?<=\d) (?=(?:µs|ms|s|k?B|[MGTP]B|%|×)(?!\w))")


def escaped(text: str) -> Markup:
    """All of a text as HTML, also within a quoted attribute; text of others is cut by units.plain before."""
    if isinstance(text, Markup):
        return text
    return Markup(_BEFORE_UNIT.sub("\N{NO-BREAK SPACE}", html.escape(printable(text))))


def joined(parts: Sequence[str], between: str = "") -> Markup:
    """Parts one after the other."""
    return Markup(between.join(escaped(part) for part in parts))


def tag(name: str, *children: str, **attributes: str) -> Markup:
    """An element. `class_` is the attribute `class`, `aria_label` is `aria-label`."""
    written = [f' {key.strip("_").replace("_", "-")}="{escaped(value)}"' for key, value in attributes.items()]
    return Markup(f"<{name}{''.join(written)}>{joined(children)}</{name}>")


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, is_text: bool = False) -> Markup:
    """A table that scrolls sideways where it must. The first cell of a row is its head.

    is_text: cells to the left, as sentences, and not to the right, as numbers.
    """
    head = tag("tr", *(tag("th", name, scope="col") if name else tag("td") for name in header))
    body = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    parts = [tag("caption", caption), tag("thead", head) if any(header) else NOTHING, tag("tbody", *body)]
    made = tag("table", *parts, class_="text" if is_text else "numbers")
    return tag("div", made, class_="scroll", tabindex="0", role="group", aria_label=caption)


def folded(summary: str, *children: str, is_open: bool = False) -> Markup:
    """What is shown when its line is pressed, and in print."""
    made = tag("details", tag("summary", summary), *children)
    return Markup(made.replace("<details>", "<details open>", 1)) if is_open else made


def section(title: str, *children: str, level: int = 2) -> Markup:
    """A part of the page with its heading."""
    return tag("section", tag(f"h{level}", title), *children)
