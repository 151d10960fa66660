"""The reader of streams: the same however the bytes are cut, and every kind of event."""

from typing import Any

import msgspec
import pytest

from remuda.clients.load.sse import BadEventError, EventReader


def event(**fields: Any) -> bytes:
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def text(word: str = " a", **fields: Any) -> bytes:
    return event(choices=[{"index": 0, "text": word, "finish_reason": None}], **fields)


FINISH = event(choices=[{"index": 0, "text": "", "finish_reason": "length"}])
USAGE = event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 3})
NESTED = b'data: {"error": ' + b"[" * 100_000 + b"\n\n"
DONE = b"data: [DONE]\n\n"
STREAM = text() * 3 + FINISH + USAGE + DONE


def read(data: bytes, step: int | None = None) -> EventReader:
    reader = EventReader()
    step = step or len(data)
    total = sum(reader.feed(data[i : i + step]) for i in range(0, len(data), step))
    assert total == reader.num_tokens
    return reader


@pytest.mark.parametrize("step", [1, 2, 7, 64, None])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_whole_stream_in_pieces(step: int | None, end: bytes) -> None:
    reader = read(STREAM.replace(b"\n", end), step)
    assert (reader.num_tokens, reader.usage_tokens, reader.prompt_tokens) == (3, 3, 7)
    assert (reader.finish_reason, reader.error, reader.is_done) == ("length", None, True)


@pytest.mark.parametrize(
    ("data", "num_tokens"),
    [
        (text(), 1),
        (text(""), 0),
        (text() + text("", usage={"completion_tokens": 1}), 1),
        (event(choices=[{"delta": {"role": "assistant", "content": ""}}]), 0),
        (event(choices=[{"delta": {"content": "x"}}]), 1),
        (event(choices=[{"delta": {"content": None, "reasoning_content": "x"}}]), 1),
        (event(choices=[{"delta": {"tool_calls": [{"index": 0}]}}]), 1),
        (b": keep-alive\n\n" + text(), 1),
        (b"id: 3\nevent: message\n" + text(), 1),
        (text().replace(b"data: ", b"data:"), 1),
        (text(usage={"completion_tokens": 4}) + text(usage={"completion_tokens": 6}), 6),
        # The sum at the end is no running count.
        (text() * 2 + event(choices=[{"text": "", "finish_reason": "stop"}], usage={"completion_tokens": 9}), 2),
    ],
)
def test_tokens(data: bytes, num_tokens: int) -> None:
    assert read(data).num_tokens == num_tokens


@pytest.mark.parametrize(
    "data", [event(error={"message": "engine died"}), b'event: error\ndata: {"message": "engine died"}\n\n']
)
def test_error_events(data: bytes) -> None:
    assert "engine died" in (read(text() + data).error or "")


@pytest.mark.parametrize(
    "data", [b"data: {\n\n", b"data: []\n\n", b'data: {"choices": 3}\n\n', b"data: \xff\n\n", NESTED]
)
def test_what_is_no_event(data: bytes) -> None:
    with pytest.raises(BadEventError):
        read(data)
