"""write_html: the result's figures, nothing from elsewhere, nothing of others' making that runs, in all themes."""

import re
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from importlib.resources import files
from itertools import product
from pathlib import Path

import pytest

from remuda.clients.report import units
from remuda.clients.report.page import write_html
from remuda.clients.report.results import RequestResult
from remuda.clients.report.time_plots import requests_plot
from tests.clients.report.sample_results import ALL, HOSTILE, full, result, single

TAGS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "header",
        "section",
        "h1",
        "h2",
        "h3",
        "p",
    ),
    *("ul", "li", "i", "dl", "div", "dt", "dd", "small", "figure", "figcaption", "details", "summary", "table"),
    *("caption", "thead", "tbody", "tr", "th", "td", "code", "br", "span"),
    *("svg", "g", "path", "use", "defs", "clippath", "rect", "text"),
}
VOID = {"meta", "br"}


class Page(HTMLParser):
    """What a browser would see: texts, tags, attributes; `unclosed` is empty where all tags are."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.unclosed: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.unclosed.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.unclosed[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All of it, with plain spaces."""
        return " ".join(" ".join(self.texts).replace("\xa0", " ").split())


PAGES: dict[tuple[str, ...], str] = {}


def page(tmp_path: Path, *names: str) -> tuple[str, Page]:
    """The file of the results of these names, written once, and what is in it."""
    if names not in PAGES:
        write_html([ALL[name]() for name in names], tmp_path / "report.html")
        PAGES[names] = (tmp_path / "report.html").read_text(encoding="utf-8")
    return PAGES[names], Page(PAGES[names])


@pytest.mark.parametrize("name", list(ALL))
def test_every_result_has_a_page_that_is_whole_and_alone(tmp_path: Path, name: str) -> None:
    html, found = page(tmp_path, name)
    assert found.unclosed == []
    assert found.tags <= TAGS
    for attribute, value in found.attributes:
        assert attribute not in ("src", "srcset", "xlink:href", "onload", "onclick")
        assert attribute != "href" or value.startswith("#")
    assert "@import" not in html
    assert set(re.findall(r"url\(([^)]*)\)", html)) <= {
        f"#{value}" for name, value in found.attributes if name == "id"
    }
    outside = {address for address in re.findall(r"https?://[^\s<\"]+", html) if "127.0.0.1" not in address}
    assert outside == set()


@pytest.mark.parametrize("name", ["full", "sweep", "hostile"])
def test_ids_are_unique_and_what_is_used_is_there(tmp_path: Path, name: str) -> None:
    _, found = page(tmp_path, name)
    ids = Counter(value for attribute, value in found.attributes if attribute == "id")
    assert max(ids.values()) == 1
    used = {value.removeprefix("#") for attribute, value in found.attributes if attribute == "href"}
    assert used
    assert used <= set(ids)


def test_the_figures_are_those_of_the_result(tmp_path: Path) -> None:
    made = full()
    text = page(tmp_path, "full")[1].text
    for stage in made.stages:
        row = [
            stage.label,
            units.count(stage.num_requests),
            units.share(stage.num_failed / stage.num_requests),
            units.number(stage.requests_per_s),
            units.number(stage.output_tokens_per_s),
            units.number(stage.total_tokens_per_s),
        ]
        assert " ".join(row) in text
        latencies = [
            units.duration(values.percentiles[percent])
            for values in (stage.ttft, stage.itl, stage.tpot, stage.e2e)
            for percent in ("50", "99")
        ]
        assert " ".join([stage.label, *latencies]) in text
        for values in (stage.ttft, stage.itl, stage.tpot, stage.e2e):
            cells = [
                units.milliseconds(value) for value in (values.mean, *values.percentiles.values(), values.maximum)
            ]
            assert " ".join([stage.label, units.count(values.count), *cells]) in text
        for kind, number in stage.errors.items():
            assert f"{kind} {stage.label} {number}" in text


def test_long_context_has_its_line_and_its_formula(tmp_path: Path) -> None:
    made = full()
    assert made.long_context is not None
    text = page(tmp_path, "full")[1].text
    assert "= 2 · 4 · 256 · 2 · tokens · 16 = 65,536 B · tokens = 8.59 GB at 131,072 tokens" in text
    assert "= 311,296 B · 16 = 4.98 MB, at any length" in text
    assert "larger than the states from 76 tokens on" in text
    held = max(
        (point.sample.engine_resident_bytes or 0) + (point.sample.server_resident_bytes or 0)
        for point in made.long_context.points
    )
    assert f"from {held / 65_536:,.0f} tokens on" in text
    assert f"at {held / 16_384:,.0f} tokens" in text
    point = made.long_context.points[0]
    medians = point.itl.percentiles["50"], min(point.itl_parts), point.itl.percentiles["99"]
    row = list(map(units.duration, medians))
    assert f"1,024 {' '.join(row)} {units.number(point.prefill_tokens_per_s)}" in text
    assert "131,072 406 MB 588 MB 19.9 MB 4.98 MB 8.59 GB 2.15 GB" in text


def test_plots_keep_their_labels_whole(tmp_path: Path) -> None:
    html, _ = page(tmp_path, "full")
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", html)
    assert {"10 MB", "1 GB", "8.59 GB", "588 MB", "4.98 MB", "1k", "128k", "saturated"} <= set(labels)
    assert "from 8,978 tokens on" in labels


def test_what_must_be_known_stands_first(tmp_path: Path) -> None:
    text = page(tmp_path, "sweep")[1].text
    for note in (
        "one request of the warm-up failed: timeout",
        "concurrency 96: the client was busy for 97 % of the time",
    ):
        assert 0 < text.index(note) < text.index("Output tokens/s")
    assert "44 of 2,109 requests" in text


def test_settings_and_command_are_told(tmp_path: Path) -> None:
    made = single()
    text = page(tmp_path, "single")[1].text
    assert "remuda load --url http://127.0.0.1:8000 --concurrency 16" in text
    assert made.machine in text
    assert "prompt_tokens uniform:64,256" in text
    assert "slot_bytes 311,296" in text


def test_pictures_have_words_for_those_who_cannot_see_them(tmp_path: Path) -> None:
    html, _ = page(tmp_path, "full")
    pictures = re.findall(r"<svg ([^>]*)>", html)
    assert len(pictures) == 2 * len(re.findall("<figure", html))
    for attributes in pictures:
        assert 'role="img"' in attributes
        assert re.search(r'aria-label="[^"]{40,}"', attributes)


def test_text_of_others_stays_text(tmp_path: Path) -> None:
    html, found = page(tmp_path, "hostile")
    assert "<script" not in html
    assert "\x1b" not in html
    assert HOSTILE.replace("\x1b", "\N{REPLACEMENT CHARACTER}") in found.text


def test_a_failed_run_says_so(tmp_path: Path) -> None:
    text = page(tmp_path, "failed")[1].text
    assert "No request ended well" in text
    assert "connection concurrency 4 20 100 %" in text
    assert "The server has no metrics" in text


def test_a_run_without_stages_says_so(tmp_path: Path) -> None:
    assert "Nothing was measured" in page(tmp_path, "empty")[1].text


def test_two_runs_stand_side_by_side_above_their_reports(tmp_path: Path) -> None:
    one, other = ALL["full"](), ALL["other full"]()
    html, found = page(tmp_path, "full", "other full")
    assert found.unclosed == []
    a, b = one.stages[5], other.stages[5]
    change = units.change(b.output_tokens_per_s / a.output_tokens_per_s - 1)
    both = f"{units.number(a.output_tokens_per_s)} {units.number(b.output_tokens_per_s)} {change}"
    assert f"Output tokens/s {both}" in found.text
    assert found.text.index("Side by side") < found.text.index("Run A") < found.text.index("Run B")
    assert "Settings, target and machine are the same" in found.text
    assert html.count("<details open>") == 2


@pytest.mark.parametrize("second", ["empty", "failed", "hostile", "instant", "no lengths"])
def test_unlike_runs_can_be_compared(tmp_path: Path, second: str) -> None:
    for pair in (("single", second), (second, "single")):
        _, found = page(tmp_path, *pair)
        assert found.unclosed == []
        assert found.tags <= TAGS


def test_a_command_is_whole_and_a_note_is_cut(tmp_path: Path) -> None:
    write_html([single(command=["load", "--extra-body", "x" * 500], notes=["y" * 500])], tmp_path / "a.html")
    html = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "x" * 500 in html
    assert "y" * 300 + "…" in html


def test_a_request_that_failed_after_its_first_token_is_not_answered() -> None:
    rows = [
        RequestResult(stage=0, due=0, sent=0, prompt_tokens=1, output_tokens=1, ttft=ttft, error=error)
        for ttft, error in ((0.1, None), (None, None), (None, None), (0.1, "timeout"))
    ]
    plot = requests_plot(result([], rows))
    assert plot is not None
    assert plot.says == "3 requests answered, 1 failure."


def test_no_result_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one result"):
        write_html([], tmp_path / "report.html")


def themes() -> list[dict[str, str]]:
    """The colours of each theme in the CSS."""
    css = files("remuda.clients.report").joinpath("report.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)
    return [dict(re.findall(r"--(\w[\w-]*): (#[0-9a-f]{6})", block)) for block in blocks]


def contrast(one: str, other: str) -> float:
    """Of WCAG 2.2: (L1 + 0.05) / (L2 + 0.05)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["light", "dark", "print"])
def test_colours_can_be_told_from_their_ground(place: int) -> None:
    found = themes()[place]
    for name, ground in product(
        ("ink", "muted", "good", "bad", "c1", "c2", "c3", "c4", "c5", "c6"), ("card", "paper")
    ):
        assert contrast(found[name], found[ground]) >= 4.5, (name, ground)
    for name in ("r1", "r2", "r3", "r4", "r5", "r6"):
        assert contrast(found[name], found["card"]) >= 3, name
    assert contrast(found["ink"], found["warn"]) >= 7
