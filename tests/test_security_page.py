"""docs/security.md promises nothing without a test: every test that it names is there, and all 25 have one."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()


def defined_tests() -> set[str]:
    """The names of all tests of the tree."""
    names = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                names.add(node.name)
    return names


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 50
    assert named - defined_tests() == set()


def test_each_weakness_has_a_row_and_a_test() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\|(.*)\|$", PAGE, re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 26))
    assert all("`test_" in tests for _, tests in rows)


def test_every_hostile_test_is_on_the_page() -> None:
    """By its number at least: the page names the first of a family."""
    numbers = {match[1] for name in defined_tests() if (match := re.match(r"test_hostile_(\d\d)_", name))}
    assert numbers == set(re.findall(r"test_hostile_(\d\d)_", PAGE))
