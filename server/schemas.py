"""What requests may say: the OpenAI fields and vLLM's extras served, and what becomes of the rest.

Types are checked here; ranges by SamplingParams, where the offline engine checks them too.
"""

import re
from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from remuda.engine.errors import InvalidRequestError
from remuda.engine.sampling_params import MAX_LOGPROBS, SamplingParams
from remuda.server.structured import requested_grammar
from remuda.server.tool_parsers import CALL_FORMATS, DEFAULT_PARSER, CallFormat
from remuda.server.tools import ToolSet, parse_tools

# Accepted and without effect on the answer.
_HARMLESS: Final = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
# Known to OpenAI's API and not served, with the values that ask for nothing.
_NEUTRAL_VALUES: Final[dict[str, tuple[Any, ...]]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "reasoning_effort": ("none",),
    "suffix": ("",),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# For the OpenAPI schema: what a generating endpoint answers besides 200.
GENERATION_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    400: {"description": "The request cannot be honoured; `error.param` names the field."},
    404: {"description": "No model has this name."},
    408: {"description": "The body did not arrive in time."},
    413: {"description": "The body is too large."},
    429: {"description": "Too many requests wait; see `retry-after`."},
    500: {"description": "An internal error."},
    503: {"description": "The engine is not ready; see `retry-after`."},
}
_TOKEN_ID: Final = re.compile(r"0|[1-9][0-9]{0,17}")


class StreamOptions(BaseModel):
    """Options of a stream; `include_obfuscation` is accepted and never done."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class GenerationRequest(BaseModel):
    """The fields that completions and chat completions share. Null means the default."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, description="Draw from so many of the likeliest tokens; 0 or -1: all.")
    min_p: float | None = Field(None, description="Leave out tokens below this share of the likeliest.")
    repetition_penalty: float | None = Field(None, description="Above 1: discourage tokens seen so far.")
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: SkipValidation[str | list[str] | None] = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    skip_special_tokens: bool | None = None
    # Taken apart by structured.py: pydantic would report one error for each branch.
    response_format: SkipValidation[dict[str, Any] | None] = None
    structured_outputs: SkipValidation[dict[str, Any] | None] = Field(
        None, description="One of json (a schema), regex, choice, grammar (Lark or GBNF), json_object."
    )
    guided_json: SkipValidation[dict[str, Any] | str | None] = None
    guided_regex: SkipValidation[str | None] = None
    guided_choice: SkipValidation[list[str] | None] = None
    guided_grammar: SkipValidation[str | None] = None

    @property
    def include_usage(self) -> bool:
        """A usage chunk is to end the stream."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_fields(self) -> None:
        """Raise InvalidRequestError for a field that would change the answer and is not served."""
        for name, value in (self.model_extra or {}).items():
            if name in _HARMLESS or (name in _NEUTRAL_VALUES and value is None):
                continue
            if name not in _NEUTRAL_VALUES:
                raise InvalidRequestError(f"unknown field {name[:100]!r}", param=name[:100])
            if value not in _NEUTRAL_VALUES[name]:
                raise InvalidRequestError(f"{name} is not supported by this server", param=name)
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options needs stream to be true", param="stream_options")

    def sampling_params(self, **family: Any) -> SamplingParams:
        """The engine's parameters. `family`: those that depend on the endpoint."""
        fields = {
            "n": self.n,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": _token_biases(self.logit_bias),
            "seed": self.seed,
            "stop": _stop_strings(self.stop),
            "stop_token_ids": None if self.stop_token_ids is None else tuple(self.stop_token_ids),
            "ignore_eos": self.ignore_eos,
            "min_tokens": self.min_tokens,
            "skip_special_tokens": self.skip_special_tokens,
            "grammar": requested_grammar(vars(self)),
            **family,
        }
        given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
        return SamplingParams(**given)


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    DEFAULT_MAX_TOKENS: ClassVar[int] = 16

    # Taken apart by prompts.parse_prompts: pydantic would report one error for each id and branch.
    prompt: SkipValidation[str | list[str] | list[int] | list[list[int]] | None] = None
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    prompt_logprobs: int | None = None
    add_special_tokens: bool | None = Field(None, description="Begin text prompts with the BOS token.")

    def to_params(self) -> SamplingParams:
        """The engine's parameters. Raises InvalidRequestError for what cannot be honoured."""
        self.check_fields()
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequestError(f"best_of must equal n, not {self.best_of}", param="best_of")
        if self.prompt_logprobs is not None and self.stream:
            message = "prompt_logprobs is not available in a stream; use echo with logprobs"
            raise InvalidRequestError(message, param="prompt_logprobs")
        of_prompt = [self.logprobs if self.echo else None, self.prompt_logprobs]
        return self.sampling_params(
            max_tokens=self.DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens,
            logprobs=self.logprobs,
            prompt_logprobs=max((k for k in of_prompt if k is not None), default=None),
        )


class ChatMessage(BaseModel):
    """One message. Its content is text, or parts of `{"type": "text", "text": …}`."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: str
    content: SkipValidation[str | list[dict[str, str]] | None] = None


class ChatCompletionRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    # A recurrent model has no context length to stop at, so an open end needs a bound of its own.
    DEFAULT_MAX_TOKENS: ClassVar[int] = 1024

    messages: list[ChatMessage]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    # Taken apart by tools.py.
    tools: SkipValidation[list[dict[str, Any]] | None] = None
    tool_choice: SkipValidation[str | dict[str, Any] | None] = None
    parallel_tool_calls: bool | None = None

    def tool_set(self) -> ToolSet | None:
        """The tools that may be called. Raises InvalidRequestError."""
        return parse_tools(self.tools, self.tool_choice, self.parallel_tool_calls)

    def to_params(
        self, tools: ToolSet | None = None, call_format: CallFormat = CALL_FORMATS[DEFAULT_PARSER]
    ) -> SamplingParams:
        """The engine's parameters. Raises InvalidRequestError for what cannot be honoured.

        tools, call_format: which calls must be made, and how they are written.
        """
        self.check_fields()
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MAX_LOGPROBS:
            message = f"top_logprobs must be in [0, {MAX_LOGPROBS}]"
            raise InvalidRequestError(message, param="top_logprobs")
        answer = requested_grammar(vars(self))
        return self.sampling_params(
            max_tokens=self._max_tokens(),
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            grammar=answer if tools is None else tools.grammar(call_format, answer),
        )

    def _max_tokens(self) -> int:
        given = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(given) > 1:
            message = f"max_completion_tokens must equal max_tokens, {self.max_tokens}, or stand alone"
            raise InvalidRequestError(message, param="max_completion_tokens")
        return next((value for value in given if value is not None), self.DEFAULT_MAX_TOKENS)


def _stop_strings(stop: object) -> tuple[str, ...]:
    strings = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, list) or not all(isinstance(text, str) for text in strings):
        raise InvalidRequestError("stop must be a string or a list of strings", param="stop")
    return tuple(strings)


def _token_biases(biases: dict[str, float] | None) -> dict[int, float]:
    for key in biases or ():
        if not _TOKEN_ID.fullmatch(key):
            message = f"logit_bias: {key[:40]!r} is not a token id"
            raise InvalidRequestError(message, param="logit_bias")
    return {int(key): value for key, value in (biases or {}).items()}
