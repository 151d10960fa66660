"""print_summary: the result's own figures, in a pipe and in a terminal, whatever the result."""

import io

import pytest
from rich.console import Console

from remuda.clients.report import units
from remuda.clients.report.results import LoadResult
from remuda.clients.report.summary import print_summary
from tests.clients.report.sample_results import ALL, full, hostile, long_context, no_lengths, result, single, sweep


def printed(made: LoadResult, *, is_terminal: bool = False, width: int = 100) -> str:
    """What a pipe or a terminal gets."""
    stream = io.StringIO()
    color = "truecolor" if is_terminal else None
    print_summary(
        made,
        Console(file=stream, force_terminal=is_terminal, width=width, color_system=color),  # type: ignore[arg-type]
    )
    return stream.getvalue()


def test_one_stage_has_its_percentiles() -> None:
    made = single()
    stage, lines = made.stages[0], printed(made).splitlines()
    row = next(line for line in lines if line.startswith("  Time to first token")).split()
    percentiles = [units.milliseconds(value) for value in stage.ttft.percentiles.values()]
    mean, largest = units.milliseconds(stage.ttft.mean), units.milliseconds(stage.ttft.maximum)
    assert row[-8:] == [mean, *percentiles, largest]
    assert f"{stage.num_requests} requests in 20.0 s" in lines[1]
    assert f"{units.number(stage.output_tokens_per_s)} output tokens/s" in lines[1]


def test_a_pipe_gets_aligned_text_without_colours() -> None:
    text = printed(sweep(), width=40)
    assert {char for char in text if not char.isprintable()} == {"\n"}
    rows = [line for line in text.splitlines() if line.startswith("  concurrency")]
    assert len(rows) == 7
    assert len({len(row) for row in rows}) == 1


def test_a_sweep_says_where_it_is_saturated() -> None:
    text = printed(sweep())
    assert "saturated at concurrency 32: at concurrency 96" in text
    assert f"there: {units.number(sweep().stages[5].output_tokens_per_s)} output tokens/s" in text


def test_failures_and_notes_stand_below() -> None:
    made = sweep()
    lines = printed(made).splitlines()
    assert f"failed, concurrency 96: {made.stages[-1].errors['429']} × 429" in lines
    assert lines[-2:] == [
        "warning: one request of the warm-up failed: timeout",
        "warning: concurrency 96: the client was busy for 97 % of the time",
    ]


def test_long_context_says_what_grew() -> None:
    text = printed(full())
    assert "16 sequences" in text
    assert "8.59 GB" in text
    assert "server memory from 1,024 to 131,072 tokens" in text
    points = full().long_context.points  # type: ignore[union-attr]
    first, last = min(points[0].itl_parts), min(points[-1].itl_parts)
    assert f"in the quietest parts {units.change(last / first - 1)}, those at 1,024 differ by" in text
    # States of 16 sequences, and no column for a device that the server does not have.
    assert "4.98 MB" in text
    assert "device" not in text


def test_without_a_shape_there_is_no_cache() -> None:
    assert "KV cache" not in printed(result(context=long_context(), kv=None))


def test_no_length_is_said_so() -> None:
    assert "4 sequences: no length was reached" in printed(no_lengths())


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize("is_terminal", [False, True])
def test_every_result_can_be_printed(name: str, is_terminal: bool) -> None:
    assert "2026-11-24" in printed(ALL[name](), is_terminal=is_terminal) or name == "hostile"


def test_text_of_others_moves_no_cursor_and_is_no_markup() -> None:
    made = hostile()
    text = printed(made)
    assert "\x1b" not in text
    assert "<script>" in text
    assert "[red]" in printed(result(notes=["[red]x[/red]"]))


@pytest.mark.parametrize("width", [70, 80])
def test_numbers_are_whole_in_a_narrow_terminal(width: int) -> None:
    text = printed(sweep(), is_terminal=True, width=width)
    assert "1,100" in text
    assert "2,162" in text
