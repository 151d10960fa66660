"""What a person sees while the engine loads, and the line that says what is served."""

import io

import msgspec
import pytest

from remuda.engine.wire import EngineLoading
from remuda.server.loading_display import LoadingDisplay, ready_line
from tests.server.fake_info import INFO


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


STAGES = [
    EngineLoading("reading weights", 0.0),
    EngineLoading("reading weights", 0.5),
    EngineLoading("warming up [kernels]", 0.0),
]


def show(stream: io.StringIO) -> str:
    with LoadingDisplay(stream) as display:
        for stage in STAGES:
            display.update(stage)
        display.close()
    return stream.getvalue()


def test_plain_lines_where_there_is_no_terminal() -> None:
    assert show(io.StringIO()) == "remuda: reading weights\nremuda: warming up [kernels]\n"


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    text = show(Terminal())
    assert "warming up [kernels]" in text
    assert "remuda:" not in text
    # The bar erases its line when it goes.
    assert text.endswith("\x1b[2K")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({}, "remuda: fake (longhorn, 1 parameters) on cpu, cpu backend, float32, 64 slots × 0.001 MB, "),
        ({}, ", ready at URL"),
        ({"num_parameters": 3_963_136}, "(longhorn, 3.96M parameters)"),
        ({"num_parameters": 1_370_000_000}, "(longhorn, 1.37B parameters)"),
        ({"dtype": "bfloat16"}, "bfloat16, state float32"),
        ({"slot_bytes": 13_800_000}, "64 slots × 13.8 MB"),
    ],
)
def test_ready_line(changes: dict[str, object], part: str) -> None:
    line = ready_line(msgspec.structs.replace(INFO, **changes), "URL")
    assert part in line
    assert "\n" not in line
