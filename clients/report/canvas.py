"""Plots as inline SVG: matplotlib lays them out, the page's CSS colours them and sets their type.

Each plot is laid out twice, for a page and for a phone, so that its letters are never scaled down.
"""

import io
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from remuda.clients.report.markup import Markup, escaped, tag

# Points of a plot are pixels of the page: wide beside another, wide alone, on a phone.
_WIDTHS: Final = {"half": 504, "full": 1040, "phone": 336}
_HEIGHTS: Final = {"half": 290, "full": 400, "phone": 270}
_DECIMALS: Final = re.compile(r"(\.\d\d)\d+")
# Stand-ins for the page's colours. matplotlib must be told a colour; the page decides which.
_NAMES: Final = (
    "card",
    "ink",
    "muted",
    "grid",
    "axis",
    *(f"c{i}" for i in range(1, 7)),
    *(f"r{i}" for i in range(1, 7)),
)
_COLOURS: Final = {name: f"#0a01{i:02x}" for i, name in enumerate(_NAMES)}
_METADATA: Final = ("Creator", "Date", "Format", "Type")
_STYLE: Final[dict[Any, Any]] = {
    # The same picture from the same numbers, to the byte.
    "svg.hashsalt": "remuda",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "axes.edgecolor": _COLOURS["axis"],
    "axes.labelcolor": _COLOURS["muted"],
    "axes.linewidth": 1,
    "axes.axisbelow": True,
    "text.color": _COLOURS["ink"],
    "xtick.color": _COLOURS["axis"],
    "ytick.color": _COLOURS["axis"],
    "xtick.labelcolor": _COLOURS["muted"],
    "ytick.labelcolor": _COLOURS["muted"],
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "grid.color": _COLOURS["grid"],
    "grid.linewidth": 1,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
}

Stroke = Literal["solid", "dashed", "dotted", "dot", "cross"]


def colour(name: str) -> str:
    """What to tell matplotlib for a colour of the page: ink, muted, …, c1 to c6 (apart), r1 to r6 (in order)."""
    return _COLOURS[name]


def dashes(stroke: Stroke) -> Any:
    """What to tell matplotlib for a stroke."""
    return {"solid": "-", "dashed": (0, (4, 2.5)), "dotted": (0, (1, 2.5))}.get(stroke, "-")


@dataclass(frozen=True)
class Key:
    """A line of the legend, which is HTML, so that it wraps as text does."""

    label: str
    colour: str
    stroke: Stroke = "solid"


@dataclass(frozen=True)
class Plot:
    """A picture: what it is called, what it says in words, and how it is drawn.

    paint: draws on axes that are styled; its second argument says whether they are those of a phone.
    """

    title: str
    says: str
    paint: Callable[[Axes, bool], None]
    keys: Sequence[Key] = ()
    width: Literal["half", "full"] = "half"


def figure(plot: Plot, *below: str) -> Markup:
    """The picture with its title, legend and sentence; `below` is its table."""
    label = f"{plot.title}. {plot.says}"
    pictures = [
        Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escaped(label)}" class="{name}" ', 1))
        for name, svg in (("page", inline_svg(plot, plot.width)), ("phone", inline_svg(plot, "phone")))
    ]
    keys = [tag("li", tag("i", class_=f"{key.stroke} {key.colour}"), key.label) for key in plot.keys]
    legend = tag("ul", *keys, class_="keys") if keys else Markup("")
    caption = tag("figcaption", tag("h3", plot.title), tag("p", plot.says), legend)
    return tag("figure", caption, *pictures, *below, class_=plot.width)


def inline_svg(plot: Plot, kind: Literal["half", "full", "phone"]) -> str:
    """The picture alone, laid out for that place of a page, whose variables its colours are."""
    with rc_context(_STYLE):
        size = (_WIDTHS[kind] / 72, _HEIGHTS[kind] / 72)
        made = Figure(figsize=size, dpi=72, layout="constrained")
        FigureCanvasSVG(made)
        axes = made.add_subplot()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="y")
        axes.tick_params(axis="both", which="both", length=0, pad=6)
        plot.paint(axes, kind == "phone")
        stream = io.StringIO()
        made.savefig(stream, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
    return _inline(stream.getvalue(), kind, plot.title)


def _inline(svg: str, kind: str, title: str) -> str:
    """Fit for the middle of a page: no head, no names of other places, ids of its own, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::xlink)?|width|height|version)="[^"]*"', "", svg, count=5)
    svg = re.sub(r'\stransform="rotate\(-0 [^"]*"|<g id="[^"]*"/>', "", svg)
    # Ids that nobody points to, and the decimals that nobody sees.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"<[^>]+>", lambda element: _DECIMALS.sub(r"\1", element[0]), svg)
    prefix = f"{kind}{zlib.crc32((title + svg).encode()):08x}-"
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{prefix}", svg).replace("xlink:href", "href")
    for name, stand_in in _COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return re.sub(r"\s*\n\s*", "\n", svg)
