"""LangChain's own integration tests of chat models, over ChatOpenAI. This only says against what they run."""

import os
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestRemuda(ChatModelIntegrationTests):
    """Everything that a text model can do is claimed."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        """The client."""
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """Greedy and short: the demo model tells stories, and is not asked for sense."""
        return {
            "model": "demo",
            "base_url": os.environ["REMUDA_URL"],
            "api_key": "none",
            "temperature": 0,
            "max_tokens": 200,
            "max_retries": 0,
            "stream_usage": True,
        }

    @property
    def model_override_value(self) -> str:
        """Another name of the model."""
        return "stories"

    @property
    def supports_json_mode(self) -> bool:
        """By response_format."""
        return True
