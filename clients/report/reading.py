"""Reads a result that `remuda load` wrote, and says in one line why a file is none."""

from pathlib import Path
from typing import Final

import msgspec

from remuda.clients.answers import UNREADABLE
from remuda.clients.report.results import SCHEMA, LoadResult

# A million requests are about 250 MB; what is larger is no result of ours.
MAX_RESULT_BYTES: Final = 1 << 30
# Bytes of a petabyte are 1e15, microseconds of a year 3e13.
MAX_NUMBER: Final = 1e18
_FAMILY: Final = SCHEMA.partition("/")[0]


class ResultError(Exception):
    """A file that cannot be read as a load test's result; the message names the file and the reason."""


class _Head(msgspec.Struct, frozen=True):
    schema: str = ""


def read_result(path: Path) -> LoadResult:
    """The result in a JSON file.

    Raises ResultError where the file cannot be read, is larger than MAX_RESULT_BYTES, is not JSON, has another
    schema or version of it, lacks a field, or has a number that no run brings.
    """
    data = _read_bytes(path)
    _check_schema(path, data)
    try:
        result = msgspec.json.decode(data, type=LoadResult)
    except UNREADABLE as error:
        raise ResultError(f"{path}: does not fit {SCHEMA}: {error}") from error
    _check_numbers(path, result, "$")
    _check_counts(path, result)
    return result


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
    except UNREADABLE as error:
        raise ResultError(f"{path}: not JSON: {error}") from error
    if schema == SCHEMA:
        return
    if schema.partition("/")[0] == _FAMILY:
        raise ResultError(f"{path}: schema {schema!r:.60}, but this version reads {SCHEMA!r}")
    raise ResultError(f"{path}: not a result of `remuda load`: its schema is {schema!r:.60}, not {SCHEMA!r}")


def _check_numbers(path: Path, value: object, where: str) -> None:
    """What is beyond MAX_NUMBER would overflow in a plot."""
    if isinstance(value, int | float) and abs(value) > MAX_NUMBER:
        raise ResultError(f"{path}: {where} is {_written(value)}, beyond {MAX_NUMBER:g}")
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            _check_numbers(path, getattr(value, name), f"{where}.{name}")
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_numbers(path, item, f"{where}.{name:.40}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_numbers(path, item, f"{where}[{i}]")


def _written(number: float) -> str:
    """Of any size: an int may be beyond every float."""
    try:
        return f"{number:g}"
    except OverflowError:
        return f"of {len(str(abs(number)))} digits"


def _check_counts(path: Path, result: LoadResult) -> None:
    """What the line of the KV cache is divided by."""
    counts = []
    if result.kv is not None:
        counts += [
            (f"$.kv.{name}", getattr(result.kv, name)) for name in ("num_layers", "kv_width", "bytes_per_value")
        ]
    if result.long_context is not None:
        counts.append(("$.long_context.num_sequences", result.long_context.num_sequences))
        for i, point in enumerate(result.long_context.points):
            where = f"$.long_context.points[{i}]"
            counts += [(f"{where}.{name}", getattr(point, name)) for name in ("context_tokens", "num_sequences")]
    for name, count in counts:
        if count < 1:
            raise ResultError(f"{path}: {name} must be at least 1, not {count}")
