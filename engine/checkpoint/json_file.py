"""Reading a checkpoint's small JSON files with one clear error each. Knows nothing of what they mean."""

from pathlib import Path
from typing import Any, Final

import msgspec

from remuda.engine.errors import CheckpointError

MAX_JSON_BYTES: Final = 64 * 2**20


def read_file(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The whole file. Raises CheckpointError if it cannot be read or has more than `max_bytes` bytes."""
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise CheckpointError(f"{path}: has {size} bytes, the limit is {max_bytes}")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in `path`. Raises CheckpointError if the file is unreadable or holds anything else."""
    try:
        value = msgspec.json.decode(read_file(path, max_bytes))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds {describe(value)}, not a JSON object")
    return value


def describe(value: object) -> str:
    """A value for an error message, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
