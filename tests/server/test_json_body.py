"""json_body.parse_json: what it takes, and what is a 400."""

import asyncio
import threading

import pytest

from remuda.server.errors import ApiError
from remuda.server.json_body import MAX_PARTS, StrictRequest, parse_json


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": [1, 2.5, null, true, "x"]}', {"a": [1, 2.5, None, True, "x"]}),
        ('{"a": "é😀"}'.encode(), {"a": "é😀"}),
        (b'{"a": "\\ud83d\\ude00"}', {"a": "😀"}),
        (b'{"a": "\\u00e9"}', {"a": "é"}),
        (b"[]", []),
        (b'["' + b"{[:" * MAX_PARTS + b'"]', ["{[:" * MAX_PARTS]),
        (b'["' + b'{\\"' * MAX_PARTS + b'"]', ['{"' * MAX_PARTS]),
        (b"[" + b'"{{",' * (MAX_PARTS - 1) + b"1]", ["{{"] * (MAX_PARTS - 1) + [1]),
        (b"[" + b"[]," * (MAX_PARTS - 2) + b"1]", [[]] * (MAX_PARTS - 2) + [1]),
    ],
)
def test_takes(body: bytes, value: object) -> None:
    assert parse_json(body) == value


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "line 1, column 1"),
        (b'{"a": 1,}', "line 1"),
        (b'{"a": 1} x', "Extra data"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "Infinity is not JSON"),
        (b'{"a": 1, "a": 2}', "same key twice"),
        (b'{"b": {"a": 1, "a": 1}}', "same key twice"),
        (b'{"a": "\xff"}', "not UTF-8 (byte 7)"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'{"a": "\\ude00\\ud83d"}', "surrogate"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
        (b"[" * 50_000 + b"]" * 50_000, "nested too deeply"),
        (b'{"a":' * 30_000 + b"1" + b"}" * 30_000, "nested too deeply"),
        (b"[" * 100_000 + b"]" * 100_000, "more than 65536 objects"),
        (b"[" + b"[]," * MAX_PARTS + b"1]", "more than 65536 objects"),
        (b"[" + b"{}," * MAX_PARTS + b"1]", "more than 65536 objects"),
        (b"[" + b'"",' * (MAX_PARTS + 1) + b"1]", "names or strings"),
        (b"[" + b'"\\\\",' * (2 * MAX_PARTS + 1) + b"1]", "names or strings"),
        (b"{" + b",".join(b'"%d":1' % i for i in range(MAX_PARTS)) + b"}", "more than 65536 objects"),
    ],
    ids=lambda value: repr(value)[:24] if isinstance(value, bytes) else None,
)
def test_refuses(body: bytes, reason: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_json(body)
    assert caught.value.status_code == 400
    assert reason in caught.value.detail


@pytest.mark.parametrize(("num_bytes", "is_on_loop"), [(10, True), (300_000, False)])
def test_large_bodies_are_parsed_off_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, num_bytes: int, is_on_loop: bool
) -> None:
    threads = []

    def note(body: bytes) -> object:
        threads.append(threading.current_thread())
        return parse_json(body)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b'"' + b"x" * num_bytes + b'"', "more_body": False}

    monkeypatch.setattr("remuda.server.json_body.parse_json", note)
    request = StrictRequest({"type": "http", "method": "POST", "headers": []}, receive)
    assert asyncio.run(request.json()) == "x" * num_bytes
    assert [thread is threading.main_thread() for thread in threads] == [is_on_loop]
