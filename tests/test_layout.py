"""The house rules that a machine can hold: import arrows, listed packages, banned words."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each folder, and the folders of this project that it may import.
ARROWS = {
    "kernels": {"kernels"},
    "engine": {"engine", "kernels"},
    "server": {"server", "engine"},
    "clients": {"clients"},
    "demo": {"demo"},
}
SOURCES = sorted(path for folder in ARROWS for path in (ROOT / folder).rglob("*.py"))
NO_TORCH = [
    "remuda.engine",
    "remuda.engine.wire",
    "remuda.engine.grammar_process",
    "remuda.engine.cores",
    "remuda.engine.tokenizer",
    "remuda.engine.chat_template",
    "remuda.engine.text_stream",
    "remuda.engine.checkpoint.find",
    "remuda.server.app",
    "remuda.server.cli",
    "remuda.clients",
]


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("folder", list(ARROWS))
def test_imports_follow_the_arrows(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for name in imported(path):
            if name.startswith("remuda."):
                assert name.split(".")[1] in ARROWS[folder], f"{path} imports {name}"


def test_showing_results_needs_nothing_of_measuring_them() -> None:
    for path in (ROOT / "clients" / "report").rglob("*.py"):
        assert not any(name.startswith("remuda.clients.load") for name in imported(path)), path


def test_server_never_reaches_for_the_device() -> None:
    for path in (ROOT / "server").rglob("*.py"):
        heavy = {name.split(".")[0] for name in imported(path)} & {"torch", "triton", "numba"}
        assert not heavy, f"{path} imports {heavy}"


def test_every_package_is_listed() -> None:
    with open(ROOT / "pyproject.toml", "rb") as file:
        listed = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    found = {".".join(["remuda", *path.parent.relative_to(ROOT).parts]) for path in SOURCES}
    assert listed == found


def test_the_image_is_built_of_every_folder() -> None:
    copied = {line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")}
    assert {f"COPY {folder} {folder}" for folder in ARROWS} <= copied


def test_the_root_and_kernels_stay_namespaces() -> None:
    for path in (ROOT / "__init__.py", ROOT / "kernels" / "__init__.py", ROOT / "remuda"):
        assert not path.exists()


@pytest.mark.parametrize("module", NO_TORCH)
def test_imports_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_every_file_opens_by_saying_what_it_is() -> None:
    for path in SOURCES:
        if path.read_text().strip():
            assert ast.get_docstring(ast.parse(path.read_text())), path
