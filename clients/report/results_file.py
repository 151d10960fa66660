"""Writes a LoadResult as JSON; reading.py reads it back."""

from pathlib import Path

import msgspec

from remuda.clients.report.results import LoadResult


def write_result(result: LoadResult, path: Path) -> None:
    """Indented JSON. Raises OSError where the file cannot be written."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
