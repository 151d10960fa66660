"""What requests may say: the OpenAI fields and vLLM's extras that are served.

Types are checked here; ranges by SamplingParams, where the offline engine checks them too, so that they
are only told to OpenAPI here.
"""

import re
from typing import Annotated, Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from remuda.engine.errors import InvalidRequestError
from remuda.engine.sampling_params import (
    INT64_MAX,
    INT64_MIN,
    MAX_CHOICES,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_NEW_TOKENS,
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    SamplingParams,
)
from remuda.server.first_error import ClosedModel, at_most
from remuda.server.structured import requested_grammar
from remuda.server.template_options import ALLOWED_VARIABLES, TemplateOptions, template_options
from remuda.server.tool_parsers import CALL_FORMATS, DEFAULT_PARSER, CallFormat
from remuda.server.tools import ToolSet, parse_tools
from remuda.server.unserved_fields import check_unserved, declare_unserved

# For the OpenAPI schema: what a generating endpoint answers besides 200, which openapi.py tells.
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


def _within(low: float, high: float, description: str | None = None) -> Any:
    """A field that may be left out or null, with its range for OpenAPI."""
    return Field(None, description=description, json_schema_extra={"minimum": low, "maximum": high})


class StreamOptions(ClosedModel):
    """Options of a stream; `include_obfuscation` is accepted and never done.

    continuous_usage_stats: with `include_usage`, every event has the usage of its choice so far.
    """

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(BaseModel):
    """The fields that completions and chat completions share. Null means the default."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra=declare_unserved)

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    n: int | None = _within(1, MAX_CHOICES)
    temperature: float | None = _within(0, 2)
    top_p: float | None = Field(None, json_schema_extra={"exclusiveMinimum": 0, "maximum": 1})
    top_k: int | None = _within(-1, INT64_MAX, "Draw from so many of the likeliest tokens; 0 or -1: all.")
    min_p: float | None = _within(0, 1, "Leave out tokens below this share of the likeliest.")
    repetition_penalty: float | None = _within(0.01, 100, "Above 1: discourage tokens seen so far.")
    presence_penalty: float | None = _within(-2, 2)
    frequency_penalty: float | None = _within(-2, 2)
    logit_bias: Annotated[dict[str, float], at_most(MAX_LOGIT_BIAS)] | None = Field(
        None,
        json_schema_extra={
            "propertyNames": {"pattern": f"^({_TOKEN_ID.pattern})$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": MAX_LOGIT_BIAS,
        },
    )
    seed: int | None = _within(INT64_MIN, INT64_MAX)
    stop: SkipValidation[str | list[str] | None] = Field(
        None,
        json_schema_extra={
            "minLength": 1,
            "maxLength": MAX_STOP_STRING_CHARS,
            "maxItems": MAX_STOP_STRINGS,
            "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_STRING_CHARS},
        },
    )
    stop_token_ids: Annotated[list[int], at_most(MAX_STOP_TOKEN_IDS)] | None = Field(
        None, json_schema_extra={"maxItems": MAX_STOP_TOKEN_IDS, "items": {"type": "integer", "minimum": 0}}
    )
    include_stop_str_in_output: bool | None = Field(None, description="Show what ended the text at its end.")
    ignore_eos: bool | None = None
    min_tokens: int | None = _within(0, MAX_NEW_TOKENS, "At most max_tokens.")
    max_tokens: int | None = _within(0, MAX_NEW_TOKENS)
    skip_special_tokens: bool | None = None
    prompt_logprobs: int | None = _within(0, MAX_LOGPROBS, "Not in a stream.")
    return_token_ids: bool | None = Field(None, description="Give the ids of prompt and answer too.")
    priority: int | None = _within(INT64_MIN, INT64_MAX, "Who waits with a lower one is served first.")
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

    @property
    def has_plain_deltas(self) -> bool:
        """But for log-probabilities, the events of a stream between the first and the last have text alone."""
        return not (self.return_token_ids or self.has_continuous_usage)

    @property
    def has_continuous_usage(self) -> bool:
        """Each event of the stream is to have the usage of its choice so far."""
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def check_fields(self) -> None:
        """Raise InvalidRequestError for a field that would change the answer and is not served."""
        check_unserved(self.model_extra or {})
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options needs stream to be true", param="stream_options")
        if self.prompt_logprobs is not None and self.stream:
            message = "prompt_logprobs is not available in a stream; completions have echo with logprobs"
            raise InvalidRequestError(message, param="prompt_logprobs")

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
            "include_stop_str_in_output": self.include_stop_str_in_output,
            "ignore_eos": self.ignore_eos,
            "min_tokens": self.min_tokens,
            "skip_special_tokens": self.skip_special_tokens,
            "prompt_logprobs": self.prompt_logprobs,
            "priority": self.priority,
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
    logprobs: int | None = _within(0, MAX_LOGPROBS)
    best_of: int | None = _within(1, MAX_CHOICES, "The same as n.")
    add_special_tokens: bool | None = Field(None, description="Begin text prompts with the BOS token.")

    def to_params(self) -> SamplingParams:
        """The engine's parameters. Raises InvalidRequestError for what cannot be honoured."""
        self.check_fields()
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequestError("best_of must equal n", param="best_of")
        of_prompt = [self.logprobs if self.echo else None, self.prompt_logprobs]
        return self.sampling_params(
            max_tokens=self.DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens,
            logprobs=self.logprobs,
            prompt_logprobs=max((k for k in of_prompt if k is not None), default=None),
        )


class ChatMessage(BaseModel):
    """One message. Its content is text, or parts of `{"type": "text", "text": …}`."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: str = Field(json_schema_extra={"enum": ["system", "developer", "user", "assistant"]})
    content: SkipValidation[str | list[dict[str, str]] | None] = None


class ChatCompletionRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    # A recurrent model has no context length to stop at, so an open end needs a bound of its own.
    DEFAULT_MAX_TOKENS: ClassVar[int] = 1024

    messages: list[ChatMessage] = Field(fail_fast=True, json_schema_extra={"minItems": 1})
    logprobs: bool | None = None
    top_logprobs: int | None = _within(0, MAX_LOGPROBS, "Only with `logprobs`.")
    max_completion_tokens: int | None = _within(0, MAX_NEW_TOKENS, "Another name of max_tokens.")
    add_generation_prompt: bool | None = Field(None, description="Begin the assistant's message; by default true.")
    continue_final_message: bool | None = Field(None, description="Go on with the last message's text.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description=f"Variables of the chat template, of these: {', '.join(ALLOWED_VARIABLES)}."
    )
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

    def template_options(self) -> TemplateOptions:
        """How the prompt is to be rendered. Raises InvalidRequestError for what cannot be honoured."""
        return template_options(self.add_generation_prompt, self.continue_final_message, self.chat_template_kwargs)

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
