"""One HTML file that shows a run, or several side by side: it fetches nothing and runs no script."""

import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from remuda.clients.report import units
from remuda.clients.report.compare import run_names
from remuda.clients.report.comparison_report import comparison
from remuda.clients.report.markup import NOTHING, Markup, escaped, joined, section, table, tag
from remuda.clients.report.report_context import context_cards, context_section
from remuda.clients.report.report_stages import stage_cards, stage_sections
from remuda.clients.report.results import LoadResult
from remuda.clients.report.summary import all_notes


def write_html(results: Sequence[LoadResult], path: Path) -> None:
    """The report of one run, or a comparison with the reports of all below it.

    Raises ValueError without a result, and OSError where the file cannot be written.
    """
    if not results:
        raise ValueError("a report needs at least one result")
    title = f"Load test of {units.plain(results[0].target.model)}"
    if len(results) == 1:
        body = tag("main", *_run(results[0], title))
    else:
        title = f"{len(results)} load tests compared"
        named = zip(run_names(results), results, strict=True)
        runs = [part for name, result in named for part in _run(result, f"Run {name}", level=2)]
        body = tag("main", tag("header", tag("h1", title)), comparison(results), *runs)
    path.write_text(_page(title, body), encoding="utf-8")


def _page(title: str, body: Markup) -> str:
    css = files("remuda.clients.report").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _run(result: LoadResult, title: str, level: int = 1) -> list[Markup]:
    """From the headline figures to the settings."""
    return [
        _header(result, title, level),
        _warnings(result),
        _cards(result),
        context_section(result),
        *stage_sections(result),
        _about(result),
    ]


def _header(result: LoadResult, title: str, level: int) -> Markup:
    target = result.target
    where = f"{units.plain(target.model)} at {target.url}" if level > 1 else target.url
    return tag(
        "header",
        tag(f"h{level}", title),
        tag("p", f"{where} · {_day(result.created)}", class_="meta"),
        tag("p", f"{_served(result)} Measured on: {result.machine}.", class_="meta"),
    )


def _day(created: str) -> str:
    """2026-11-24 14:40 UTC; as it stands where it is no such time."""
    day, between, time = created.partition("T")
    is_utc = between and created.endswith(("Z", "+00:00")) and len(time) >= 5
    return f"{day} {time[:5]} UTC" if is_utc else created


def _served(result: LoadResult) -> str:
    info = result.target.info or {}
    size, slots, device = info.get("num_parameters"), info.get("num_slots"), info.get("device")
    parts = []
    if isinstance(size, int):
        parts.append(f"{units.short_count(size)} parameters")
    if isinstance(device, str):
        parts.append(f"on {device}")
    if isinstance(slots, int):
        parts.append(f"{slots:,} slots")
    return f"{', '.join(parts)}." if parts else ""


def _warnings(result: LoadResult) -> Markup:
    notes = all_notes(result)
    if not result.stages and result.long_context is None:
        notes.append("Nothing was measured: the run ended before its first stage did.")
    if not notes:
        return NOTHING
    items = [tag("li", units.plain(note)) for note in notes]
    return tag("div", tag("h2", "Read this first"), tag("ul", *items), class_="warnings", role="note")


def _cards(result: LoadResult) -> Markup:
    """One row of figures for long contexts, one for the load."""
    rows = [cards for cards in (context_cards(result), stage_cards(result)) if cards]
    return joined(
        [
            tag(
                "dl",
                *(
                    tag("div", tag("dt", name), tag("dd", value, tag("small", detail)))
                    for name, value, detail in cards
                ),
                class_="cards",
            )
            for cards in rows
        ]
    )


def _about(result: LoadResult) -> Markup:
    """Settings, target, machine, command and version: what someone needs to run it again."""
    given = result.command[1:] if result.command[:1] == ["load"] else result.command
    command = shlex.join(["remuda", "load", *given])
    run = [
        ("Command", tag("code", command)),
        ("Started", result.created),
        ("Machine", result.machine),
        ("Version", f"remuda {result.version}, {result.schema}"),
    ]
    if result.ceiling is not None:
        run.append(
            ("Client's ceiling", f"{units.number(result.ceiling.events_per_s)} events/s, measured before the run")
        )
    settings = [(name, _setting(value)) for name, value in result.settings.items() if value is not None]
    target = [("url", result.target.url), ("model", units.plain(result.target.model))]
    target += [
        (units.plain(name), units.plain(_setting(value)))
        for name, value in (result.target.info or {}).items()
        if name != "model"
    ]
    parts = [
        table(name, ("", ""), rows, is_text=True) for name, rows in (("Run", run), ("Settings", settings)) if rows
    ]
    left = tag("div", *parts, class_="panel")
    right = tag("div", table("Target, as it says itself", ("", ""), target, is_text=True), class_="panel")
    return section("How it was run", tag("div", left, right, class_="pair"))


def _setting(value: str | int | float | bool | None) -> str:
    if value is None:
        return units.MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
