"""Embeddings and responses in the background stand in log and metrics, and keep limits, like other requests."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from remuda.engine.log_format import FIELDS
from remuda.engine.wire import RequestRejected, SequenceOutput
from remuda.server.request_limits import RequestLimits
from remuda.server.request_record import RequestRecord
from tests.server.fakes import AppServer, FakeEngine, eventually, ids, says
from tests.server.test_metrics import sample

RESPONSE: dict[str, Any] = {"model": "fake", "input": "Hi", "background": True}
EMBEDDING: dict[str, Any] = {"model": "fake", "input": ["Hi", "there"]}
# The prompt of the response, rendered: beginning, user, 2, end, assistant.
NUM_PROMPT_TOKENS = 6


@pytest.fixture
def limited(engine: FakeEngine) -> Iterator[AppServer]:
    """A server that lets no request take long."""
    running = AppServer(engine, limits=RequestLimits(request_timeout_s=0.3, max_prompt_tokens=20))
    yield running
    engine.running.set()
    running.stop()


def start(http: httpx2.Client) -> str:
    """Start a response in the background; its id."""
    answer = http.post("/v1/responses", json=RESPONSE, headers={"x-request-id": "mine"})
    assert answer.json()["status"] == "queued", answer.text
    return str(answer.json()["id"])


def ended(server: AppServer) -> RequestRecord:
    """The record of the run in the background, once it has ended."""
    assert eventually(lambda: any(record.is_background for record in server.records))
    (found,) = [record for record in server.records if record.is_background]
    return found


def test_a_run_in_the_background(server: AppServer, http: httpx2.Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "remuda.access")
    start(http)
    run = ended(server)
    (request,) = [record for record in server.records if not record.is_background]
    assert (request.request_id, request.route, request.status, request.meter) == (
        "mine",
        "/v1/responses",
        200,
        None,
    )
    assert (run.request_id, run.route, run.status) == ("mine", "/v1/responses", 200)
    assert (run.num_prompt_tokens, run.num_output_tokens) == (NUM_PROMPT_TOKENS, 12)
    assert (run.finish_reasons, run.abort_reason) == (["stop"], None)
    assert run.first_token_s is not None
    assert 0 < run.first_token_s <= run.total_s
    assert run.ended >= request.ended
    # One request, though it has two lines.
    assert sample(http, 'http_requests_total{handler="/v1/responses",status="200"}') == 1
    assert sample(http, 'request_success_total{finished_reason="stop"}') == 1
    assert sample(http, "request_prompt_tokens_sum") == NUM_PROMPT_TOKENS
    assert sample(http, "request_generation_tokens_sum") == 12
    assert sample(http, "e2e_request_latency_seconds_count") == 1
    lines = [getattr(record, FIELDS) for record in caplog.records if record.name == "remuda.access"]
    (line,) = [fields for fields in lines if "background" in fields]
    assert (line["background"], line["prompt_tokens"], line["completion_tokens"]) == (True, NUM_PROMPT_TOKENS, 12)


@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_a_run_that_is_ended_by_a_client(
    server: AppServer, http: httpx2.Client, engine: FakeEngine, how: str
) -> None:
    engine.script, engine.step_s = says("x" * 500), 0.01
    url = f"/v1/responses/{start(http)}"
    assert eventually(lambda: http.get(url).json()["status"] == "in_progress")
    assert (http.post(f"{url}/cancel") if how == "cancel" else http.delete(url)).status_code == 200
    run = ended(server)
    assert (run.status, run.abort_reason, run.finish_reasons) == (499, "cancelled", ["abort"])
    assert 0 < run.num_output_tokens < 500
    assert sample(http, 'request_aborts_total{reason="cancelled"}') == 1


@pytest.mark.parametrize(
    ("kind", "status", "reason"), [("QueueFullError", 429, "queue_full"), ("UnhealthyStateError", 500, "error")]
)
def test_a_run_that_fails(
    server: AppServer, http: httpx2.Client, engine: FakeEngine, kind: str, status: int, reason: str
) -> None:
    engine.script = lambda request: RequestRejected(request.request_id, kind, "not now")
    start(http)
    run = ended(server)
    assert (run.status, run.abort_reason, run.num_output_tokens) == (status, reason, 0)


def test_a_run_whose_state_goes_bad(server: AppServer, http: httpx2.Client, engine: FakeEngine) -> None:
    def script(request: Any) -> list[list[SequenceOutput]]:
        error = SequenceOutput(request.request_id, 0, [], finish_reason="error", error="bad state")
        return [[SequenceOutput(request.request_id, 0, ids("H")), error]]

    engine.script = script
    start(http)
    run = ended(server)
    assert (run.status, run.abort_reason, run.num_output_tokens) == (500, "error", 1)


def test_embeddings(server: AppServer, http: httpx2.Client) -> None:
    assert http.post("/v1/embeddings", json=EMBEDDING).status_code == 200
    assert eventually(lambda: len(server.records) == 1)
    (record,) = server.records
    # With a BOS for each.
    assert (record.route, record.status, record.num_prompt_tokens, record.num_output_tokens) == (
        "/v1/embeddings",
        200,
        9,
        0,
    )
    assert (record.finish_reasons, record.abort_reason) == (["stop", "stop"], None)
    assert sample(http, "request_prompt_tokens_sum") == 9
    assert sample(http, 'request_success_total{finished_reason="stop"}') == 2
    assert sample(http, 'request_aborts_total{reason="error"}') is None


def test_the_limit_of_time(limited: AppServer, engine: FakeEngine) -> None:
    engine.running.clear()
    with httpx2.Client(base_url=limited.url) as http:
        answer = http.post("/v1/embeddings", json=EMBEDDING)
        assert (answer.status_code, answer.json()["error"]["code"]) == (408, "request_timeout")
        response_id = start(http)
        run = ended(limited)
        assert (run.status, run.abort_reason) == (408, "timeout")
        found = http.get(f"/v1/responses/{response_id}").json()
        assert (found["status"], "limit of 0.3 s" in found["error"]["message"]) == ("failed", True)
    assert eventually(lambda: len(engine.aborts) == 3)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {**RESPONSE, "background": False}),
        ("/v1/responses", {**RESPONSE, "background": False, "stream": True}),
        ("/v1/responses", RESPONSE),
        ("/v1/embeddings", EMBEDDING),
    ],
    ids=str,
)
def test_the_limit_of_prompts(limited: AppServer, engine: FakeEngine, path: str, body: dict[str, Any]) -> None:
    with httpx2.Client(base_url=limited.url) as http:
        answer = http.post(path, json={**body, "input": "x" * 21})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("input", "context_length_exceeded")
    assert engine.requests == []
    assert eventually(lambda: [(r.status, r.meter) for r in limited.records] == [(400, None)])
