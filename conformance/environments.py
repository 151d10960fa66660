"""Makes what a suite runs in, under build/conformance/, from the pinned lists here; again when a list changes."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from suites import HERE, OPENAI_SOURCE, WORK, Suite


class MissingToolError(Exception):
    """A program that a suite needs is not on this machine."""


def prepare(suite: Suite) -> None:
    """Make the suite's environment, if it is not there as its list says. Raises MissingToolError."""
    if suite.environment == "node":
        _prepare_node()
    else:
        _prepare_python(suite.environment)
    if suite.directory == OPENAI_SOURCE:
        _fetch_openai_source(suite)


def python_of(environment: str) -> Path:
    """Its interpreter."""
    return WORK / f"venv-{environment}" / "bin" / "python"


def version_of(suite: Suite) -> str:
    """The pinned version of the suite's package."""
    if suite.environment == "node":
        package = json.loads((HERE / "node" / "package.json").read_text())
        return str(package["dependencies"][suite.package])
    pins = _list_of(suite.environment).read_text()
    found = re.search(rf"^{re.escape(suite.package)}==(\S+)$", pins, re.MULTILINE)
    assert found is not None, suite
    return found[1]


def _list_of(environment: str) -> Path:
    return HERE / f"requirements-{environment}.txt"


def _prepare_python(environment: str) -> None:
    directory, pins = python_of(environment).parents[1], _list_of(environment)
    if _is_current(directory, pins):
        return
    shutil.rmtree(directory, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(directory)])
    pip = [str(python_of(environment)), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    _run([*pip, "-r", str(pins)])
    _mark(directory, pins)


def _prepare_node() -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise MissingToolError("node and npm are not installed")
    modules, pins = HERE / "node" / "node_modules", HERE / "node" / "package-lock.json"
    if _is_current(modules, pins):
        return
    _run(["npm", "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"], HERE / "node")
    _mark(modules, pins)


def _fetch_openai_source(suite: Suite) -> None:
    """The wheel has no tests; the source archive of the same version has them."""
    pins = _list_of(suite.environment)
    if _is_current(OPENAI_SOURCE, pins):
        return
    shutil.rmtree(OPENAI_SOURCE, ignore_errors=True)
    pinned = f"openai=={version_of(suite)}"
    pip = [str(python_of(suite.environment)), "-m", "pip", "download", "-qq", "--disable-pip-version-check"]
    _run([*pip, "--no-deps", "--no-binary", "openai", "--dest", str(WORK), pinned])
    archive = WORK / f"openai-{version_of(suite)}.tar.gz"
    with tarfile.open(archive) as found:
        found.extractall(WORK, filter="data")
    (WORK / archive.name.removesuffix(".tar.gz")).rename(OPENAI_SOURCE)
    # The tests are to import the installed package.
    shutil.rmtree(OPENAI_SOURCE / "src")
    _mark(OPENAI_SOURCE, pins)


def _run(command: list[str], directory: Path | None = None) -> None:
    subprocess.run(command, cwd=directory, check=True)


def _is_current(directory: Path, pins: Path) -> bool:
    stamp = directory / ".made-from"
    return stamp.is_file() and stamp.read_text() == _digest(pins)


def _mark(directory: Path, pins: Path) -> None:
    (directory / ".made-from").write_text(_digest(pins))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
