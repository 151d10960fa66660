"""No timeout reads the wall clock: a jump of it ends nothing early."""

import ast
import time
from pathlib import Path

import openai
import pytest

from remuda.server.restart_budget import MAX_CRASHES, RestartBudget
from tests.server.fakes import FakeEngine, says

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("engine", "server") for path in (ROOT / folder).rglob("*.py"))
# What reads it: dates, not durations.
WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}


def wall_clock_reads(path: Path) -> list[str]:
    """Calls of the wall clock that are not within `int(…)` or followed by `.strftime`, which give dates.

    Nor those whose value is called `unix_ns`: the times of traces.
    """
    tree = ast.parse(path.read_text())
    dates: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "int":
            dates |= {id(argument) for argument in node.args}
        elif isinstance(node, ast.Attribute) and node.attr == "strftime":
            dates.add(id(node.value))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "unix_ns":
            dates.add(id(node.value))
    return [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in WALL_CLOCKS and id(node) not in dates
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_wall_clock_gives_dates_only(path: Path) -> None:
    assert wall_clock_reads(path) == []


def test_a_duration_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.server.test_clocks.ROOT", tmp_path)
    path = tmp_path / "found.py"
    path.write_text("import time\ncreated = int(time.time())\ndeadline = time.time() + 5\n")
    assert wall_clock_reads(path) == ["found.py:3"]


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0])
def test_jump_under_way_ends_no_stream(
    engine: FakeEngine, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    engine.script = says("Hello there")
    engine.step_s = 0.02
    now = time.time
    chunks = client.completions.create(model="fake", prompt="Hi", max_tokens=100, stream=True)
    text = next(chunks).choices[0].text
    monkeypatch.setattr(time, "time", lambda: now() + jump_s)
    assert text + "".join(chunk.choices[0].text for chunk in chunks) == "Hello there"


def test_jump_does_not_forgive_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    budget, now = RestartBudget(), time.time
    for i in range(MAX_CRASHES):
        monkeypatch.setattr(time, "time", lambda i=i: now() + 3600 * i)
        assert budget.note_crash() == i + 1
    assert budget.is_spent
