"""read_result: what a result is, and what is said of a file that is none."""

from pathlib import Path

import msgspec
import pytest

from remuda.clients.report import reading
from remuda.clients.report.reading import ResultError, read_result
from remuda.clients.report.results import LoadResult, Target
from tests.clients.report.sample_results import full

SMALL = LoadResult(
    version="0.1.0",
    created="2026-11-24T12:00:00Z",
    command=["load"],
    machine="a machine",
    target=Target(url="http://127.0.0.1:8000", model="demo"),
    settings={"concurrency": 1},
)


def test_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(msgspec.json.encode(SMALL))
    assert read_result(path) == SMALL


def test_unknown_fields_of_a_later_version_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(msgspec.json.encode({**msgspec.to_builtins(SMALL), "more": 1}))
    assert read_result(path) == SMALL


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"url,model\n1,2\n", "not JSON"),
        (b'{"more": ' + b"[" * 100_000, "not JSON"),
        (msgspec.json.encode(SMALL).replace(b'"a machine"', b'"\xff"'), "not JSON|does not fit"),
        (b"[1, 2]", "not a result of `remuda load`"),
        (b'{"schema": 3}', "not a result of `remuda load`"),
        (b"{}", "its schema is ''"),
        (b'{"schema": "guidellm/1"}', "its schema is 'guidellm/1'"),
        (b'{"schema": "remuda.load/2"}', "this version reads 'remuda.load/1'"),
        (b'{"schema": "remuda.load/1"}', "missing required field `version`"),
        (msgspec.json.encode(SMALL).replace(b'"stages":[]', b'"stages":[{}]'), r"\$.stages\[0\]"),
        (msgspec.json.encode(SMALL).replace(b'"concurrency":1', b'"concurrency":NaN'), "not JSON"),
    ],
)
def test_says_why_a_file_is_none(tmp_path: Path, text: bytes, reason: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text)
    with pytest.raises(ResultError, match=reason) as caught:
        read_result(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"num_layers":4,', b'"num_layers":0,', r"\$\.kv\.num_layers must be at least 1, not 0"),
        (
            b'"num_sequences":16,"itl"',
            b'"num_sequences":-1,"itl"',
            r"points\[0\]\.num_sequences must be at least 1",
        ),
        (
            b'"context_tokens":1024',
            b'"context_tokens":0',
            r"points\[0\]\.context_tokens must be at least 1, not 0",
        ),
        (b'"mean":', b'"mean":1e300,"meant":', r"\.mean is 1e\+300, beyond 1e\+18"),
        (b'"seed":0', b'"seed":1' + b"0" * 400, r"\$\.settings\.seed "),
        (b'"seed":0', b'"seed":9999999999999999999', r"\$\.settings\.seed is 1e\+19, beyond"),
    ],
)
def test_refuses_numbers_that_no_run_brings(tmp_path: Path, old: bytes, new: bytes, reason: str) -> None:
    path = tmp_path / "a.json"
    whole = msgspec.json.encode(full())
    assert old in whole
    assert read_whole(path, whole) == full()
    with pytest.raises(ResultError, match=reason):
        read_whole(path, whole.replace(old, new, 1))


def read_whole(path: Path, text: bytes) -> LoadResult:
    """Of a file of this text."""
    path.write_bytes(text)
    return read_result(path)


def test_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"none\.json: No such file"):
        read_result(tmp_path / "none.json")


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="directory"):
        read_result(tmp_path)


def test_refuses_what_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(msgspec.json.encode(SMALL))
    monkeypatch.setattr(reading, "MAX_RESULT_BYTES", 10)
    with pytest.raises(ResultError, match="larger than 10 bytes"):
        read_result(path)
