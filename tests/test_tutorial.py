"""docs/tutorial.md: its pictures and outputs are those that docs/make_pictures.py makes of its runs."""

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from tests.clients.report.sample_results import full, single, sweep

DOCS = Path(__file__).parents[1] / "docs"
TUTORIAL = (DOCS / "tutorial.md").read_text(encoding="utf-8")
RUNS = {"c8": lambda: single(concurrency=8), "c16": single, "sweep": sweep, "long": full}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tutorial with pictures and outputs of made-up results, without the screenshot."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(DOCS / "tutorial.md", folder)
    for name, run in RUNS.items():
        (folder / "results" / name).mkdir(parents=True)
        (folder / "results" / name / "load.json").write_bytes(msgspec.json.encode(run()))
    script = load_script()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "DOCS", folder)
        patch.setattr(shutil, "which", lambda name: None)
        script.main(folder / "results")
    return folder


def load_script() -> ModuleType:
    """docs/make_pictures.py as a module."""
    spec = importlib.util.spec_from_file_location("make_pictures", DOCS / "make_pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_picture_of_a_result_is_made(made: Path) -> None:
    shown = set(re.findall(r"\]\(images/(load-[^)]*\.svg)\)", TUTORIAL))
    assert shown == {path.name for path in (made / "images").iterdir()}
    assert len(shown) == 5


def test_pictures_stand_alone_in_both_themes(made: Path) -> None:
    for path in (made / "images").iterdir():
        text = path.read_text(encoding="utf-8")
        assert "prefers-color-scheme: dark" in text
        assert re.findall(r"https?://[^\"'\s]*", text) == ["http://www.w3.org/2000/svg"]
        used, known = set(re.findall(r"var\(--(\w+)\)", text)), set(re.findall(r"--(\w+):", text))
        assert used
        assert used <= known


def test_outputs_are_those_of_the_results(made: Path) -> None:
    text = (made / "tutorial.md").read_text(encoding="utf-8")
    assert text.count("<!-- summary: ") == 3
    assert f"concurrency 8: {single(concurrency=8).stages[0].num_requests} requests in 20.0 s" in text
    assert "saturated at concurrency 32" in text
    assert "8.59 GB" in text
    assert "concurrency 8 / concurrency 16" in text
    outside = re.compile(r"(-->\n\n```\n).*?(```\n)", flags=re.DOTALL)
    assert outside.sub(r"\1\2", text) == outside.sub(r"\1\2", TUTORIAL)


def test_runs_are_where_the_commands_write_them() -> None:
    assert set(re.findall(r"--out results/(\w+)", TUTORIAL)) == set(RUNS)
    named = re.findall(r"<!-- (?:summary|comparison): ([^>]*) -->", TUTORIAL)
    assert {name for names in named for name in names.split()} == set(RUNS)
