"""Responses, embeddings and tokens from the real server on the demo model, through the official client."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import httpx2
import numpy as np
import openai
import pydantic
import pytest

from tests.server.conftest import ServerProcess
from tests.server.fakes import eventually

pytestmark = pytest.mark.e2e

QUESTION = "Hi! How are you today?"
TEXTS = ["Once upon a time", "The dog", "A little girl named Lily " * 40, "Once upon a time"]


@pytest.fixture
def client(demo: ServerProcess) -> Iterator[openai.OpenAI]:
    with demo.openai() as found:
        yield found


@pytest.fixture
def http(demo: ServerProcess) -> Iterator[httpx2.Client]:
    with demo.http() as found:
        yield found


def respond(client: openai.OpenAI, **fields: Any) -> Any:
    given: dict[str, Any] = {"model": "demo", "input": QUESTION, "temperature": 0, "max_output_tokens": 24}
    return client.responses.create(**{**given, **fields})


def embed(client: openai.OpenAI, texts: Any, **extra: Any) -> np.ndarray:
    answer = client.embeddings.create(model="demo", input=texts, extra_body=extra)
    return np.array([entry.embedding for entry in answer.data])


def test_a_response_says_what_the_chat_says(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": QUESTION}], max_tokens=24, temperature=0
    )
    answer = respond(client)
    assert answer.output_text == chat.choices[0].message.content
    assert chat.usage is not None
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    *deltas, last = respond(client, stream=True)
    text = "".join(event.delta for event in deltas if event.type == "response.output_text.delta")
    assert text == last.response.output_text == answer.output_text


def test_a_conversation_is_the_one_that_is_written_out(client: openai.OpenAI) -> None:
    first = respond(client)
    second = respond(client, input="Tell me more.", previous_response_id=first.id)
    written: list[Any] = [
        {"role": "user", "content": QUESTION},
        *(item.model_dump() for item in first.output),
        {"role": "user", "content": "Tell me more."},
    ]
    assert respond(client, input=written, store=False).output_text == second.output_text
    assert second.usage.input_tokens > first.usage.input_tokens


class Pet(pydantic.BaseModel):
    """What a small model, left alone, would not write."""

    name: Annotated[str, pydantic.Field(max_length=12)]
    kind: Literal["cat", "dog"]
    age: Annotated[int, pydantic.Field(ge=0, le=30)]


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_shape_is_enforced(client: openai.OpenAI, seed: int, is_stream: bool) -> None:
    fields: dict[str, Any] = {"text_format": Pet, "temperature": 1.5, "extra_body": {"seed": seed}}
    fields |= {"model": "demo", "input": QUESTION, "max_output_tokens": 300}
    if is_stream:
        with client.responses.stream(**fields) as stream:
            answer = stream.get_final_response()
    else:
        answer = client.responses.parse(**fields)
    assert answer.status == "completed"
    assert isinstance(answer.output_parsed, Pet)


def test_a_tool_is_called_and_answers(client: openai.OpenAI) -> None:
    tools = [openai.pydantic_function_tool(Pet, name="adopt")]
    fields: dict[str, Any] = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    with client.responses.stream(model="demo", input=QUESTION, extra_body={"seed": 1}, **fields) as stream:
        deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        first = stream.get_final_response()
    (call,) = first.output
    assert call.type == "function_call"
    assert isinstance(call.parsed_arguments, Pet)
    assert "".join(deltas) == call.arguments
    assert Pet(**json.loads(call.arguments)) == call.parsed_arguments
    outputs: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "done"}]
    again: Any = [tool.model_dump(exclude_none=True) for tool in first.tools]
    second = respond(client, input=outputs, previous_response_id=first.id, tools=again)
    assert second.output[0].type == "message"
    assert second.usage.input_tokens > first.usage.input_tokens  # type: ignore[union-attr]


def test_cancelling_in_the_background_frees_the_slot(client: openai.OpenAI, http: httpx2.Client) -> None:
    extra = {"ignore_eos": True}
    runs = [respond(client, background=True, max_output_tokens=10**8, extra_body=extra) for _ in range(4)]
    assert eventually(lambda: client.responses.retrieve(runs[0].id).status == "in_progress")
    for run in runs:
        assert client.responses.cancel(run.id).status == "cancelled"
    # Every slot was taken; this needs all of them again.
    done = client.completions.create(model="demo", prompt="Once", max_tokens=2, n=4)
    assert len(done.choices) == 4
    assert http.get("/health").json()["num_requests"] == 0


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_do_not_depend_on_their_company(client: openai.OpenAI, pooling: str) -> None:
    together = embed(client, TEXTS, pooling=pooling)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-6)
    for text, vector in zip(TEXTS, together, strict=True):
        assert embed(client, text, pooling=pooling)[0] == pytest.approx(vector, abs=1e-5)
    assert together[0] == pytest.approx(together[3], abs=1e-5)
    assert not np.allclose(together[0], together[1], atol=0.05)
    raw = embed(client, TEXTS[0], pooling=pooling, normalize=False)[0]
    assert raw / np.linalg.norm(raw) == pytest.approx(together[0], abs=1e-5)


def test_token_ids_give_the_vector_of_their_text(client: openai.OpenAI, http: httpx2.Client) -> None:
    tokens = http.post("/tokenize", json={"model": "demo", "prompt": TEXTS[0]}).json()["tokens"]
    answer = client.embeddings.create(model="demo", input=[tokens])
    assert answer.usage.prompt_tokens == len(tokens)
    assert answer.data[0].embedding == pytest.approx(embed(client, TEXTS[0])[0], abs=1e-5)
    assert http.post("/detokenize", json={"tokens": tokens}).json()["prompt"].endswith(TEXTS[0])
