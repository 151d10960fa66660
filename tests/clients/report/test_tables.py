"""write_csv: the numbers of the result, to the last digit."""

import csv
from pathlib import Path

import pytest

from remuda.clients.report.results import LoadResult
from remuda.clients.report.tables import write_csv
from tests.clients.report.sample_results import ALL, full, hostile, single


def rows(path: Path) -> list[dict[str, str]]:
    """Of a file, by the names in its head."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def written(made: LoadResult, tmp_path: Path) -> dict[str, list[dict[str, str]]]:
    return {path.name: rows(path) for path in write_csv(made, tmp_path / "run.csv")}


def test_stages_have_one_row_each(tmp_path: Path) -> None:
    made = full()
    found = written(made, tmp_path)["run.csv"]
    assert [row["label"] for row in found] == [stage.label for stage in made.stages]
    for row, stage in zip(found, made.stages, strict=True):
        assert float(row["output_tokens_per_s"]) == stage.output_tokens_per_s
        assert int(row["num_failed"]) == stage.num_failed
        assert float(row["ttft_p99.9"]) == stage.ttft.percentiles["99.9"]
        assert float(row["itl_mean"]) == stage.itl.mean
        assert stage.goodput is not None
        assert float(row["good_share"]) == stage.goodput.share
        assert row["rate"] == ""


def test_requests_have_one_row_each(tmp_path: Path) -> None:
    made = single()
    found = written(made, tmp_path)["run-requests.csv"]
    assert len(found) == len(made.requests)
    for row, request in zip(found, made.requests, strict=True):
        assert float(row["due"]) == request.due
        assert (row["error"] or None) == request.error
        assert (float(row["ttft"]) if row["ttft"] else None) == request.ttft


def test_lengths_have_one_row_each(tmp_path: Path) -> None:
    made = full()
    assert made.long_context is not None
    assert made.kv is not None
    found = written(made, tmp_path)["run-context.csv"]
    for row, point in zip(found, made.long_context.points, strict=True):
        assert int(row["context_tokens"]) == point.context_tokens
        assert float(row["engine_resident_bytes"]) == point.sample.engine_resident_bytes
        assert row["device_bytes"] == ""
        assert float(row["kv_cache_bytes"]) == made.kv.bytes_per_token() * point.context_tokens * 16
        assert int(row["states_bytes"]) == 16 * 311_296


def test_no_formula_runs_in_a_spreadsheet(tmp_path: Path) -> None:
    made = hostile()
    text = "=1+1"
    stage = {name: getattr(made.stages[0], name) for name in made.stages[0].__struct_fields__}
    changed = LoadResult(
        **{name: getattr(made, name) for name in made.__struct_fields__}
        | {"stages": [type(made.stages[0])(**(stage | {"label": text}))]}
    )
    assert written(changed, tmp_path)["run.csv"][0]["label"] == "'=1+1"


@pytest.mark.parametrize("name", list(ALL))
def test_every_result_can_be_written(tmp_path: Path, name: str) -> None:
    made = ALL[name]()
    found = written(made, tmp_path)
    assert len(found["run.csv"]) == len(made.stages)
    assert ("run-requests.csv" in found) == bool(made.requests)
    assert ("run-context.csv" in found) == (made.long_context is not None)
