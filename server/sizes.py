"""Reads numbers and sizes as people write them."""

import math
import re
from typing import Final

_UNITS: Final = {
    "": 1,
    "b": 1,
    **{unit + end: 1000**i for i, unit in enumerate("kmgt", 1) for end in ("", "b")},
    **{unit + "ib": 1024**i for i, unit in enumerate("kmgt", 1)},
}
_SIZE: Final = re.compile(r"([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)


def parse_whole(text: str) -> int:
    """A whole number. Raises ValueError for anything else."""
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{text[:40]!r} is not a whole number") from error


def parse_bytes(text: str) -> int:
    """Bytes of `512MiB`, `2GiB`, `1.5GB`, `1e9` or `1000`. Raises ValueError for anything else."""
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{text!r} is not a size such as 512MiB, 2GiB or 1e9")
    try:
        number = float(match[1])
    except ValueError as error:
        raise ValueError(f"{text!r} does not begin with a number") from error
    if not math.isfinite(number * unit):
        raise ValueError(f"{text!r} is too large")
    return int(number * unit)
