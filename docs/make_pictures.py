"""Makes the pictures of docs/tutorial.md, and what its commands print, from the results that those commands wrote.

    .venv/bin/python docs/make_pictures.py results

Reads results/{c8,c16,sweep,long}/load.json; writes docs/images/load-*.svg, and where Chromium is found
docs/images/load-report.png, the top of results/long/load.html.
"""

import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path

from PIL import Image
from rich.console import Console

from remuda.clients.report.canvas import Key, Plot, inline_svg
from remuda.clients.report.compare import print_comparison
from remuda.clients.report.context_plots import latency_plot, memory_plot
from remuda.clients.report.measures import saturated_stage
from remuda.clients.report.plots import chosen, distribution_plot, ordered_colours, sweep_plots
from remuda.clients.report.reading import read_result
from remuda.clients.report.results import LoadResult
from remuda.clients.report.summary import print_summary

DOCS = Path(__file__).parent
Show = Callable[[list[LoadResult], Console], None]
# Of the picture around a plot, in pixels.
MARGIN, TITLE, ROW = 20, 44, 22
SHOT = (1104, 1180)


def main(folder: Path) -> None:
    """All pictures, then the printed blocks of the tutorial."""
    (DOCS / "images").mkdir(exist_ok=True)
    for name, plot in plots(folder):
        (DOCS / "images" / f"load-{name}.svg").write_text(standalone(plot), encoding="utf-8")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is not None:
        shoot(browser, folder / "long" / "load.html", DOCS / "images" / "load-report.png")
    tutorial = DOCS / "tutorial.md"
    tutorial.write_text(fill(tutorial.read_text(encoding="utf-8"), folder), encoding="utf-8")


def plots(folder: Path) -> list[tuple[str, Plot]]:
    """Those that the tutorial shows, by name."""
    swept, long = read_result(folder / "sweep" / "load.json"), read_result(folder / "long" / "load.json")
    at = saturated_stage(swept)
    throughput, _, *latencies = sweep_plots(swept.stages, at)
    stages = chosen(swept.stages, at)
    colours = ordered_colours(len(stages))
    lines = [(stage.label, name, stage.ttft) for stage, name in zip(stages, colours, strict=True)]
    found = {
        "throughput": throughput,
        "latency": latencies[1],
        "first-token": distribution_plot("Time to first token", lines),
        "context-memory": memory_plot(long, long.long_context) if long.long_context else None,
        "context-latency": latency_plot(long.long_context) if long.long_context else None,
    }
    missing = [name for name, plot in found.items() if plot is None]
    if missing:
        raise SystemExit(f"the results have nothing to draw for: {', '.join(missing)}")
    return [(name, plot) for name, plot in found.items() if plot is not None]


def standalone(plot: Plot) -> str:
    """A file of its own: title, legend and plot, light or dark as the reader's system is."""
    svg = inline_svg(plot, plot.width)
    width, height = (int(number) for number in re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0])
    top = TITLE + ROW * len(plot.keys)
    css = files("remuda.clients.report").joinpath("report.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{.*?\}", css, flags=re.DOTALL)[:2]
    placed = svg.replace("<svg ", f'<svg x="{MARGIN}" y="{top}" width="{width}" height="{height}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 2 * MARGIN} {top + height + MARGIN}" '
        f'width="{width + 2 * MARGIN}" role="img" aria-label="{escape(f"{plot.title}. {plot.says}")}">\n'
        f"<style>{light} @media (prefers-color-scheme: dark) {{ {dark} }}\n"
        "text { font: 14px system-ui, sans-serif; fill: var(--ink); stroke: none } "
        "svg svg text { font-family: system-ui, sans-serif !important } "
        "svg svg { stroke-linejoin: round }</style>\n"
        '<rect width="100%" height="100%" rx="10" fill="var(--card)"/>\n'
        f'<text x="{MARGIN}" y="30" style="font-size: 16px; font-weight: 600">{escape(plot.title)}</text>\n'
        f"{legend(plot)}{placed}</svg>\n"
    )


def legend(plot: Plot) -> str:
    """A row for each key."""
    rows = []
    for i, key in enumerate(plot.keys):
        y = TITLE + ROW * i + ROW // 2 - 4
        rows.append(
            f'<path d="M{MARGIN} {y}h24" style="stroke: var(--{key.colour}); stroke-width: 2.5{_dashes(key)}"/>'
            f'<text x="{MARGIN + 34}" y="{y + 5}">{escape(key.label)}</text>\n'
        )
    return "".join(rows)


def _dashes(key: Key) -> str:
    return "; stroke-dasharray: 5 3" if key.stroke == "dashed" else ""


def shoot(browser: str, page: Path, picture: Path) -> None:
    """The top of the page, in few colours so that the file stays small."""
    with tempfile.TemporaryDirectory() as made:
        shot = Path(made) / "shot.png"
        size = f"--window-size={SHOT[0]},{SHOT[1]}"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size]
        command += [f"--screenshot={shot}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 — a browser, on our own page
        with Image.open(shot) as image:
            image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(picture, optimize=True)


def fill(text: str, folder: Path) -> str:
    """The tutorial with each block below a marker replaced by what its results print now."""
    shown: list[tuple[str, Show]] = [("summary", _summary), ("comparison", print_comparison)]
    for verb, show in shown:
        pattern = re.compile(rf"(<!-- {verb}: ([^>]*) -->\n\n```\n).*?(```\n)", flags=re.DOTALL)
        text = pattern.sub(partial(_filled, folder, show), text)
    return text


def _filled(folder: Path, show: Show, block: re.Match[str]) -> str:
    results = [read_result(folder / name / "load.json") for name in block[2].split()]
    stream = io.StringIO()
    show(results, Console(file=stream, width=200))
    return f"{block[1]}{stream.getvalue().rstrip()}\n{block[3]}"


def _summary(results: list[LoadResult], console: Console) -> None:
    print_summary(results[0], console)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: make_pictures.py RESULTS, the folder that docs/tutorial.md has its runs write to")
    main(Path(sys.argv[1]))
