"""The model that is talked to: what its server says of it, and the stream of an answer."""

import re
from dataclasses import dataclass
from typing import Any, Final

from remuda.clients.answers import ChatChunk, CompletionChunk
from remuda.clients.chat.conversation import Conversation
from remuda.clients.client import Client, Stream
from remuda.clients.errors import BadAnswerError, BadRequestError, ClientError, StatusError, UnavailableError
from remuda.clients.server_state import ServerInfo

# Completions end after 16 tokens by default, which is no answer.
_COMPLETION_TOKENS: Final = 256
# The words of Remuda and mistral.rs, of vLLM, and of transformers, which others pass on.
_NO_TEMPLATE: Final = re.compile(
    r"\b(no|must provide a|(does not|doesn't) have a) chat template\b|\bchat[ _]template is not set\b",
    re.IGNORECASE,
)
NO_TEMPLATE_NOTICE: Final = "this model has no chat template: it continues the text so far, by /v1/completions"
AnswerStream = Stream[ChatChunk] | Stream[CompletionChunk]


@dataclass
class Served:
    """info: of `/info`; None where the server has none. has_chat_template: else it continues the transcript."""

    client: Client
    model: str
    info: ServerInfo | None
    has_chat_template: bool

    @property
    def state_bytes(self) -> int | None:
        """Of one conversation, however long it is; None where the server does not say."""
        return None if self.info is None else self.info.slot_bytes

    def ask(self, conversation: Conversation) -> AnswerStream:
        """The answer to the last message."""
        options: dict[str, Any] = {"include_usage": True}
        if self.info is not None:
            # Others may not know it; then tokens are only known at the end.
            options["continuous_usage_stats"] = True
        fields = {**conversation.params, "model": self.model, "stream_options": options}
        if self.has_chat_template:
            return self.client.stream_chat(messages=conversation.chat_messages(), **fields)
        fields.setdefault("max_tokens", _COMPLETION_TOKENS)
        return self.client.stream_completions(prompt=conversation.transcript(), **fields)

    def falls_back(self, error: ClientError | None) -> bool:
        """The error says that there is no chat template, and from now on completions are asked for.

        Never where the server has `/info`, which says whether there is one.
        """
        if self.info is not None or not self.has_chat_template or not isinstance(error, BadRequestError):
            return False
        if _NO_TEMPLATE.search(error.message) is None:
            return False
        self.has_chat_template = False
        return True


def connect(client: Client, model: str | None) -> Served:
    """The model by its name, or the server's first. Raises ClientError."""
    try:
        info = client.info()
    except UnavailableError:
        raise
    except (StatusError, BadAnswerError):
        # Another kind of server.
        info = None
    if model is None:
        model = info.model if info is not None else _first_model(client)
    return Served(client, model, info, info is None or info.has_chat_template)


def _first_model(client: Client) -> str:
    models = client.models()
    if not models:
        raise BadAnswerError(f"{client.url} lists no model; name one with --model")
    return models[0].id
