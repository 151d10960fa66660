"""Retries: which failures, how often, after how long; and that nothing is sent twice once an answer has begun."""

from collections.abc import Callable
from typing import Any

import pytest

from remuda.clients import (
    AuthenticationError,
    BadRequestError,
    Client,
    ConnectionFailedError,
    InvalidArgumentError,
    NotFoundError,
    RateLimitError,
    RetryPolicy,
    ServerError,
    StreamBrokenError,
    TimedOutError,
    Timeouts,
    UnavailableError,
)
from remuda.clients.errors import StatusError
from tests.clients.kinds import Kind
from tests.clients.raw_server import DONE, END, RESET, STALL, STREAM_HEAD, RawServer, answer, says

MakeServer = Callable[..., RawServer]
MODELS = [answer(200, {"data": [{"id": "m"}]})]
# 2026-11-24 12:00:00 UTC.
NOON = 1795521600.0
POLICY = RetryPolicy(max_retries=3, draw=lambda: 0.0, wall_clock=lambda: NOON)


@pytest.mark.parametrize(
    ("failures", "sleeps"),
    [
        ([[answer(503)]], [0.25]),
        ([[answer(429)], [answer(503)]], [0.25, 0.5]),
        ([[RESET]], [0.25]),
        ([[]], [0.25]),
        ([[RESET], [answer(503, retry_after="2")], []], [0.25, 2.0, 1.0]),
        ([[answer(429, retry_after="0")]], [0.0]),
        ([[answer(429, retry_after="1.5")]], [1.5]),
        ([[answer(503, retry_after="Tue, 24 Nov 2026 12:00:30 GMT")]], [30.0]),
        ([[answer(503, retry_after="Tue, 24 Nov 2026 11:00:00 GMT")]], [0.0]),
        ([[answer(503, retry_after="soon")]], [0.25]),
        ([[answer(503, retry_after="-1")]], [0.25]),
    ],
)
def test_retries_until_it_works(
    kind: Kind, raw: MakeServer, failures: list[list[bytes | str]], sleeps: list[float]
) -> None:
    server = raw(*failures, MODELS)
    assert kind.call(server.url, "models", client={"retries": POLICY})[0].id == "m"
    assert kind.sleeps == sleeps
    assert len(server.requests) == len(failures) + 1


@pytest.mark.parametrize(
    ("script", "error", "num_requests"),
    [
        ([answer(503)], UnavailableError, 4),
        ([answer(429)], RateLimitError, 4),
        ([answer(503, retry_after="61")], UnavailableError, 1),
        ([answer(503, x_should_retry="false")], UnavailableError, 1),
        ([answer(500)], ServerError, 1),
        ([answer(502)], ServerError, 1),
        ([answer(400)], BadRequestError, 1),
        ([answer(401)], AuthenticationError, 1),
        ([answer(408)], BadRequestError, 1),
        ([answer(307, location="/v1/models")], StatusError, 1),
        ([RESET], ConnectionFailedError, 4),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"], ConnectionFailedError, 1),
        ([b"HTTP/1.1 500 Reason\r\ncontent-length: 9\r\n\r\n{"], ServerError, 1),
        ([b"HTTP/1.1 404 Reason\r\ncontent-length: 9\r\n\r\n", RESET], NotFoundError, 1),
        ([b"HTTP/1.1 503 Reason\r\ncontent-length: 9\r\n\r\n{"], UnavailableError, 4),
    ],
)
def test_gives_up(
    kind: Kind, raw: MakeServer, script: list[bytes | str], error: type[Exception], num_requests: int
) -> None:
    server = raw(script)
    with pytest.raises(error) as caught:
        kind.call(server.url, "models", client={"retries": POLICY})
    assert type(caught.value) is error
    assert len(server.requests) == num_requests


def test_waits_grow_up_to_their_bound_and_are_drawn() -> None:
    policy = RetryPolicy(max_retries=2000, first_delay_s=1, max_delay_s=5, draw=lambda: 0.5)
    assert [policy.delay(n) for n in (0, 1, 2, 3, 1999)] == [0.75, 1.5, 3.0, 3.75, 3.75]
    assert policy.delay(2000) is None


def test_nobody_listens(kind: Kind) -> None:
    with pytest.raises(ConnectionFailedError, match=r"cannot connect to http://127\.0\.0\.1:1: \S"):
        kind.call("http://127.0.0.1:1", "models", client={"retries": POLICY})
    assert kind.sleeps == [0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ([answer(503, b"<html>no</html>")], UnavailableError),
        ([answer(429, retry_after="50")], RateLimitError),
        ([RESET], ConnectionFailedError),
    ],
)
def test_probes_are_sent_once(
    kind: Kind, raw: MakeServer, script: list[bytes | str], error: type[Exception]
) -> None:
    server = raw(script)
    for probe in ("ready", "health"):
        with pytest.raises(error):
            kind.call(server.url, probe, client={"retries": POLICY})
    assert (len(server.requests), kind.sleeps) == (2, [])


def test_a_refusal_whose_body_does_not_come(kind: Kind, raw: MakeServer) -> None:
    head = b"HTTP/1.1 500 Reason\r\ncontent-length: 50\r\nx-request-id: r\r\n\r\n{"
    for limits in (Timeouts(total=1), Timeouts(read=0.5)):
        with pytest.raises(ServerError, match="the server answered with Reason") as caught:
            kind.call(raw([head, STALL]).url, "models", client={"timeouts": limits, "retries": POLICY})
        assert (caught.value.status, caught.value.request_id, kind.sleeps) == (500, "r", [])


def test_a_stream_is_retried_before_it_begins(kind: Kind, raw: MakeServer) -> None:
    server = raw([answer(503)], [RESET], [STREAM_HEAD, says("hi"), DONE, END])
    streamed = kind.stream(server.url, "stream_chat", {"retries": POLICY}, model="m", messages=[])
    assert streamed.error is None
    assert [event.text for event in streamed.events] == ["hi"]
    assert len(server.requests) == 3


@pytest.mark.parametrize("script", [[STREAM_HEAD, says("hi")], [STREAM_HEAD]])
def test_a_stream_is_never_retried_after_it_has_begun(kind: Kind, raw: MakeServer, script: list[bytes]) -> None:
    server = raw(script)
    streamed = kind.stream(server.url, "stream_chat", {"retries": POLICY}, model="m", messages=[])
    assert isinstance(streamed.error, StreamBrokenError)
    assert len(server.requests) == 1


def test_silence_before_an_answer_is_not_retried(kind: Kind, raw: MakeServer) -> None:
    server = raw([STALL])
    options = {"retries": POLICY, "timeouts": Timeouts(read=0.05)}
    with pytest.raises(TimedOutError) as caught:
        kind.call(server.url, "models", client=options)
    assert (caught.value.limit, len(server.requests)) == ("read", 1)


def test_the_total_bounds_an_attempt(kind: Kind, raw: MakeServer) -> None:
    with pytest.raises(TimedOutError, match=r"no whole answer within 0\.1 s") as caught:
        kind.call(raw([STALL]).url, "models", client={"timeouts": Timeouts(total=0.1)})
    assert caught.value.limit == "total"


def test_the_total_bounds_a_body(kind: Kind, raw: MakeServer) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{"
    with pytest.raises(TimedOutError) as caught:
        kind.call(raw([head, STALL]).url, "models", client={"timeouts": Timeouts(total=0.1)})
    assert caught.value.limit == "total"


def test_nothing_is_read_when_the_total_has_passed(kind: Kind, raw: MakeServer) -> None:
    """The clock jumps between the head of an answer and its body."""
    times = iter([0.0, 1.0, 1.0])
    options = {"timeouts": Timeouts(total=20), "clock": lambda: next(times, 30.0)}
    with pytest.raises(TimedOutError) as caught:
        kind.call(raw(MODELS).url, "models", client=options)
    assert caught.value.limit == "total"


def test_no_wait_that_would_outlast_the_total(kind: Kind, raw: MakeServer) -> None:
    server = raw([answer(503, retry_after="30")])
    options = {"retries": POLICY, "timeouts": Timeouts(total=20), "clock": lambda: 0.0}
    with pytest.raises(UnavailableError) as caught:
        kind.call(server.url, "models", client=options)
    assert (caught.value.retry_after, kind.sleeps) == (30, [])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "no", "param": "n", "code": "c"}}', "no (HTTP 400)"),
        (b'{"error": "no"}', "no (HTTP 400)"),
        (b'{"detail": "no"}', "no (HTTP 400)"),
        (b'{"message": "no"}', "no (HTTP 400)"),
        (b"no", "no (HTTP 400)"),
        (b"<html><body>no</body></html>", "the server answered with Reason (HTTP 400)"),
        (b"", "the server answered with Reason (HTTP 400)"),
        (b"\xff\xfe", "\ufffd\ufffd (HTTP 400)"),
        (b"{}", "the server answered with Reason (HTTP 400)"),
    ],
)
def test_error_bodies_of_any_form(kind: Kind, raw: MakeServer, body: bytes, message: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        kind.call(raw([answer(400, body)]).url, "models")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "url must be http://HOST:PORT"),
        ({"url": "ftp://x"}, "url must be http://HOST:PORT"),
        ({"url": "http://"}, "url must be http://HOST:PORT"),
        ({"url": "http://me:secret@x"}, "url must have no user name"),
        ({"url": "http://x:99999"}, "url"),
        ({"api_key": "two words"}, "api_key: a key is printable ASCII"),
        ({"api_key": "line\nbreak"}, "api_key: a key is printable ASCII"),
    ],
)
def test_arguments_that_cannot_be_meant(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        Client(**arguments)
    assert "secret" not in str(caught.value)
    assert "words" not in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_that_cannot_be_meant(value: float) -> None:
    with pytest.raises(InvalidArgumentError, match="timeout read must be above 0"):
        Timeouts(read=value)
    if value != 0:
        with pytest.raises(InvalidArgumentError, match="max_retries must be at least 0"):
            RetryPolicy(max_retries=value)  # type: ignore[arg-type]


def test_the_key_is_sent_and_not_shown(
    raw: MakeServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = raw(MODELS, [answer(401)])
    caplog.set_level(0)
    with Client(server.url, api_key="s3cret") as client:
        client.models()
        with pytest.raises(AuthenticationError) as caught:
            client.models()
        shown = [repr(client), str(client), repr(client._settings), repr(caught.value), caplog.text]
    assert b"authorization: bearer s3cret" in server.requests[0].lower()
    assert "s3cret" not in "".join(shown)
    assert caplog.text
    monkeypatch.setenv("REMUDA_API_KEY", "fr0m-env")
    with Client(server.url, api_key="") as client:
        assert client._settings.api_key is None
