"""What servers answer to completions, chats, embeddings and tokens, whole or as stream events.

Unknown keys are passed over, and keys that some servers leave out have defaults.
"""

import base64
import sys
from array import array
from typing import Any, Final

import msgspec

# What msgspec raises for bytes that are not the JSON that they should be: also for bad UTF-8, and for nesting
# without end.
UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Usage(msgspec.Struct, frozen=True):
    """Token counts of a request, of all its choices together."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class GeneratedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What completions and chats have around their choices, whole and in each event of a stream."""

    id: str = ""
    created: int = 0
    model: str = ""
    usage: Usage | None = None
    system_fingerprint: str | None = None


class CompletionChoice(msgspec.Struct, frozen=True):
    """One continuation; in a stream `text` is what is new of it. The ids are there where they were asked for."""

    text: str = ""
    index: int = 0
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None
    prompt_logprobs: list[Any] | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class Completion(GeneratedAnswer, frozen=True, kw_only=True):
    """The answer of `/v1/completions`."""

    choices: list[CompletionChoice]

    @property
    def text(self) -> str:
        """Of the first choice."""
        return next((choice.text for choice in self.choices if choice.index == 0), "")


class CompletionChunk(GeneratedAnswer, frozen=True, kw_only=True):
    """An event of a stream of `/v1/completions`; the last has the usage, where it was asked for, and no choice."""

    choices: list[CompletionChoice] | None = None
    error: Any = None

    @property
    def text(self) -> str:
        """What is new of the first choice."""
        return next((choice.text for choice in self.choices or () if choice.index == 0), "")

    def pieces(self) -> list[tuple[int, str, str | None]]:
        """Of each choice in it: index, new text, finish reason."""
        return [(choice.index, choice.text, choice.finish_reason) for choice in self.choices or ()]


class FunctionCall(msgspec.Struct, frozen=True):
    """The function of a tool call; in a stream the arguments are what is new of them."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model wants made; in a stream its parts are told by `index`."""

    id: str | None = None
    type: str | None = None
    function: FunctionCall = FunctionCall()
    index: int | None = None


class ChatMessage(msgspec.Struct, frozen=True):
    """An answer, or in a stream what is new of it."""

    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """One answer."""

    message: ChatMessage
    index: int = 0
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None
    token_ids: list[int] | None = None


class ChatCompletion(GeneratedAnswer, frozen=True, kw_only=True):
    """The answer of `/v1/chat/completions`."""

    choices: list[ChatChoice]
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[Any] | None = None

    @property
    def text(self) -> str:
        """Of the first choice."""
        return next((choice.message.content or "" for choice in self.choices if choice.index == 0), "")


class ChatDelta(msgspec.Struct, frozen=True):
    """What an event brings to one answer."""

    delta: ChatMessage = ChatMessage()
    index: int = 0
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None
    token_ids: list[int] | None = None


class ChatChunk(GeneratedAnswer, frozen=True, kw_only=True):
    """An event of a stream of `/v1/chat/completions`; the last has the usage, where it was asked for."""

    choices: list[ChatDelta] | None = None
    prompt_token_ids: list[int] | None = None
    error: Any = None

    @property
    def text(self) -> str:
        """What is new of the first choice."""
        return next((choice.delta.content or "" for choice in self.choices or () if choice.index == 0), "")

    def pieces(self) -> list[tuple[int, str, str | None]]:
        """Of each choice in it: index, new text, finish reason."""
        return [(choice.index, choice.delta.content or "", choice.finish_reason) for choice in self.choices or ()]


class Embedding(msgspec.Struct, frozen=True):
    """One vector, as it was sent: numbers, or base64 of little-endian 32-bit floats."""

    embedding: list[float] | str
    index: int = 0

    @property
    def vector(self) -> list[float]:
        """The numbers."""
        if not isinstance(self.embedding, str):
            return self.embedding
        values = array("f", base64.b64decode(self.embedding))
        if sys.byteorder == "big":
            values.byteswap()
        return values.tolist()


class Embeddings(msgspec.Struct, frozen=True):
    """The answer of `/v1/embeddings`, in the order of the inputs."""

    data: list[Embedding]
    model: str = ""
    usage: Usage | None = None


class Tokens(msgspec.Struct, frozen=True):
    """The answer of `/tokenize`. token_strs: where they were asked for."""

    tokens: list[int]
    count: int
    max_model_len: int | None = None
    token_strs: list[str] | None = None


class Text(msgspec.Struct, frozen=True):
    """The answer of `/detokenize`."""

    prompt: str
