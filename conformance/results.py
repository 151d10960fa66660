"""What a suite's report says, held against the failures that are expected of it. Runs nothing."""

import re
import tomllib
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Expected:
    """Tests that are to fail, by a regular expression over their names, and why."""

    tests: str
    reason: str


@dataclass
class Outcome:
    """Of one suite. surprises: failures that nobody expects, and expectations that did not come true."""

    num_passed: int = 0
    num_skipped: int = 0
    expected: dict[str, int] = field(default_factory=dict)
    surprises: list[str] = field(default_factory=list)


def read_expected(path: Path) -> dict[str, list[Expected]]:
    """By suite, the failures of expected.toml."""
    entries = tomllib.loads(path.read_text())
    return {suite: [Expected(**entry) for entry in of_suite] for suite, of_suite in entries.items()}


def judge(report: Path, expected: list[Expected]) -> Outcome:
    """Count the tests of a JUnit report."""
    outcome, failed = Outcome(), set()
    # Our own file, written a moment ago by a test runner that we started.
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        problem = next((child for child in case if child.tag in ("failure", "error")), None)
        match = next((entry for entry in expected if re.search(entry.tests, name)), None)
        if case.find("skipped") is not None:
            outcome.num_skipped += 1
        elif problem is None and match is None:
            outcome.num_passed += 1
        elif problem is None:
            outcome.surprises.append(f"{name} passed, but was to fail: {match.reason if match else ''}")
        elif match is None:
            outcome.surprises.append(f"{name} failed: {_first_line(problem)}")
        else:
            failed.add(match)
            outcome.expected[match.reason] = outcome.expected.get(match.reason, 0) + 1
    unused = [entry.tests for entry in expected if entry not in failed]
    outcome.surprises += [f"no test that was to fail matches {tests!r}" for tests in unused]
    if not outcome.num_passed:
        outcome.surprises.append("nothing passed")
    return outcome


def _first_line(problem: ElementTree.Element) -> str:
    text = problem.get("message") or problem.text or "no message"
    return next((line for line in text.strip().splitlines() if line.strip()), "no message")[:300]
