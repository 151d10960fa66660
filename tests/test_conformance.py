"""The runner of other people's suites: what it makes of their reports, and that its lists are pinned."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

CONFORMANCE = Path(__file__).parents[1] / "conformance"
REPORT = """<testsuites><testsuite>
<testcase classname="a.Test" name="good"/>
<testcase classname="a.Test" name="bad[x]"><failure message="">first line
second line</failure></testcase>
<testcase classname="a.Test" name="broken"><error message="no fixture"/></testcase>
<testcase classname="a.Test" name="left"><skipped message="no"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(CONFORMANCE))
    return importlib.import_module("results")


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.xml"
    path.write_text(REPORT)
    return path


def test_all_as_expected(results: ModuleType, report: Path) -> None:
    expected = [results.Expected(r"Test\.bad", "odd"), results.Expected("broken", "old")]
    outcome = results.judge(report, expected)
    assert (outcome.num_passed, outcome.num_skipped) == (1, 1)
    assert outcome.expected == {"odd": 1, "old": 1}
    assert outcome.surprises == []


@pytest.mark.parametrize(
    ("patterns", "surprises"),
    [
        ([], ["a.Test.bad[x] failed: first line", "a.Test.broken failed: no fixture"]),
        (["bad|broken", "gone"], ["no test that was to fail matches 'gone'"]),
        (["bad|broken|left"], []),
        (["."], ["a.Test.good passed, but was to fail: why", "nothing passed"]),
    ],
    ids=str,
)
def test_surprises(results: ModuleType, report: Path, patterns: list[str], surprises: list[str]) -> None:
    expected = [results.Expected(pattern, "why") for pattern in patterns]
    assert results.judge(report, expected).surprises == surprises


def test_every_expected_failure_is_of_a_suite_and_has_a_reason(results: ModuleType) -> None:
    suites = importlib.import_module("suites")
    expected = results.read_expected(CONFORMANCE / "expected.toml")
    assert expected.keys() <= {suite.name for suite in suites.SUITES}
    assert all(entry.reason for of_suite in expected.values() for entry in of_suite)


@pytest.mark.parametrize("path", sorted(CONFORMANCE.glob("requirements-*.txt")), ids=lambda path: path.stem)
def test_lists_are_pinned(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!]+", line) for line in lines), path


def test_no_registry_is_named() -> None:
    assert '"resolved"' not in (CONFORMANCE / "node" / "package-lock.json").read_text()
