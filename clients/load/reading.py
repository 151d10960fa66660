"""Reads a result that `remuda load` wrote, and says in one line why a file is none."""

from pathlib import Path
from typing import Final

import msgspec

from remuda.clients.load.results import SCHEMA, LoadResult

# A million requests are about 250 MB; what is larger is no result of ours.
MAX_RESULT_BYTES: Final = 1 << 30
_FAMILY: Final = SCHEMA.partition("/")[0]


class ResultError(Exception):
    """A file that cannot be read as a load test's result; the message names the file and the reason."""


class _Head(msgspec.Struct, frozen=True):
    schema: str = ""


def read_result(path: Path) -> LoadResult:
    """The result in a JSON file.

    Raises ResultError where the file cannot be read, is larger than MAX_RESULT_BYTES, is not JSON, has another
    schema or version of it, or lacks a field.
    """
    data = _read_bytes(path)
    _check_schema(path, data)
    try:
        return msgspec.json.decode(data, type=LoadResult)
    except msgspec.MsgspecError as error:
        raise ResultError(f"{path}: does not fit {SCHEMA}: {error}") from error


def _read_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_RESULT_BYTES + 1)
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror or error}") from error
    if len(data) > MAX_RESULT_BYTES:
        raise ResultError(f"{path}: larger than {MAX_RESULT_BYTES} bytes, which no result is")
    return data


def _check_schema(path: Path, data: bytes) -> None:
    try:
        schema = msgspec.json.decode(data, type=_Head).schema
    except msgspec.ValidationError as error:
        raise ResultError(f"{path}: not a result of `remuda load`: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ResultError(f"{path}: not JSON: {error}") from error
    if schema == SCHEMA:
        return
    if schema.partition("/")[0] == _FAMILY:
        raise ResultError(f"{path}: schema {schema!r:.60}, but this version reads {SCHEMA!r}")
    raise ResultError(f"{path}: not a result of `remuda load`: its schema is {schema!r:.60}, not {SCHEMA!r}")
