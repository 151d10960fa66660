"""Writes a LoadResult as JSON and reads it back."""

from pathlib import Path

import msgspec

from remuda.clients.load.errors import LoadError, UsageError
from remuda.clients.load.results import SCHEMA, LoadResult


class _Head(msgspec.Struct):
    schema: str


def write_result(result: LoadResult, path: Path) -> None:
    """Indented JSON. Raises LoadError where the file cannot be written."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    except OSError as error:
        raise LoadError(f"cannot write {path}: {error.strerror}") from error


def read_result(path: Path) -> LoadResult:
    """Raises UsageError for a file that is not there, no result, or of another schema."""
    try:
        data = path.read_bytes()
        head = msgspec.json.decode(data, type=_Head)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no result of a load test: {error}") from error
    if head.schema != SCHEMA:
        raise UsageError(f"{path} has schema {head.schema!r}; this version reads {SCHEMA!r}: run the test again")
    try:
        return msgspec.json.decode(data, type=LoadResult)
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} does not keep to {SCHEMA}: {error}") from error
