"""Writes a LoadResult as JSON; reading.py reads it back."""

from pathlib import Path

import msgspec

from remuda.clients.load.errors import LoadError
from remuda.clients.load.results import LoadResult


def write_result(result: LoadResult, path: Path) -> None:
    """Indented JSON. Raises LoadError where the file cannot be written."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    except OSError as error:
        raise LoadError(f"cannot write {path}: {error.strerror}") from error
