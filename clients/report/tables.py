"""A result as CSV: seconds, bytes and rates as plain numbers, one file for each kind of row."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from remuda.clients.report.measures import point_cache_bytes, quietest, states_bytes
from remuda.clients.report.results import (
    PERCENTILES,
    Distribution,
    LoadResult,
    LongContext,
    RequestResult,
    ServerSample,
    Stage,
)

_NAMES: Final = tuple(f"{percent:g}" for percent in PERCENTILES)
_MEASURED: Final = ("ttft", "itl", "tpot", "e2e", "lateness")
_PLAIN: Final = (
    *("label", "start", "duration", "concurrency", "rate", "num_requests", "num_failed", "prompt_tokens"),
    *("output_tokens", "requests_per_s", "output_tokens_per_s", "total_tokens_per_s", "client_busy_share"),
)
_SAMPLED: Final = ServerSample.__struct_fields__
# A cell that begins so is a formula to a spreadsheet.
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")

Cell = str | int | float | None


def write_csv(result: LoadResult, path: Path) -> list[Path]:
    """One row a stage in `path`; beside it PATH-requests.csv and PATH-context.csv where there are such rows.

    Returns the files that were written. Raises OSError where one cannot be.
    """
    written = [_write(path, _stage_header(), (_stage_row(stage) for stage in result.stages))]
    if result.requests:
        rows = (
            [getattr(request, name) for name in RequestResult.__struct_fields__] for request in result.requests
        )
        written.append(_write(_beside(path, "requests"), RequestResult.__struct_fields__, rows))
    if result.long_context is not None:
        written.append(
            _write(_beside(path, "context"), _context_header(), _context_rows(result, result.long_context))
        )
    return written


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.stem}-{kind}{path.suffix}")


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([_cell(cell) for cell in row] for row in rows)
    return path


def _cell(value: Cell) -> Cell:
    """Text that others wrote must not run in whoever's spreadsheet opens it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def _stage_header() -> list[str]:
    measured = [f"{name}_{end}" for name in _MEASURED for end in _ends()]
    return [*_PLAIN, *measured, "good_requests", "good_share", "good_requests_per_s", "errors", "notes"]


def _stage_row(stage: Stage) -> list[Cell]:
    measured = [value for name in _MEASURED for value in _spread_out(getattr(stage, name))]
    good = stage.goodput
    return [
        *(getattr(stage, name) for name in _PLAIN),
        *measured,
        *((good.num_good, good.share, good.requests_per_s) if good else (None, None, None)),
        "; ".join(f"{kind}: {number}" for kind, number in stage.errors.items()),
        "; ".join(stage.notes),
    ]


def _context_header() -> list[str]:
    return [
        *("context_tokens", "num_sequences", "prefill_tokens_per_s", *(f"itl_{end}" for end in _ends())),
        "itl_quietest",
        *(name for name in _SAMPLED if name != "t"),
        *("states_bytes", "kv_cache_bytes"),
    ]


def _context_rows(result: LoadResult, context: LongContext) -> Iterable[list[Cell]]:
    for point in context.points:
        yield [
            *(point.context_tokens, point.num_sequences, point.prefill_tokens_per_s, *_spread_out(point.itl)),
            quietest(point),
            *(getattr(point.sample, name) for name in _SAMPLED if name != "t"),
            *(states_bytes(context), point_cache_bytes(result, point)),
        ]


def _ends() -> list[str]:
    return ["count", "mean", "min", "max", *(f"p{name}" for name in _NAMES)]


def _spread_out(values: Distribution) -> list[Cell]:
    percentiles = [values.percentiles.get(name) for name in _NAMES]
    return [values.count, values.mean, values.minimum, values.maximum, *percentiles]
