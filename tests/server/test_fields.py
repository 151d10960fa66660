"""Every request field of the installed `openai` package stands in docs/api.md, and each row there is true."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import httpx2
import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import ChatCompletionMessageParam
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from remuda.server.responses_schema import ResponseRequest
from remuda.server.routes_embeddings import EmbeddingRequest
from remuda.server.schemas import ChatCompletionRequest, CompletionRequest
from tests.server.fakes import AppServer, FakeEngine, byte_tokenizer, eventually
from tests.server.field_samples import A_STORED_ID, BASES, MESSAGE_SAMPLES, NEEDS, SAMPLES

State = Literal["works", "ignored", "refused"]
STATES: Final = get_args(State)
TEMPLATE: Final = (
    "{{ enable_thinking }}{{ tools }}{% for m in messages %}<{{ m.role }}>{{ m.name }}{{ m.tool_call_id }}"
    "{{ m.content }}{{ m.tool_calls }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "api.md"

PARAMS: Final = {
    "/v1/completions": completion_create_params.CompletionCreateParams,
    "/v1/chat/completions": chat_create_params.CompletionCreateParams,
    "/v1/responses": response_create_params.ResponseCreateParams,
    "/v1/embeddings": embedding_create_params.EmbeddingCreateParams,
}
MODELS: Final = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/responses": ResponseRequest,
    "/v1/embeddings": EmbeddingRequest,
}


def fields_of_openai(path: str) -> set[str]:
    """The keys of the TypedDict, or of all that a union of them has."""
    kinds = get_args(PARAMS[path]) or (PARAMS[path],)
    return {name for kind in kinds for name in kind.__annotations__}


def documented() -> dict[str, dict[str, State]]:
    """By path or heading, and by field, what the tables of docs/api.md say."""
    found: dict[str, dict[str, State]] = {}
    rows: dict[str, State] = {}
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("## "):
            rows = found[line.removeprefix("## ").removeprefix("`POST ").removesuffix("`")] = {}
        elif row := re.match(r"\| `(\w+)` \| (\w+) \|", line):
            assert row[2] in STATES, line
            assert row[1] not in rows, line
            rows[row[1]] = row[2]  # type: ignore[assignment]
    return found


ROWS: Final = [(path, name, state) for path in PARAMS for name, state in documented()[path].items()]
MESSAGE_ROWS: Final = documented()["Messages of a chat"]


@pytest.mark.parametrize("path", PARAMS)
def test_no_field_is_missing(path: str) -> None:
    served = set(MODELS[path].model_fields)
    assert documented()[path].keys() == fields_of_openai(path) | served == SAMPLES[path].keys()


@dataclass(frozen=True)
class Probe:
    """A server over a scripted engine, for all rows."""

    http: httpx2.Client
    engine: FakeEngine

    def observe(self, path: str, body: dict[str, Any], echo: str | None = None) -> tuple[Any, ...]:
        """What came of a request: status, field at fault, and what engine and client saw but for ids and times.

        echo: a key of the answer that is left out, where it only repeats what was asked.
        """
        self.engine.requests.clear()
        answer = self.http.post(path, json=body)
        # What runs in the background gets there after the answer.
        assert eventually(lambda: bool(self.engine.requests) or answer.status_code >= 400)
        seen = [(request.prompt.tolist(), request.params) for request in self.engine.requests]
        text = re.sub(r'"(id|item_id|created|created_at|completed_at)":("[^"]*"|[0-9.]+)', r'"\1":0', answer.text)
        if echo is not None:
            text = re.sub(rf'"{echo}":("[^"]*"|\w+|\{{[^{{}}]*\}})', "", text)
        error = answer.json()["error"] if answer.status_code >= 400 else {}
        return answer.status_code, error.get("param"), answer.headers["content-type"], text, seen

    def sample(self, path: str, name: str) -> Any:
        """A value of the field that asks for something."""
        found = SAMPLES[path][name]
        return self.http.post(path, json=BASES[path]).json()["id"] if found is A_STORED_ID else found


@pytest.fixture(scope="module")
def probe() -> Iterator[Probe]:
    """Its chat template reads all that a template may read."""
    engine = FakeEngine()
    server = AppServer(engine, byte_tokenizer(template=TEMPLATE))
    with httpx2.Client(base_url=server.url, timeout=10) as http:
        yield Probe(http, engine)
    server.stop()
    engine.stop()


@pytest.mark.parametrize(("path", "name", "state"), ROWS)
def test_row(probe: Probe, path: str, name: str, state: State) -> None:
    base = BASES[path] | NEEDS.get((path, name), {})
    echo = name if state == "ignored" else None
    before = probe.observe(path, base, echo)
    after = probe.observe(path, base | {name: probe.sample(path, name)}, echo)
    check_state(state, name, before, after)
    if name not in base:
        assert probe.observe(path, base | {name: None}, echo) == before


def check_state(state: State, param: str, before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    assert before[0] == 200, before
    match state:
        case "works":
            assert after[0] == 200, after
            assert after != before
        case "ignored":
            assert after == before
        case "refused":
            status, at_fault, *_ = after
            assert (status, at_fault == param or at_fault.startswith(f"{param}.")) == (400, True)


def test_no_field_of_a_message_is_missing() -> None:
    kinds = get_args(ChatCompletionMessageParam)
    assert MESSAGE_ROWS.keys() == {name for kind in kinds for name in kind.__annotations__}
    assert MESSAGE_ROWS.keys() == MESSAGE_SAMPLES.keys()


@pytest.mark.parametrize("name", MESSAGE_ROWS)
def test_message_row(probe: Probe, name: str) -> None:
    path = "/v1/chat/completions"
    without, sample = MESSAGE_SAMPLES[name]
    before, after = (
        probe.observe(path, {**BASES[path], "messages": [message]})
        for message in (without, {**without, name: sample})
    )
    check_state(MESSAGE_ROWS[name], f"messages.0.{name}", before, after)


@pytest.mark.parametrize("path", MODELS)
def test_a_field_of_no_table_is_refused(probe: Probe, path: str) -> None:
    status, param, *_ = probe.observe(path, BASES[path] | {"no_such_field": 1})
    assert (status, param) == (400, "no_such_field")
