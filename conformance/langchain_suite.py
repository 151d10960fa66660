"""LangChain's own integration tests of chat models and embeddings. This only says against what they run."""

import os
from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests

SERVER: dict[str, Any] = {
    "model": "demo",
    "base_url": os.environ["REMUDA_URL"],
    "api_key": "none",
    "max_retries": 0,
}


class TestChat(ChatModelIntegrationTests):
    """ChatOpenAI over chat completions. Everything that a text model can do is claimed."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        """The client."""
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """Greedy and short: the demo model tells stories, and is not asked for sense.

        It would not stop at one call, and repeats itself where nothing holds it back.
        """
        return {
            **SERVER,
            "temperature": 0,
            "max_tokens": 400,
            "stream_usage": True,
            "model_kwargs": {"parallel_tool_calls": False},
            "extra_body": {"frequency_penalty": 0.5},
        }

    @property
    def model_override_value(self) -> str:
        """Another name of the model."""
        return "stories"

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        """Objects with the listed keys alone: the demo model would go on adding some."""
        return {"strict": True}

    @property
    def supports_json_mode(self) -> bool:
        """By response_format."""
        return True


class TestResponses(TestChat):
    """The same over `/v1/responses`."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """As for chats."""
        return {**super().chat_model_params, "use_responses_api": True}


class TestEmbeddings(EmbeddingsIntegrationTests):
    """OpenAIEmbeddings; it sends texts, as it does not know our tokenizer."""

    @property
    def embeddings_class(self) -> type[Embeddings]:
        """The client."""
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        """No more than the server."""
        return {**SERVER, "check_embedding_ctx_length": False}
