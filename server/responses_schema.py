"""What `POST /v1/responses` may say: which fields work, which change nothing, which are refused."""

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import ConfigDict, Field, SkipValidation

from remuda.engine.errors import InvalidRequestError
from remuda.engine.grammar import Grammar
from remuda.engine.sampling_params import MAX_LOGPROBS, MAX_NEW_TOKENS, SamplingParams
from remuda.server.first_error import ClosedModel, at_most
from remuda.server.param_names import renamed
from remuda.server.responses_input_schema import INPUT_SCHEMA
from remuda.server.responses_tools import parse_response_tools, text_grammar
from remuda.server.schemas import GenerationRequest
from remuda.server.structured import requested_grammar
from remuda.server.tool_parsers import CALL_FORMATS, DEFAULT_PARSER, CallFormat
from remuda.server.tools import ToolSet

# Without effect on the answer.
_HARMLESS: Final = frozenset({"prompt_cache_options"})
# Known to OpenAI's API and not served, with the values that ask for nothing.
_NEUTRAL_VALUES: Final[dict[str, tuple[Any, ...]]] = {
    "access_programs": ({},),
    "background_options": ({},),
    "context_management": ([],),
    "conversation": (),
    "image": ({},),
    "moderation": (),
    "prompt": (),
}
_LOGPROBS: Final = "message.output_text.logprobs"
# The others belong to items that this server never makes.
Include = Literal[
    "message.output_text.logprobs",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
]
_MAX_METADATA: Final = 16
_MAX_METADATA_KEY_CHARS: Final = 64
_MAX_METADATA_VALUE_CHARS: Final = 512


class TextConfig(ClosedModel):
    """How the answer is to be written."""

    # Taken apart by responses_tools.py.
    format: SkipValidation[dict[str, Any] | None] = None
    verbosity: Literal["medium"] | None = None


class Reasoning(ClosedModel):
    """The model has no reasoning of its own: what asks for none, or for a summary of none, is accepted."""

    effort: Literal["none"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: Literal["standard"] | None = None


def _declare(schema: dict[str, Any]) -> None:
    """Tell OpenAPI of the fields that are no attributes; others there are none."""
    for name in sorted(_HARMLESS):
        schema["properties"][name] = {"description": "Accepted and ignored."}
    for name, values in sorted(_NEUTRAL_VALUES.items()):
        neutral = {"enum": [*values, None], "description": "Not served; these values ask for nothing."}
        schema["properties"][name] = neutral
    schema["additionalProperties"] = False


class ResponseRequest(GenerationRequest):
    """`POST /v1/responses`. Beside OpenAI's fields, the sampling extras of the other endpoints work here too."""

    model_config = ConfigDict(json_schema_extra=_declare)

    # As for chat completions: an open end needs a bound.
    DEFAULT_MAX_TOKENS: ClassVar[int] = 1024

    # Taken apart by responses_input.parse_input.
    input: SkipValidation[str | list[dict[str, Any]]] = Field(json_schema_extra=INPUT_SCHEMA)
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, json_schema_extra={"minimum": 1, "maximum": MAX_NEW_TOKENS})
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    metadata: Annotated[dict[str, str], at_most(_MAX_METADATA)] | None = None
    include: list[Include] | None = Field(None, fail_fast=True)
    top_logprobs: int | None = Field(None, json_schema_extra={"minimum": 0, "maximum": MAX_LOGPROBS})
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    # Taken apart by responses_tools.py.
    tools: SkipValidation[list[dict[str, Any]] | None] = None
    tool_choice: SkipValidation[str | dict[str, Any] | None] = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="Either is honoured: a recurrent model has no context length to cut to."
    )
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    n: int | None = Field(None, json_schema_extra={"minimum": 1, "maximum": 1})
    prompt_logprobs: None = Field(None, description="Of completions and chat completions alone.")
    return_token_ids: None = Field(None, description="Of completions and chat completions alone.")
    max_tokens: None = Field(None, description="Called max_output_tokens here.")
    response_format: None = Field(None, description="Called text.format here.")

    @property
    def has_logprobs(self) -> bool:
        """Log-probabilities are asked for."""
        return _LOGPROBS in (self.include or ())

    @property
    def text_format(self) -> dict[str, Any] | None:
        """The shape that the text is to have."""
        return None if self.text is None else self.text.format

    def tool_set(self) -> ToolSet | None:
        """The tools that may be called. Raises InvalidRequestError."""
        return parse_response_tools(self.tools, self.tool_choice, self.parallel_tool_calls)

    def check_fields(self) -> None:
        """Raise InvalidRequestError for a field that would change the answer and is not served."""
        for name, value in (self.model_extra or {}).items():
            if name in _HARMLESS or (name in _NEUTRAL_VALUES and value is None):
                continue
            if name not in _NEUTRAL_VALUES:
                raise InvalidRequestError(f"unknown field {name[:100]!r}", param=name[:100])
            if value not in _NEUTRAL_VALUES[name]:
                raise InvalidRequestError(f"{name} is not supported by this server", param=name)
        if self.n not in (None, 1):
            raise InvalidRequestError("n must be 1: a response has one answer", param="n")
        self._check_stream_options()
        self._check_background()
        self._check_metadata()

    def to_params(
        self, tools: ToolSet | None = None, call_format: CallFormat = CALL_FORMATS[DEFAULT_PARSER]
    ) -> SamplingParams:
        """The engine's parameters. Raises InvalidRequestError for what cannot be honoured.

        tools, call_format: which calls must be made, and how they are written.
        """
        self.check_fields()
        if self.max_output_tokens is not None and self.max_output_tokens < 1:
            message = f"max_output_tokens must be at least 1, not {self.max_output_tokens}"
            raise InvalidRequestError(message[:200], param="max_output_tokens")
        max_tokens = self.DEFAULT_MAX_TOKENS if self.max_output_tokens is None else self.max_output_tokens
        answer = self._grammar()
        with renamed("max_tokens", "max_output_tokens"):
            return self.sampling_params(
                max_tokens=max_tokens,
                logprobs=self._num_logprobs(),
                grammar=answer if tools is None else tools.grammar(call_format, answer),
            )

    def _grammar(self) -> Grammar | None:
        """The shape of the text, by OpenAI's field or one of vLLM's."""
        grammar, other = text_grammar(self.text_format), requested_grammar(vars(self))
        if grammar is not None and other is not None:
            raise InvalidRequestError(f"{other.param} cannot be combined with text.format", param=other.param)
        return grammar or other

    def _num_logprobs(self) -> int | None:
        num_top = self.top_logprobs or 0
        if not 0 <= num_top <= MAX_LOGPROBS:
            raise InvalidRequestError(f"top_logprobs must be in [0, {MAX_LOGPROBS}]", param="top_logprobs")
        if num_top and not self.has_logprobs:
            raise InvalidRequestError(f"top_logprobs needs include to name {_LOGPROBS}", param="top_logprobs")
        return num_top if self.has_logprobs else None

    def _check_stream_options(self) -> None:
        if self.stream_options is None:
            return
        if not self.stream:
            raise InvalidRequestError("stream_options needs stream to be true", param="stream_options")
        # Usage comes with the last event of every stream, so it may as well be asked for.
        for name in sorted(self.stream_options.model_fields_set - {"include_obfuscation", "include_usage"}):
            raise InvalidRequestError(
                f"stream_options.{name} is not supported here", param=f"stream_options.{name}"
            )

    def _check_background(self) -> None:
        if not self.background:
            return
        if self.store is False:
            raise InvalidRequestError("background needs store: its answer is found there", param="background")
        if self.stream:
            message = "background cannot be streamed by this server; retrieve the response instead"
            raise InvalidRequestError(message, param="background")

    def _check_metadata(self) -> None:
        for key, value in (self.metadata or {}).items():
            if len(key) > _MAX_METADATA_KEY_CHARS or len(value) > _MAX_METADATA_VALUE_CHARS:
                raise InvalidRequestError(
                    f"metadata: keys may have {_MAX_METADATA_KEY_CHARS} characters, values "
                    f"{_MAX_METADATA_VALUE_CHARS}; at {key[:_MAX_METADATA_KEY_CHARS]!r} there are more",
                    param="metadata",
                )
