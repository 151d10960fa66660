"""Every request that the clients make: its path, its body, and how its answer is read. Sends nothing.

`fields` are further fields of the request, such as `max_tokens`, `temperature`, `top_k` or `seed`; they go out
as they are, but for those that are None.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import msgspec

from remuda.clients.answers import (
    UNREADABLE,
    ChatChunk,
    ChatCompletion,
    Completion,
    CompletionChunk,
    Embeddings,
    Text,
    Tokens,
)
from remuda.clients.errors import BadAnswerError, InvalidArgumentError
from remuda.clients.responses import DeletedResponse, InputItems, Response, ResponseEvent
from remuda.clients.server_state import Health, Metrics, Model, Models, ServerInfo, Version, parse_metrics
from remuda.clients.streams import EventReader, chat_reader, completion_reader, response_reader

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
# Of the API's form, as objects or as structs such as an answer's `message`.
Messages = Sequence[Mapping[str, Any] | msgspec.Struct]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One HTTP request. is_probe: 503 is an answer, too, and nothing is sent again."""

    method: str = "GET"
    path: str
    body: bytes | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    is_probe: bool = False


@dataclass(frozen=True)
class Call(Generic[T_co]):
    """A request with one answer. parse: of its body; raises BadAnswerError."""

    request: Request
    parse: Callable[[bytes], T_co]


@dataclass(frozen=True)
class StreamCall(Generic[T_co]):
    """A request with a stream of events for an answer. make_reader: for one stream."""

    request: Request
    make_reader: Callable[[], EventReader[T_co]]


def completions(*, model: str, prompt: Prompt, **fields: Any) -> Call[Completion]:
    """Continue a prompt: text, token ids, or a list of either."""
    return _post("/v1/completions", Completion, {"model": model, "prompt": prompt, **fields})


def stream_completions(*, model: str, prompt: Prompt, **fields: Any) -> StreamCall[CompletionChunk]:
    """Continue a prompt, as it is written."""
    request = _stream_request("/v1/completions", {"model": model, "prompt": prompt, **fields})
    num_choices = _num_prompts(prompt) * (fields.get("n") or 1)
    return StreamCall(request, lambda: completion_reader(num_choices))


def chat(*, model: str, messages: Messages, **fields: Any) -> Call[ChatCompletion]:
    """Answer a conversation."""
    return _post("/v1/chat/completions", ChatCompletion, {"model": model, "messages": messages, **fields})


def stream_chat(*, model: str, messages: Messages, **fields: Any) -> StreamCall[ChatChunk]:
    """Answer a conversation, as it is written."""
    request = _stream_request("/v1/chat/completions", {"model": model, "messages": messages, **fields})
    num_choices = fields.get("n") or 1
    return StreamCall(request, lambda: chat_reader(num_choices))


def respond(*, model: str, input: str | Messages, **fields: Any) -> Call[Response]:
    """Create a response, whole or, with `background`, to be retrieved later."""
    return _post("/v1/responses", Response, {"model": model, "input": input, **fields})


def stream_respond(*, model: str, input: str | Messages, **fields: Any) -> StreamCall[ResponseEvent]:
    """Create a response, as it is written."""
    request = _stream_request("/v1/responses", {"model": model, "input": input, **fields})
    return StreamCall(request, response_reader)


def retrieve_response(response_id: str) -> Call[Response]:
    """A stored response, as it stands."""
    return _get(_response_path(response_id), Response)


def delete_response(response_id: str) -> Call[DeletedResponse]:
    """Forget a stored response; one that runs in the background ends."""
    path = _response_path(response_id)
    return Call(Request(method="DELETE", path=path), _parser(path, DeletedResponse))


def cancel_response(response_id: str) -> Call[Response]:
    """End a response that runs in the background."""
    return _post(_response_path(response_id) + "/cancel", Response, None)


def response_input_items(
    response_id: str, *, limit: int | None = None, order: str | None = None, after: str | None = None
) -> Call[InputItems]:
    """A page of the items of a response's own input. order: asc or desc. after: the id before the page."""
    given = {"limit": limit, "order": order, "after": after}
    params = {name: str(value) for name, value in given.items() if value is not None}
    path = _response_path(response_id) + "/input_items"
    return Call(Request(path=path, params=params), _parser(path, InputItems))


def embeddings(*, model: str, input: Prompt, **fields: Any) -> Call[Embeddings]:
    """Vectors of texts or token ids."""
    return _post("/v1/embeddings", Embeddings, {"model": model, "input": input, **fields})


def tokenize(prompt: str | None = None, *, messages: Messages | None = None, **fields: Any) -> Call[Tokens]:
    """Token ids of a prompt, or of a conversation."""
    return _post("/tokenize", Tokens, {"prompt": prompt, "messages": messages, **fields})


def detokenize(tokens: Sequence[int], **fields: Any) -> Call[str]:
    """The text of token ids."""
    call = _post("/detokenize", Text, {"tokens": tokens, **fields})
    return Call(call.request, lambda body: call.parse(body).prompt)


def models() -> Call[list[Model]]:
    """Every name that requests may give as `model`."""
    call = _get("/v1/models", Models)
    return Call(call.request, lambda body: call.parse(body).data)


def model(model_id: str) -> Call[Model]:
    """One model; its name may have slashes."""
    return _get(f"/v1/models/{quote(model_id, safe='/')}", Model)


def info() -> Call[ServerInfo]:
    """The model, and what a sequence of it costs. Remuda's own."""
    return _get("/info", ServerInfo)


def health() -> Call[Health]:
    """Whether the process lives. Sent once: a 503 with a status is an answer."""
    return Call(Request(path="/health", is_probe=True), _parser("/health", Health))


def ready() -> Call[Health]:
    """Whether requests would be served now. Sent once: a 503 with a status is an answer."""
    return Call(Request(path="/ready", is_probe=True), _parser("/ready", Health))


def version() -> Call[str]:
    """The version of the server."""
    call = _get("/version", Version)
    return Call(call.request, lambda body: call.parse(body).version)


def metrics() -> Call[Metrics]:
    """Every metric, as it stands."""
    return Call(Request(path="/metrics"), parse_metrics)


def _get(path: str, answer: type[T]) -> Call[T]:
    return Call(Request(path=path), _parser(path, answer))


def _post(path: str, answer: type[T], fields: Mapping[str, Any] | None) -> Call[T]:
    if fields is not None and fields.get("stream"):
        raise InvalidArgumentError("stream: call the method whose name begins with `stream_`")
    body = None if fields is None else _encode(path, fields)
    return Call(Request(method="POST", path=path, body=body), _parser(path, answer))


def _stream_request(path: str, fields: Mapping[str, Any]) -> Request:
    return Request(method="POST", path=path, body=_encode(path, {**fields, "stream": True}))


def _encode(path: str, fields: Mapping[str, Any]) -> bytes:
    for name, value in fields.items():
        # It would be written as null, which asks for the default.
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidArgumentError(f"{name} must be a finite number, not {value}")
    try:
        return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{path}: the request cannot be written as JSON: {error}") from None


def _parser(path: str, answer: type[T]) -> Callable[[bytes], T]:
    def parse(body: bytes) -> T:
        try:
            return msgspec.json.decode(body, type=answer)
        except UNREADABLE as error:
            raise BadAnswerError(f"{path}: the answer is not what the API says: {error}") from None

    return parse


def _response_path(response_id: str) -> str:
    if not response_id:
        raise InvalidArgumentError("response_id must not be empty")
    return f"/v1/responses/{quote(response_id, safe='')}"


def _num_prompts(prompt: Prompt) -> int:
    """Token ids alone are one prompt."""
    return 1 if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int) else len(prompt)
