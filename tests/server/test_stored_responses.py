"""Responses after their creation: retrieval, conversations, input items, cancelling, disconnects, limits."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from openai.types.responses import Response
from openai.types.responses.response_item_list import ResponseItemList

from remuda.engine.errors import EngineDeadError
from remuda.engine.wire import AddRequest, RequestRejected, SequenceOutput
from remuda.server.response_store import MemoryResponseStore
from remuda.server.responses_input import parse_input, to_messages
from tests.server.fake_info import ASSISTANT, BOS, END, USER
from tests.server.fakes import AppServer, FakeEngine, eventually, ids, says
from tests.server.typed import conform

EXTRAS = frozenset({"store"})


@pytest.fixture
def store(server: AppServer) -> MemoryResponseStore:
    found = server.state.response_store
    assert isinstance(found, MemoryResponseStore)
    return found


@pytest.fixture(autouse=True)
def _nothing_runs_on(server: AppServer) -> Iterator[None]:
    yield
    server.engine.running.set()
    kept = server.state.response_store
    assert isinstance(kept, MemoryResponseStore)
    assert eventually(lambda: not kept._running)


def respond(client: openai.OpenAI, **fields: Any) -> Any:
    return client.responses.create(**{"model": "fake", "input": "Hi", **fields})


def post(http: httpx2.Client, **fields: Any) -> httpx2.Response:
    return http.post("/v1/responses", json={"model": "fake", "input": "Hi", **fields})


def said(*turns: tuple[int, str]) -> list[int]:
    """The prompt of a conversation."""
    return [BOS, *(token for role, text in turns for token in (role, *ids(text), END)), ASSISTANT]


@pytest.mark.parametrize("is_stream", [False, True])
def test_what_was_answered_can_be_retrieved(client: openai.OpenAI, http: httpx2.Client, is_stream: bool) -> None:
    if is_stream:
        *_, last = respond(client, stream=True)
        answer = last.response
    else:
        answer = respond(client)
    assert client.responses.retrieve(answer.id) == answer
    for query in ("", "?stream=false"):
        conform(Response, http.get(f"/v1/responses/{answer.id}{query}").content, EXTRAS)
    refused = http.get(f"/v1/responses/{answer.id}?stream=true")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stream")


def test_a_response_that_streams_can_be_seen(http: httpx2.Client, engine: FakeEngine) -> None:
    engine.running.clear()
    with http.stream("POST", "/v1/responses", json={"model": "fake", "input": "Hi", "stream": True}) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: response.created"
        response_id = json.loads(next(lines).removeprefix("data: "))["response"]["id"]
        found = http.get(f"/v1/responses/{response_id}").json()
        assert (found["status"], found["output"]) == ("in_progress", [])
        refused = http.post(f"/v1/responses/{response_id}/cancel")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_id")
        refused = post(http, previous_response_id=response_id)
        assert "has no answer, it is in_progress" in refused.json()["error"]["message"]
        engine.running.set()
        assert "event: response.completed" in list(lines)
    assert http.get(f"/v1/responses/{response_id}").json()["status"] == "completed"


@pytest.mark.parametrize("is_stream", [False, True])
def test_store_false_keeps_nothing(client: openai.OpenAI, store: MemoryResponseStore, is_stream: bool) -> None:
    answer = respond(client, store=False, stream=is_stream)
    answer = list(answer)[-1].response if is_stream else answer
    assert answer.status == "completed"
    assert store.num_responses == 0
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def test_delete(client: openai.OpenAI, http: httpx2.Client, store: MemoryResponseStore) -> None:
    answer = respond(client)
    assert http.delete(f"/v1/responses/{answer.id}").json() == {
        "id": answer.id,
        "object": "response",
        "deleted": True,
    }
    assert (store.num_responses, store.num_bytes) == (0, 0)
    for call in (client.responses.delete, client.responses.retrieve, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            call(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.input_items.list(answer.id)
    with pytest.raises(openai.BadRequestError) as caught:
        respond(client, previous_response_id=answer.id)
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "previous_response_not_found")


@pytest.mark.parametrize("response_id", ["resp_0", "x" * 4_000, "%00", "..%2F..", "a%20b", "é"])
def test_unknown_ids(http: httpx2.Client, response_id: str) -> None:
    url = f"/v1/responses/{response_id}"
    answers = [http.get(url), http.delete(url), http.post(f"{url}/cancel"), http.get(f"{url}/input_items")]
    for answer in answers:
        assert answer.status_code == 404
        assert len(answer.json()["error"]["message"]) < 400


def test_a_conversation(client: openai.OpenAI, engine: FakeEngine) -> None:
    first = respond(client, input="a")
    second = respond(client, input=[{"role": "user", "content": "b"}], previous_response_id=first.id)
    third = respond(client, input="c", previous_response_id=second.id)
    assert third.previous_response_id == second.id
    hello = (ASSISTANT, "Hello there")
    assert engine.requests[2].prompt.tolist() == said((USER, "a"), hello, (USER, "b"), hello, (USER, "c"))
    # Two may follow one, and the middle one's loss breaks the thread.
    respond(client, input="d", previous_response_id=first.id)
    assert engine.requests[3].prompt.tolist() == said((USER, "a"), hello, (USER, "d"))
    client.responses.delete(second.id)
    with pytest.raises(openai.BadRequestError, match=second.id):
        respond(client, previous_response_id=third.id)


def test_an_incomplete_answer_can_be_gone_on_from(client: openai.OpenAI, engine: FakeEngine) -> None:
    first = respond(client, max_output_tokens=2)
    respond(client, input="more", previous_response_id=first.id)
    assert engine.requests[1].prompt.tolist() == said((USER, "Hi"), (ASSISTANT, "He"), (USER, "more"))


def test_a_long_conversation_meets_the_limit_of_a_body(client: openai.OpenAI, http: httpx2.Client) -> None:
    answer = respond(client, input="x" * 40_000)
    answer = respond(client, input="y" * 40_000, previous_response_id=answer.id)
    refused = post(http, previous_response_id=answer.id, input="z")
    assert refused.status_code == 200
    refused = post(http, previous_response_id=refused.json()["id"], input="z" * 40_000)
    answer = respond(client, input="w" * 40_000, previous_response_id=answer.id)
    refused = post(http, previous_response_id=answer.id)
    assert refused.status_code == 400
    assert "limit of 100000 bytes" in refused.json()["error"]["message"]


def test_input_items(client: openai.OpenAI, http: httpx2.Client) -> None:
    items: list[Any] = [{"role": "user", "content": f"{i}"} for i in range(4)]
    items.insert(1, {"role": "assistant", "content": "yes"})
    answer = respond(client, input=items)
    url = f"/v1/responses/{answer.id}/input_items"
    listed = conform(ResponseItemList, http.get(url).content)
    assert [item.content[0].text for item in listed.data] == ["3", "2", "1", "yes", "0"]  # type: ignore[union-attr]
    assert not listed.has_more
    page = http.get(f"{url}?order=asc&limit=2").json()
    assert [item["role"] for item in page["data"]] == ["user", "assistant"]
    assert (page["has_more"], page["last_id"]) == (True, page["data"][1]["id"])
    rest = http.get(f"{url}?order=asc&after={page['last_id']}").json()
    assert [item["content"][0]["text"] for item in rest["data"]] == ["1", "2", "3"]
    # The client follows the pages by itself.
    paged = client.responses.input_items.list(answer.id, limit=1, order="asc")
    assert [item.content[0].text for item in paged] == ["0", "yes", "1", "2", "3"]
    end = http.get(f"{url}?after={listed.data[-1].id}").json()
    assert (end["data"], end["has_more"]) == ([], False)


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "order=up", "after=item_1"])
def test_bad_pages(client: openai.OpenAI, http: httpx2.Client, query: str) -> None:
    answer = http.get(f"/v1/responses/{respond(client).id}/input_items?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, query.partition("=")[0])


def test_functions_in_the_input_become_messages() -> None:
    items = parse_input(
        [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": "Let me see."},
            {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "[]"},
            {"type": "function_call_output", "call_id": "c1", "output": "sun"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "rain"}]},
        ]
    )
    messages = [message.model_dump() for message in to_messages(None, items)]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert messages[1]["tool_calls"][0] == call
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["c1", "c2"]
    assert [(m["role"], m["content"]) for m in messages] == [
        ("user", "weather?"),
        ("assistant", "Let me see."),
        ("tool", "sun"),
        ("tool", "rain"),
    ]
    assert [m.get("tool_call_id") for m in messages] == [None, None, "c1", "c2"]
    listed = {"object": "list", "data": items, "first_id": "a", "last_id": "b", "has_more": False}
    conform(ResponseItemList, json.dumps(listed))


def test_background(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.running.clear()
    queued = respond(client, background=True)
    assert (queued.status, queued.output, queued.background) == ("queued", [], True)
    assert client.responses.retrieve(queued.id).status == "queued"
    engine.step_s = 0.05
    engine.running.set()
    assert eventually(lambda: client.responses.retrieve(queued.id).status == "in_progress")
    assert eventually(lambda: client.responses.retrieve(queued.id).status == "completed")
    done = client.responses.retrieve(queued.id)
    assert (done.output_text, done.usage.output_tokens if done.usage else 0) == ("Hello there", 12)
    respond(client, previous_response_id=queued.id, input="more")
    assert engine.requests[1].prompt.tolist() == said((USER, "Hi"), (ASSISTANT, "Hello there"), (USER, "more"))


@pytest.mark.parametrize("phase", ["queued", "in_progress"])
@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_cancel_and_delete_end_the_request(
    server: AppServer, client: openai.OpenAI, engine: FakeEngine, phase: str, how: str
) -> None:
    engine.script = says("x" * 500)
    engine.step_s = 0.01
    if phase == "queued":
        engine.running.clear()
    run = respond(client, background=True)
    assert eventually(lambda: client.responses.retrieve(run.id).status == phase)
    if how == "cancel":
        cancelled = client.responses.cancel(run.id)
        assert (cancelled.id, cancelled.status) == (run.id, "cancelled")
    else:
        client.responses.delete(run.id)
    assert eventually(lambda: [abort.request_id for abort in engine.aborts] == [f"{run.id}-0"])
    assert server.link.num_requests == 0
    if how == "cancel":
        # It stays so, and once more is no error.
        assert client.responses.retrieve(run.id).status == client.responses.cancel(run.id).status == "cancelled"
        with pytest.raises(openai.BadRequestError, match="it is cancelled"):
            respond(client, previous_response_id=run.id)


def test_cancelling_what_has_ended(client: openai.OpenAI) -> None:
    run = respond(client, background=True)
    assert eventually(lambda: client.responses.retrieve(run.id).status == "completed")
    assert client.responses.cancel(run.id) == client.responses.retrieve(run.id)
    with pytest.raises(openai.BadRequestError, match="only a response with background"):
        client.responses.cancel(respond(client).id)


def test_cancelling_races_the_end(client: openai.OpenAI, server: AppServer, engine: FakeEngine) -> None:
    """Whoever is first: one end, the same for all who ask, and nothing left."""
    engine.script = says("ab")

    def race() -> str:
        run = respond(client, background=True)
        with ThreadPoolExecutor(2) as threads:
            ends = set(threads.map(lambda _: client.responses.cancel(run.id).status, range(2)))
        assert ends == {client.responses.retrieve(run.id).status}
        return str(ends.pop())

    ends = {race() for _ in range(30)}
    assert ends <= {"cancelled", "completed"}
    assert server.link.num_requests == 0


@pytest.mark.parametrize(
    ("kind", "code"), [("QueueFullError", "rate_limit_exceeded"), ("UnhealthyStateError", "server_error")]
)
def test_a_run_in_the_background_that_fails(
    client: openai.OpenAI, http: httpx2.Client, engine: FakeEngine, kind: str, code: str
) -> None:
    engine.script = lambda request: RequestRejected(request.request_id, kind, "not now")
    run = respond(client, background=True)
    assert eventually(lambda: client.responses.retrieve(run.id).status == "failed")
    found = conform(Response, http.get(f"/v1/responses/{run.id}").content, EXTRAS)
    assert found.error is not None
    assert (found.error.code, found.error.message) == (code, "not now")


def test_a_bug_does_not_leave_a_run_for_ever(
    client: openai.OpenAI, server: AppServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("remuda.server.responses_format._usage", lambda usage: 1 / 0)
    run = respond(client, background=True)
    assert eventually(lambda: client.responses.retrieve(run.id).status == "failed")
    assert eventually(lambda: "ZeroDivisionError" in caplog.text)


def dies_after(server: AppServer, num_steps: int) -> Any:
    def script(request: AddRequest) -> Iterator[list[SequenceOutput]]:
        yield from says("Hello")(request)[:num_steps]
        server.loop.call_soon_threadsafe(server.link.disconnect, EngineDeadError("it died"))

    return script


def test_an_engine_that_dies_in_a_stream(server: AppServer, client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = dies_after(server, 2)
    engine.step_s = 0.05
    *_, last = respond(client, stream=True)
    assert last.type == "response.failed"
    assert (last.response.error.code, last.response.error.message) == ("server_error", "it died")
    assert client.responses.retrieve(last.response.id).status == "failed"


def test_what_fails_before_an_answer_is_not_kept(
    http: httpx2.Client, engine: FakeEngine, store: MemoryResponseStore
) -> None:
    engine.script = lambda request: RequestRejected(request.request_id, "QueueFullError", "full")
    for is_stream in (False, True):
        assert post(http, stream=is_stream).status_code == 429
    assert eventually(lambda: store.num_responses == 0)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_leaves_cancels(
    server: AppServer, http: httpx2.Client, engine: FakeEngine, store: MemoryResponseStore, is_stream: bool
) -> None:
    engine.script = says("x" * 5000)
    engine.step_s = 0.005
    body = json.dumps({"model": "fake", "input": "Hi", "stream": is_stream}).encode()
    with server.raw() as connection:
        head = f"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        connection.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + body)
        assert eventually(lambda: bool(store._running))
        if is_stream:
            assert b"200 OK" in connection.recv(1000)
    assert eventually(lambda: not store._running and len(engine.aborts) == 1)
    (response_id,) = store._ended
    assert http.get(f"/v1/responses/{response_id}").json()["status"] == "cancelled"
    refused = post(http, previous_response_id=response_id).json()["error"]
    assert refused["param"] == "previous_response_id"


def test_deleted_while_it_streams(http: httpx2.Client, engine: FakeEngine, store: MemoryResponseStore) -> None:
    """The stream goes on to its end; what it says is not kept."""
    engine.running.clear()
    with http.stream("POST", "/v1/responses", json={"model": "fake", "input": "Hi", "stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
        response_id = json.loads(next(lines).removeprefix("data: "))["response"]["id"]
        assert http.delete(f"/v1/responses/{response_id}").status_code == 200
        engine.running.set()
        assert "event: response.completed" in list(lines)
    assert store.num_responses == 0


def test_the_limits_of_the_store(server: AppServer, client: openai.OpenAI, http: httpx2.Client) -> None:
    store = server.state.response_store = MemoryResponseStore(max_responses=2, max_bytes=20_000)
    first, *others = [respond(client) for _ in range(3)]
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    assert [client.responses.retrieve(other.id).id for other in others] == [other.id for other in others]
    refused = post(http, input="x" * 30_000)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "store")
    assert post(http, input="x" * 30_000, store=False).status_code == 200
    assert store.num_responses == 2
    server.engine.running.clear()
    runs = [respond(client, background=True) for _ in range(2)]
    for fields in ({}, {"background": True}):
        full = post(http, **fields)
        assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    for run in runs:
        client.responses.cancel(run.id)
    assert server.link.num_requests == 0


def test_a_server_that_stores_nothing(server: AppServer, client: openai.OpenAI, http: httpx2.Client) -> None:
    server.state.response_store = MemoryResponseStore(max_responses=0)
    answer = post(http).json()
    assert (answer["status"], answer["store"]) == ("completed", False)
    assert http.get(f"/v1/responses/{answer['id']}").status_code == 404
    for field in ("store", "background"):
        assert post(http, **{field: True}).json()["error"]["param"] == field
