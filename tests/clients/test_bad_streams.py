"""Streams that end badly: each way has its error, with what had arrived; raw servers play them."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from remuda.clients import (
    BadAnswerError,
    BadEventError,
    ConnectionFailedError,
    StreamBrokenError,
    StreamCutError,
    StreamFailedError,
    StreamTimedOutError,
    Timeouts,
)
from tests.clients.kinds import Kind, Streamed
from tests.clients.raw_server import DONE, END, RESET, STALL, STREAM_HEAD, RawServer, answer, chunk, event, says

MakeServer = Callable[..., RawServer]
HEAD = [STREAM_HEAD, says("Hel"), says("lo")]
STOP = says("", finish_reason="stop")


def stream(kind: Kind, server: RawServer, method: str = "stream_chat", **more: Any) -> Streamed:
    given = {
        "stream_chat": {"messages": []},
        "stream_completions": {"prompt": ""},
        "stream_respond": {"input": ""},
    }
    return kind.stream(server.url, method, model="m", **given[method], **more)


@pytest.mark.parametrize(
    "script",
    [
        [*HEAD, STOP, DONE, END],
        [*HEAD, STOP, END],
        [*HEAD, DONE, END],
        [*HEAD, DONE, RESET],
        [*HEAD, STOP, RESET],
        [*HEAD, STOP],
        [*HEAD, DONE, event("never read"), STALL],
        [STREAM_HEAD, chunk(b": ping\n\n"), *HEAD[1:], STOP, event({"choices": [], "usage": {}}), DONE, END],
        [STREAM_HEAD, *(chunk(b"%c" % byte) for byte in b'data: {"choices":[{"text":"Hello",'), chunk(b"\n"),
         chunk(b'data: "delta":{"content":"Hello"}}]}\r\n\r\n'), DONE, END],
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["stream_chat", "stream_completions"])
def test_good_ends(kind: Kind, raw: MakeServer, script: list[bytes | str], method: str) -> None:
    streamed = stream(kind, raw(script), method)
    assert streamed.error is None
    assert "".join(found.text for found in streamed.events) == "Hello"


@pytest.mark.parametrize(
    ("ending", "error", "message"),
    [
        ([END], StreamCutError, "the stream ended before the answer did"),
        ([], StreamBrokenError, "the connection broke"),
        ([RESET], StreamBrokenError, "the connection broke"),
        ([chunk(b"data: {")], StreamBrokenError, "the connection broke"),
        ([chunk(b'data: {"choices": []}'), END], StreamCutError, "the stream ended before the answer did"),
        ([b"not a chunk\r\n"], StreamBrokenError, "the connection broke"),
        (
            [event({"error": {"message": "no room", "code": "full", "param": "p"}}), END],
            StreamFailedError,
            "no room",
        ),
        ([event({"error": "no room"}), END], StreamFailedError, "no room"),
        ([event({"error": {"code": 500}}), END], StreamFailedError, "the server ended the stream with an error"),
        ([chunk(b'event: error\ndata: {"message": "no room"}\n\n'), END], StreamFailedError, "no room"),
        ([event("{"), END], BadEventError, "an event is not what the API says"),
        ([event({"choices": [{"index": "zero"}]})], BadEventError, "an event is not what the API says"),
        ([event('{"error": ' + "[" * 9999)], BadEventError, "an event is not what the API says"),
        ([event({"object": "nothing"})], BadEventError, "an event has no `choices`"),
        (
            [chunk(b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n')],
            BadEventError,
            "an event is not what the API says",
        ),
    ],
)
def test_bad_ends(
    kind: Kind, raw: MakeServer, ending: list[bytes | str], error: type[Exception], message: str
) -> None:
    streamed = stream(kind, raw([*HEAD, *ending]))
    assert type(streamed.error) is error
    assert message in str(streamed.error)
    assert [found.text for found in streamed.events] == ["Hel", "lo"]
    assert streamed.error.received is streamed.received
    assert streamed.error.received.text == "Hello"


def test_an_error_event_says_which_field(kind: Kind, raw: MakeServer) -> None:
    body = {"error": {"message": "no", "type": "server_error", "param": "prompt", "code": "engine_unavailable"}}
    streamed = stream(kind, raw([STREAM_HEAD, event(body), END]))
    assert isinstance(streamed.error, StreamFailedError)
    assert (streamed.error.param, streamed.error.code) == ("prompt", "engine_unavailable")


def test_one_of_two_choices_is_not_a_whole_answer(kind: Kind, raw: MakeServer) -> None:
    streamed = stream(kind, raw([*HEAD, STOP, END]), n=2)
    assert isinstance(streamed.error, StreamCutError)
    streamed = stream(kind, raw([*HEAD, STOP, RESET]), n=2)
    assert isinstance(streamed.error, StreamBrokenError)
    both = [*HEAD, says("Bye", index=1), STOP, says("", finish_reason="length", index=1), END]
    streamed = stream(kind, raw(both), n=2)
    assert streamed.error is None
    assert streamed.received is not None
    assert streamed.received.finish_reasons == {0: "stop", 1: "length"}


@pytest.mark.parametrize(
    ("events", "error", "message"),
    [
        ([event({"type": "response.failed", "response": {"id": "r", "error": {"message": "no room"}}})],
         StreamFailedError, "no room"),
        ([event({"type": "error", "message": "no room", "code": "c"})], StreamFailedError, "no room"),
        ([event({"no": "type"})], BadEventError, "an event has no `type`"),
        ([], StreamCutError, "the stream ended before"),
    ],
)  # fmt: skip
def test_bad_ends_of_responses(
    kind: Kind, raw: MakeServer, events: list[bytes], error: type[Exception], message: str
) -> None:
    delta = event({"type": "response.output_text.delta", "delta": "Hel"})
    streamed = stream(kind, raw([STREAM_HEAD, delta, *events, END]), "stream_respond")
    assert type(streamed.error) is error
    assert message in str(streamed.error)
    assert streamed.error.received.text == "Hel"


def test_silence_is_a_timeout(kind: Kind, raw: MakeServer) -> None:
    server = raw([*HEAD, STALL])
    streamed = stream(kind, server, client={"timeouts": Timeouts(read=0.05)})
    assert isinstance(streamed.error, StreamTimedOutError)
    assert (streamed.error.limit, streamed.error.received.text) == ("read", "Hello")
    assert server.peer_left.wait(10)


def test_the_total_ends_a_stream_that_stalls(kind: Kind, raw: MakeServer) -> None:
    streamed = stream(kind, raw([*HEAD, STALL]), client={"timeouts": Timeouts(total=0.2)})
    assert isinstance(streamed.error, StreamTimedOutError)
    assert (streamed.error.limit, streamed.error.received.text) == ("total", "Hello")


def test_the_total_ends_a_stream_without_an_end(kind: Kind, raw: MakeServer) -> None:
    """Without a length and without chunks, a connection that is cut looks like a good end."""
    head = b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {"choices": []}\n\n'
    streamed = stream(kind, raw([head, STALL]), client={"timeouts": Timeouts(total=0.2)})
    assert isinstance(streamed.error, StreamTimedOutError)
    assert (streamed.error.limit, len(streamed.events)) == ("total", 1)


def test_the_total_ends_a_stream_that_goes_on(kind: Kind, raw: MakeServer) -> None:
    def forever() -> Any:
        yield STREAM_HEAD
        while True:
            time.sleep(0.01)
            yield says("x")

    server = raw(forever())
    streamed = stream(kind, server, client={"timeouts": Timeouts(total=0.2)})
    assert isinstance(streamed.error, StreamTimedOutError)
    assert streamed.error.received.text.strip("x") == ""
    assert streamed.error.received.num_events == len(streamed.events) > 0


def test_a_stream_that_is_left_closes_its_connection(kind: Kind, raw: MakeServer) -> None:
    server = raw([*HEAD, STALL])
    streamed = stream(kind, server, most=1)
    assert (len(streamed.events), streamed.error) == (1, None)
    assert server.peer_left.wait(10)


def test_an_answer_that_is_no_stream(kind: Kind, raw: MakeServer) -> None:
    streamed = stream(kind, raw([answer(200, {"choices": []}, content_type="application/json")]))
    assert isinstance(streamed.error, BadAnswerError)
    assert "not a stream of events" in str(streamed.error)


@pytest.mark.parametrize(
    "script", [[RESET], [], [b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{"], [b"SSH-2.0\r\n"]]
)
def test_answers_that_break_off(kind: Kind, raw: MakeServer, script: list[bytes | str]) -> None:
    with pytest.raises(ConnectionFailedError, match="the connection broke"):
        kind.call(raw(script).url, "models")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"data": [{"id": 1}]}', b"\xff", b'{"data": [{"id": "\xff"}]}', b"<html></html>"]
)
def test_answers_that_are_not_what_the_api_says(kind: Kind, raw: MakeServer, body: bytes) -> None:
    with pytest.raises(BadAnswerError, match="/v1/models: the answer is not what the API says"):
        kind.call(raw([answer(200, body)]).url, "models")


def test_unknown_keys_are_passed_over(kind: Kind, raw: MakeServer) -> None:
    body = {"data": [{"id": "m", "object": "model", "permission": [], "owned_by": "x"}], "more": {}}
    assert kind.call(raw([answer(200, body)]).url, "models")[0].id == "m"


def test_metrics_that_are_none(kind: Kind, raw: MakeServer) -> None:
    with pytest.raises(BadAnswerError, match="/metrics: not in Prometheus' text format"):
        kind.call(raw([answer(200, b"<html>\n")]).url, "metrics")
