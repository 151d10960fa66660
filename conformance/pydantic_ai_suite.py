"""pydantic-ai against the server at REMUDA_URL: text, streams, typed output, tools, responses, embeddings."""

import asyncio
import os
from typing import Literal

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, Embedder, ModelHTTPError, NativeOutput, ToolOutput
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

PROMPT = "Hi! How are you today?"


class Mood(BaseModel):
    """What the typed answers are."""

    mood: Literal["good", "bad"]


# The demo model would go on calling for ever.
SETTINGS = {"temperature": 0, "max_tokens": 64, "parallel_tool_calls": False}


def provider() -> OpenAIProvider:
    return OpenAIProvider(base_url=os.environ["REMUDA_URL"], api_key="none")


def model(name: str = "demo") -> OpenAIChatModel:
    return OpenAIChatModel(name, provider=provider())


def agent(**options: object) -> Agent:
    return Agent(model(), model_settings=SETTINGS, retries=0, **options)


def test_text_and_usage() -> None:
    result = agent().run_sync(PROMPT)
    assert result.output
    usage = result.usage
    assert (usage.input_tokens > 0, usage.output_tokens > 0, usage.requests) == (True, True, 1)


def test_a_conversation() -> None:
    first = agent(instructions="Be kind.").run_sync(PROMPT)
    second = agent(instructions="Be kind.").run_sync("And now?", message_history=first.all_messages())
    assert second.output
    assert second.usage.input_tokens > first.usage.input_tokens


def test_a_stream_is_the_whole() -> None:
    async def stream() -> tuple[str, int]:
        async with agent().run_stream(PROMPT) as result:
            text = "".join([delta async for delta in result.stream_text(delta=True, debounce_by=None)])
            return text, result.usage.output_tokens

    whole = agent().run_sync(PROMPT)
    assert asyncio.run(stream()) == (whole.output, whole.usage.output_tokens)


def test_an_error_has_its_status_and_body() -> None:
    with pytest.raises(ModelHTTPError) as caught:
        Agent(model("nobody")).run_sync(PROMPT)
    assert caught.value.status_code == 404
    assert caught.value.body["code"] == "model_not_found"


def test_output_by_a_tool() -> None:
    assert agent(output_type=ToolOutput(Mood)).run_sync(PROMPT).output.mood in ("good", "bad")


def test_output_by_a_schema() -> None:
    assert agent(output_type=NativeOutput(Mood)).run_sync(PROMPT).output.mood in ("good", "bad")


def test_output_by_a_tool_in_a_stream() -> None:
    async def stream() -> Mood:
        async with agent(output_type=ToolOutput(Mood)).run_stream(PROMPT) as result:
            return await result.get_output()

    assert asyncio.run(stream()).mood in ("good", "bad")


def test_calls_and_results_are_sent_back() -> None:
    typed = agent(output_type=ToolOutput(Mood))
    first = typed.run_sync(PROMPT)
    second = typed.run_sync("And now?", message_history=first.all_messages())
    assert second.output.mood in ("good", "bad")
    assert second.usage.input_tokens > first.usage.input_tokens


def test_responses() -> None:
    responses = Agent(OpenAIResponsesModel("demo", provider=provider()), model_settings=SETTINGS, retries=0)
    first = responses.run_sync(PROMPT)
    second = responses.run_sync("And now?", message_history=first.all_messages())
    assert first.output
    assert second.usage.input_tokens > first.usage.input_tokens


def test_embeddings() -> None:
    embedder = Embedder(OpenAIEmbeddingModel("demo", provider=provider()))
    result = embedder.embed_documents_sync(["Hi", "Bye"])
    assert [len(vector) for vector in result.embeddings] == [len(result.embeddings[0])] * 2
    assert result.usage.input_tokens > 0
