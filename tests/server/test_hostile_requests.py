"""Hostile requests, by the numbers of docs/security.md: each refused at the door by a 400 that names its field.

The engine must not have seen any of them, and the next good request works.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from remuda.engine.chat_template import ChatTemplate
from remuda.server.request_limits import RequestLimits
from tests.server.fake_info import VOCAB_SIZE
from tests.server.fakes import AppServer, FakeEngine, byte_tokenizer, eventually, says

COMPLETION = {"model": "fake", "prompt": "Hi"}
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
HUGE = int("9" * 4000)


def shortly(value: object) -> str:
    """A parameter as the name of a test."""
    return str(value)[:30]


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[FakeEngine, httpx2.Client]]:
    """One server for all requests that are refused: starting one takes longer than they do."""
    engine = FakeEngine()
    server = AppServer(engine)
    with httpx2.Client(base_url=server.url, timeout=10) as client:
        yield engine, client
    server.stop()
    engine.stop()


@pytest.fixture
def refused(shared: tuple[FakeEngine, httpx2.Client]) -> Iterator[Any]:
    """Sends a body to an endpoint and returns the error of its 400."""
    engine, http = shared
    num_before = len(engine.requests)

    def send(path: str, body: Any) -> dict[str, Any]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = http.post(path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
        assert len(engine.requests) == num_before
        error: dict[str, Any] = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert len(answer.content) < 2000
        return error

    yield send
    assert http.post("/v1/completions", json=COMPLETION).json()["choices"][0]["text"] == "Hello there"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 129}, "n"),
        ({"n": 2**31}, "n"),
        ({"n": HUGE}, "n"),
        ({"n": 128, "prompt": ["x"] * 9}, "n"),
        ({"best_of": 10_000}, "best_of"),
        ({"n": 2, "best_of": 10_000}, "best_of"),
        ({"prompt": ["x"] * 100_000}, "prompt"),
    ],
    ids=shortly,
)
def test_hostile_04_unbounded_n(refused: Any, fields: dict[str, Any], param: str) -> None:
    body = {**COMPLETION, **fields}
    if len(str(body)) > 90_000:
        body["prompt"] = ["x"] * 10_000
    assert refused("/v1/completions", body)["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ["s"] * 15_000}, "stop"),
        ({"stop": ["x" * 257]}, "stop"),
        ({"stop": "x" * 90_000}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": [["x"]]}, "stop"),
        ({"stop_token_ids": list(range(257))}, "stop_token_ids"),
        ({"stop_token_ids": [1] * 30_000}, "stop_token_ids"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"5": HUGE}}, "logit_bias"),
        ({"logit_bias": {"-5": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"bad_words": ["x"] * 500}, "bad_words"),
    ],
    ids=shortly,
)
@pytest.mark.parametrize(("path", "base"), [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)])
def test_hostile_05_lists_without_end(
    refused: Any, path: str, base: dict[str, Any], fields: dict[str, Any], param: str
) -> None:
    assert refused(path, {**base, **fields})["param"].startswith(param)


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
@pytest.mark.parametrize("value", [-1, -2, 21, VOCAB_SIZE, 2**63, HUGE, 1.5, "5", True], ids=shortly)
def test_hostile_06_logprobs(refused: Any, field: str, value: Any) -> None:
    assert refused("/v1/completions", {**COMPLETION, field: value})["param"] == field


@pytest.mark.parametrize("value", [-1, 21, VOCAB_SIZE, HUGE], ids=shortly)
def test_hostile_06_top_logprobs(refused: Any, value: int) -> None:
    assert refused("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": value})["param"] == (
        "top_logprobs"
    )


@pytest.mark.parametrize("prompt", ["", None, [""]])
def test_hostile_07_empty_prompt_is_bos(http: httpx2.Client, engine: FakeEngine, prompt: Any) -> None:
    assert http.post("/v1/completions", json={"model": "fake", "prompt": prompt}).status_code == 200
    assert engine.requests[0].prompt.tolist() == [0]


@pytest.mark.parametrize("prompt", ["", None, [""], [], [[]], [[], [5]], [[5], []]])
def test_hostile_07_empty_prompt_without_bos(engine: FakeEngine, prompt: Any) -> None:
    running = AppServer(engine, byte_tokenizer(bos=False))
    try:
        with httpx2.Client(base_url=running.url) as http:
            answer = http.post("/v1/completions", json={"model": "fake", "prompt": prompt})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
            assert engine.requests == []
    finally:
        running.stop()


@pytest.mark.parametrize(
    "prompt", [[-1], [VOCAB_SIZE], [5, -(2**63)], [2**63], [HUGE], [[5], [VOCAB_SIZE]], [1.5]], ids=shortly
)
def test_hostile_08_ids_outside_the_vocabulary(refused: Any, prompt: list[Any]) -> None:
    error = refused("/v1/completions", {"model": "fake", "prompt": prompt})
    assert error["param"] == "prompt"


@pytest.mark.parametrize("field", ["stop_token_ids", "logit_bias"])
@pytest.mark.parametrize("token", [-1, VOCAB_SIZE, 2**31, 2**63, HUGE], ids=shortly)
def test_hostile_08_ids_of_other_fields(refused: Any, field: str, token: int) -> None:
    value: Any = [token] if field == "stop_token_ids" else {str(token): 1}
    assert refused("/v1/completions", {**COMPLETION, field: value})["param"].startswith(field)


INTEGERS = ["n", "max_tokens", "min_tokens", "top_k", "seed", "logprobs", "prompt_logprobs", "best_of"]
NUMBERS = ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"]


@pytest.mark.parametrize("field", [*INTEGERS, *NUMBERS])
@pytest.mark.parametrize("value", [-HUGE, HUGE, 2**64, -(2**63) - 1], ids=shortly)
def test_hostile_09_huge_numbers(refused: Any, field: str, value: int) -> None:
    error = refused("/v1/completions", {**COMPLETION, field: value})
    assert error["param"] == field
    assert "9" * 30 not in error["message"]


@pytest.mark.parametrize("field", INTEGERS)
def test_hostile_09_five_thousand_digits(refused: Any, field: str) -> None:
    body = b'{"model": "fake", "prompt": "Hi", "%s": %s}' % (field.encode(), b"9" * 5000)
    assert refused("/v1/completions", body)["code"] == "invalid_json"


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "fake", "prompt": ' + b"[" * 40_000 + b"]" * 40_000 + b"}",
        b'{"model": "fake", "prompt": "Hi", "logit_bias": ' + b'{"a":' * 15_000 + b"1" + b"}" * 15_000 + b"}",
        b"[" * 90_000,
        b'{"model": "fake", "prompt": "Hi", "temperature": NaN}',
        b'{"model": "fake", "prompt": "Hi", "temperature": -Infinity}',
        b'{"model": "fake", "prompt": "Hi", "temperature": 1e999}',
        b'{"model": "fake", "prompt": "Hi", "logit_bias": {"5": 1e999}}',
        b'{"model": "fake", "prompt": "Hi", "prompt": "Ho"}',
        b'{"model": "fake", "prompt": "Hi", "stream_options": {"a": 1, "a": 1}, "stream": true}',
        b'{"model": "fake", "prompt": "Hi"} {}',
        b"",
        b"\x00",
    ],
    ids=lambda body: repr(body[:60]),
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_hostile_13_odd_json(refused: Any, path: str, body: bytes) -> None:
    assert refused(path, body)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "fields",
    [
        b'"prompt": "\\ud800"',
        b'"prompt": ["a", "\\udfff"]',
        b'"prompt": "Hi", "stop": "\\ud83d"',
        b'"prompt": "Hi", "user": "\\ud800"',
        b'"prompt": "Hi", "\\ud800": 1',
        b'"prompt": "\xed\xa0\x80"',
    ],
    ids=repr,
)
def test_hostile_14_lone_surrogates(refused: Any, fields: bytes) -> None:
    assert refused("/v1/completions", b'{"model": "fake", ' + fields + b"}")["code"] == "invalid_json"


def test_hostile_14_lone_surrogate_as_the_model(refused: Any) -> None:
    assert refused("/v1/completions", b'{"model": "\\ud800", "prompt": "Hi"}')["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("POST", "/v1/completions", b'{"model": 5}'),
        ("POST", "/v1/completions", b"{"),
        ("POST", "/v1/chat/completions", b'{"model": "fake", "messages": [{"role": {"x": 1}}]}'),
        ("POST", "/v1/chat/completions", b'{"model": "fake", "messages": {"a": "secret-of-the-prompt"}}'),
        ("GET", "/v1/completions", b""),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", b""),
        ("GET", "/<script>alert(1)</script>", b""),
        ("DELETE", "/v1/models", b""),
    ],
)
def test_hostile_15_errors_tell_nothing_of_the_server(
    http: httpx2.Client, method: str, path: str, content: bytes
) -> None:
    headers = {"content-type": "application/json"} if content else {}
    answer = http.request(method, path, content=content, headers=headers)
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == "application/json"
    for leak in (
        "Traceback",
        ".py",
        "remuda.",
        "/site-packages",
        "pydantic",
        "https://errors",
        "secret-of",
        "line 1 in",
    ):
        assert leak not in answer.text


def test_hostile_15_a_bug_tells_nothing(
    server: AppServer, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the secret path /home/user/model.bin")

    for path, body in (("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)):
        with monkeypatch.context() as patch:
            patch.setattr(server.tokenizer, "encode", fail)
            answer = http.post(path, json=body)
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert "secret" not in answer.text
        assert "RuntimeError" not in answer.text


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template": "{{ ''.__class__ }}"},
        {"chat_template_kwargs": {"messages": []}},
        {"chat_template_kwargs": {"bos_token": "x"}},
        {"chat_template_kwargs": {"raise_exception": 1}},
        {"chat_template_kwargs": {"__class__": 1}},
        {"documents": [{"title": "x"}]},
    ],
    ids=str,
)
def test_hostile_16_no_template_from_a_request(refused: Any, fields: dict[str, Any]) -> None:
    assert refused("/v1/chat/completions", {**CHAT, **fields})["param"].startswith(next(iter(fields)))


def test_hostile_16_rendering_holds_nobody_up(
    server: AppServer, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a template works on one conversation, others are answered."""
    may_end, has_begun = threading.Event(), threading.Event()

    def render(*args: object, **kwargs: object) -> str:
        has_begun.set()
        assert may_end.wait(10)
        return "<bos>x"

    monkeypatch.setattr(ChatTemplate, "render", render)
    answers = []
    url = f"{server.url}/v1/chat/completions"
    asking = threading.Thread(target=lambda: answers.append(httpx2.post(url, json=CHAT)))
    asking.start()
    assert has_begun.wait(10)
    assert http.post("/v1/completions", json=COMPLETION).status_code == 200
    may_end.set()
    asking.join()
    assert [answer.status_code for answer in answers] == [200]


def test_hostile_16_long_prompts_hold_no_short_one_up(
    server: AppServer, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More long ones than there are threads for them are tokenized; a short conversation is answered."""
    may_end, begun = threading.Event(), []
    encode = server.tokenizer.encode

    def slowly(text: str, **options: Any) -> list[int]:
        if len(text) > 1000:
            begun.append(1)
            assert may_end.wait(10)
        return list(encode(text, **options))

    monkeypatch.setattr(server.tokenizer, "encode", slowly)
    long = {"model": "fake", "messages": [{"role": "user", "content": "x" * 20_000}], "max_tokens": 1}
    url = f"{server.url}/v1/chat/completions"
    asking = [threading.Thread(target=httpx2.post, args=(url,), kwargs={"json": long}) for _ in range(40)]
    for thread in asking:
        thread.start()
    assert eventually(lambda: len(begun) >= min(32, (os.cpu_count() or 1) + 4))
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
    may_end.set()
    for thread in asking:
        thread.join()


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ i * j }}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(99999) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{{ 'x' * 10 ** 10 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_hostile_17_a_template_in_a_models_files(engine: FakeEngine, template: str) -> None:
    running = AppServer(engine, byte_tokenizer(template=template))
    try:
        with httpx2.Client(base_url=running.url, timeout=30) as http:
            for stream in (False, True):
                answer = http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
                assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
            assert engine.requests == []
            assert http.post("/v1/completions", json=COMPLETION).status_code == 200
    finally:
        running.stop()


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
        {"response_format": {"type": "nonsense"}},
        {"guided_regex": "(" * 1000},
        {"guided_grammar": "root ::= root root"},
        {"structured_outputs": {"regex": "(a+)+" * 1000 + "["}},
    ],
    ids=shortly,
)
def test_hostile_19_bad_grammars(refused: Any, fields: dict[str, Any]) -> None:
    refused("/v1/chat/completions", {**CHAT, **fields})


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_hostile_20_nothing_is_cached_between_requests(http: httpx2.Client, engine: FakeEngine, path: str) -> None:
    """There is no cache that a tenant could poison or time: each prompt is read whole, and usage says so."""
    body = COMPLETION if path == "/v1/completions" else CHAT
    for _ in range(3):
        usage = http.post(path, json=body).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    assert len({tuple(sent.prompt) for sent in engine.requests}) == 1
    assert len({sent.request_id for sent in engine.requests}) == 3


def test_prompts_beyond_the_limit(engine: FakeEngine) -> None:
    running = AppServer(engine, limits=RequestLimits(max_prompt_tokens=10))
    try:
        with httpx2.Client(base_url=running.url) as http:
            for stream in (False, True):
                for prompt in ("x" * 20, [5] * 11, ["abcde", "abcde"]):
                    answer = http.post(
                        "/v1/completions", json={"model": "fake", "prompt": prompt, "stream": stream}
                    )
                    error = answer.json()["error"]
                    assert answer.status_code == 400
                    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
            assert engine.requests == []
            assert http.post("/v1/completions", json={"model": "fake", "prompt": [5] * 10}).status_code == 200
    finally:
        running.stop()


def test_requests_beyond_their_time(engine: FakeEngine) -> None:
    engine.script, engine.step_s = says("x" * 50_000), 0.01
    running = AppServer(engine, limits=RequestLimits(request_timeout_s=0.3))
    body = {"model": "fake", "prompt": "Hi", "max_tokens": 50_000}
    try:
        with httpx2.Client(base_url=running.url) as http:
            answer = http.post("/v1/completions", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (408, "request_timeout")
            assert answer.headers["x-should-retry"] == "false"
            streamed = http.post("/v1/completions", json={**body, "stream": True})
            last = streamed.text.strip().split("\n\n")[-1].removeprefix("data: ")
            assert json.loads(last)["error"]["code"] == "request_timeout"
            assert "[DONE]" not in streamed.text
            engine.running.clear()
            assert http.post("/v1/completions", json=body).status_code == 408
            engine.running.set()
        assert eventually(lambda: len(engine.aborts) == 3)
        assert [record.abort_reason for record in running.records] == ["timeout"] * 3
    finally:
        engine.running.set()
        running.stop()


def test_no_limit_of_time_fires_early(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock that jumps is none of the limits' business."""
    running = AppServer(engine, limits=RequestLimits(request_timeout_s=30))
    try:
        monkeypatch.setattr(time, "time", lambda: 4e9)
        with httpx2.Client(base_url=running.url) as http:
            assert http.post("/v1/completions", json=COMPLETION).status_code == 200
    finally:
        running.stop()
