"""`POST /tokenize` and `/detokenize`, with vLLM's fields: what a prompt is to the model, without asking it."""

from typing import Any, Final

import msgspec
from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from remuda.engine.errors import InvalidRequestError
from remuda.engine.sampling_params import MAX_NEW_TOKENS
from remuda.server.first_error import ClosedModel
from remuda.server.json_body import StrictRoute
from remuda.server.logprobs import token_string
from remuda.server.prompts import OFF_LOOP_CHARS, encode_chat, off_loop
from remuda.server.schemas import GENERATION_RESPONSES, ChatMessage
from remuda.server.state import ServerState
from remuda.server.template_options import TemplateOptions

# A recurrent model has no context length; clients that want one get the largest number of tokens there is.
_MAX_MODEL_LEN: Final = MAX_NEW_TOKENS
# Tokens from which an answer is written off the event loop.
_OFF_LOOP_TOKENS: Final = 4096
_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    status: GENERATION_RESPONSES[status] for status in (400, 404, 408, 413, 500, 503)
}


# For the OpenAPI schema: one of the two is there, and not null.
_ONE_OF: Final[list[Any]] = [
    {"required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
    {"required": ["messages"], "properties": {"messages": {"type": "array", "minItems": 1}}},
]


class TokenizeRequest(ClosedModel):
    """A text as `prompt`, or a conversation as `messages`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": _ONE_OF})

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, fail_fast=True)
    add_special_tokens: bool | None = Field(
        None, description="Begin with the BOS token; by default for a prompt, not for messages."
    )
    add_generation_prompt: bool | None = Field(None, description="End messages with the assistant's turn.")
    return_token_strs: bool | None = None


class TokenizeAnswer(BaseModel):
    """`max_model_len` is the largest count of tokens: there is no context length."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(ClosedModel):
    """Token ids."""

    model: str | None = None
    # Looked at by hand: pydantic would report one error for each id.
    tokens: SkipValidation[list[int]] = Field(json_schema_extra={"items": {"type": "integer", "minimum": 0}})


class DetokenizeAnswer(BaseModel):
    """Their text, special tokens included."""

    prompt: str


def tokenize_routes(state: ServerState) -> APIRouter:
    """The routes, over `state`."""
    router = APIRouter(route_class=StrictRoute, tags=["tokens"])

    @router.post("/tokenize", responses={**_RESPONSES, 200: {"model": TokenizeAnswer}})
    async def tokenize(request: TokenizeRequest) -> Response:
        """Token ids of a prompt or of a conversation."""
        _check_model(state, request.model)
        tokens = await _encode(request, state)

        def answer() -> bytes:
            wants_strings = bool(request.return_token_strs)
            strings = [token_string(state.tokenizer, token) for token in tokens] if wants_strings else None
            return msgspec.json.encode(
                {
                    "count": len(tokens),
                    "max_model_len": _MAX_MODEL_LEN,
                    "tokens": tokens,
                    "token_strs": strings,
                }
            )

        body = await off_loop(answer) if len(tokens) > _OFF_LOOP_TOKENS else answer()
        return Response(body, media_type="application/json")

    @router.post("/detokenize", responses={**_RESPONSES, 200: {"model": DetokenizeAnswer}})
    async def detokenize(request: DetokenizeRequest) -> Response:
        """The text of token ids."""
        _check_model(state, request.model)
        tokens = _token_ids(request.tokens, state.ready_engine().vocab_size)

        def answer() -> bytes:
            return msgspec.json.encode({"prompt": state.tokenizer.decode(tokens, skip_special_tokens=False)})

        body = await off_loop(answer) if len(tokens) > _OFF_LOOP_TOKENS else answer()
        return Response(body, media_type="application/json")

    return router


def _check_model(state: ServerState, name: str | None) -> None:
    if name is not None:
        state.check_model(name)


async def _encode(request: TokenizeRequest, state: ServerState) -> list[int]:
    tokenizer = state.tokenizer
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequestError("give either prompt or messages", param="prompt")
    if request.messages is not None:
        options = TemplateOptions(add_generation_prompt=request.add_generation_prompt is not False)
        prompt = await encode_chat(request.messages, state.require_chat_template(), tokenizer, options)
        bos = tokenizer.bos_token_id
        if request.add_special_tokens and bos is not None and prompt.token_ids[0] != bos:
            return [bos, *prompt.token_ids]
        return prompt.token_ids
    text = request.prompt or ""
    add_bos = tokenizer.add_bos and request.add_special_tokens is not False
    if len(text) > OFF_LOOP_CHARS:
        return await off_loop(lambda: tokenizer.encode(text, add_bos=add_bos))
    return tokenizer.encode(text, add_bos=add_bos)


def _token_ids(tokens: object, vocab_size: int) -> list[int]:
    if not isinstance(tokens, list) or not set(map(type, tokens)) <= {int}:
        raise InvalidRequestError("tokens must be a list of token ids", param="tokens")
    if tokens and not 0 <= min(tokens) <= max(tokens) < vocab_size:
        raise InvalidRequestError(f"tokens: an id is outside the vocabulary [0, {vocab_size})", param="tokens")
    return tokens
