"""The container's CPU quota counts, not only the cores that are there."""

import os
from pathlib import Path

import pytest

from remuda.engine.cores import available_cores, engine_environment


@pytest.mark.parametrize(
    ("content", "expected"),
    [("50000 100000", 1), ("150000 100000", 2), ("max 100000", 8), ("6400000 100000", 8), (None, 8)],
)
def test_available_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    if content is not None:
        (tmp_path / "cpu.max").write_text(content + "\n")
    assert available_cores(tmp_path) == expected


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    cores = str(available_cores())
    found = engine_environment()
    assert (found["OMP_NUM_THREADS"], found["NUMBA_NUM_THREADS"]) == (cores, cores)
    assert (found["GOMP_SPINCOUNT"], found["NUMBA_THREADING_LAYER"]) == ("20000", "omp")
    assert found["PATH"] == os.environ["PATH"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert engine_environment()["OMP_NUM_THREADS"] == "1"
