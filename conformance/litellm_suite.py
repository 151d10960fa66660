"""LiteLLM against the server at REMUDA_URL, by its providers for OpenAI-compatible servers."""

import asyncio
import json
import os
from typing import Any

import litellm
import pytest

MESSAGES = [{"role": "user", "content": "Hi! How are you today?"}]
SERVER: dict[str, Any] = {"api_base": os.environ["REMUDA_URL"], "api_key": "none", "max_retries": 0}
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
PROVIDERS = pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])


def chat(provider: str = "openai", **fields: Any) -> Any:
    given = {"model": f"{provider}/demo", "messages": MESSAGES, "temperature": 0, "max_tokens": 32}
    return litellm.completion(**{**given, **SERVER, **fields})


@PROVIDERS
def test_a_chat(provider: str) -> None:
    answer = chat(provider)
    assert answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@PROVIDERS
def test_a_stream_is_the_whole(provider: str) -> None:
    chunks = list(chat(provider, stream=True, stream_options={"include_usage": True}))
    rebuilt = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    whole = chat(provider)
    assert rebuilt.choices[0].message.content == whole.choices[0].message.content
    assert rebuilt.choices[0].finish_reason == whole.choices[0].finish_reason
    assert rebuilt.usage.completion_tokens == whole.usage.completion_tokens


def test_an_asynchronous_stream() -> None:
    async def stream() -> str:
        chunks = await litellm.acompletion(
            model="openai/demo", messages=MESSAGES, temperature=0, max_tokens=32, stream=True, **SERVER
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    assert asyncio.run(stream()) == chat().choices[0].message.content


def test_extra_fields_and_several_choices() -> None:
    answer = chat("hosted_vllm", temperature=1, n=2, seed=1, extra_body={"top_k": 5, "min_p": 0.1})
    assert [choice.index for choice in answer.choices] == [0, 1]


def test_a_completion_streamed_and_whole() -> None:
    fields = {"model": "text-completion-openai/demo", "prompt": "Once upon", "temperature": 0, "max_tokens": 16}
    whole = litellm.text_completion(**fields, **SERVER).choices[0].text
    streamed = litellm.text_completion(**fields, stream=True, **SERVER)
    assert whole == "".join(chunk.choices[0].text or "" for chunk in streamed) != ""


@pytest.mark.parametrize(
    ("fields", "kind"),
    [({"model": "openai/nobody"}, litellm.NotFoundError), ({"temperature": 9}, litellm.BadRequestError)],
)
def test_errors(fields: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        chat(**fields)


@PROVIDERS
def test_a_json_schema(provider: str) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": CITY}}
    answer = chat(provider, response_format=shape)
    assert json.loads(answer.choices[0].message.content)["city"] in ("Paris", "Rome")


@PROVIDERS
def test_a_required_tool_and_its_result(provider: str) -> None:
    # The demo model would go on calling for ever.
    fields = {"tools": [TOOL], "parallel_tool_calls": False, "max_tokens": 64}
    choice = chat(provider, tool_choice="required", **fields).choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    assert chat(provider, messages=[*MESSAGES, choice.message, result], **fields).choices


def test_a_required_tool_in_a_stream() -> None:
    fields = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 64}
    rebuilt = litellm.stream_chunk_builder(list(chat(stream=True, **fields)), messages=MESSAGES)
    (call,) = rebuilt.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_a_response_streamed_and_whole() -> None:
    fields = {"model": "openai/demo", "input": "Hi!", "temperature": 0, "max_output_tokens": 16, **SERVER}
    whole = litellm.responses(**fields)
    assert whole.output_text
    events = litellm.responses(**fields, stream=True)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings(encoding: str) -> None:
    answer = litellm.embedding(model="openai/demo", input=["Hi", "Bye"], encoding_format=encoding, **SERVER)
    assert [entry["index"] for entry in answer.data] == [0, 1]
    assert answer.data[0]["embedding"] != answer.data[1]["embedding"]
    assert answer.usage.prompt_tokens > 0
