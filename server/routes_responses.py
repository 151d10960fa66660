"""`/v1/responses`: OpenAI's Responses API over the same path from text to tokens as chat completions."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response

from remuda.engine.errors import InvalidRequestError
from remuda.server.errors import ApiError
from remuda.server.generation import Generation
from remuda.server.json_body import StrictRoute
from remuda.server.param_names import renamed
from remuda.server.prompts import Prompt, encode_chat, off_loop
from remuda.server.request_record import RequestRecord
from remuda.server.response_store import StoredResponse
from remuda.server.responses_format import ResponsesFormat
from remuda.server.responses_input import Item, new_id, parse_input, to_messages
from remuda.server.responses_run import BackgroundRuns, Recorder, StreamRecorded, WholeRecorded
from remuda.server.responses_schema import ResponseRequest
from remuda.server.schemas import GENERATION_RESPONSES
from remuda.server.state import ServerState
from remuda.server.tool_format import make_parser
from remuda.server.tool_parsers import CALL_FORMATS
from remuda.server.tools import FunctionTool

_STORED_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    400: {"description": "The request cannot be honoured; `error.param` names the field."},
    404: {"description": "No response has this id; it may have been deleted, or have made room for others."},
}


def response_routes(state: ServerState) -> APIRouter:
    """The routes, over `state`."""
    router = APIRouter(tags=["responses"])
    router.include_router(_creating(state))
    router.include_router(_stored(state))
    return router


def _creating(state: ServerState) -> APIRouter:
    router = APIRouter(route_class=StrictRoute)
    runs = BackgroundRuns(state.link, state.record)
    state.num_background_runs = runs.num_running

    @router.post("/v1/responses", responses=GENERATION_RESPONSES)
    async def create_response(request: ResponseRequest, http: Request) -> Response:
        """Answer an input, or the next turn of a conversation."""
        state.check_model(request.model)
        tools = request.tool_set()
        parser = state.call_parser(tools)
        params = request.to_params() if parser is None else request.to_params(tools, CALL_FORMATS[parser])
        is_stored = _is_stored(request, state)
        items = parse_input(request.input)
        params.check_vocabulary(state.ready_engine().vocab_size)
        params = await state.grammars.checked(params, http.is_disconnected)
        prompt = await _encode(request, items, () if tools is None else tools.offered, state)

        generation = Generation([prompt], params, state.tokenizer)
        response_id = new_id("resp")
        finder = None if tools is None or parser is None else make_parser(parser, tools)
        fmt = ResponsesFormat(response_id, request, state.tokenizer, finder, is_stored=is_stored)
        recorder = Recorder(state.response_store if is_stored else None, fmt, items)
        if request.background:
            queued = msgspec.json.encode(fmt.response)
            await runs.start(response_id, generation, fmt, recorder, RequestRecord.of_background(http.scope))
            return _json(queued)
        answer = StreamRecorded if request.stream else WholeRecorded
        return answer(state.link, response_id, generation, fmt, recorder)

    return router


def _stored(state: ServerState) -> APIRouter:
    router = APIRouter(prefix="/v1/responses/{response_id}")

    async def find(response_id: str) -> StoredResponse:
        found = await state.response_store.get(response_id)
        if found is None:
            raise _not_found(response_id)
        return found

    @router.get("", responses=_STORED_RESPONSES)
    async def retrieve_response(
        response_id: str, stream: Annotated[bool, Query(json_schema_extra={"enum": [False]})] = False
    ) -> Response:
        """A stored response, as it stands. Its events cannot be had again: `stream` must be false."""
        if stream:
            message = "stream is not supported for stored responses; retrieve the response whole"
            raise InvalidRequestError(message, param="stream")
        return _json((await find(response_id)).body)

    @router.delete("", responses=_STORED_RESPONSES)
    async def delete_response(response_id: str) -> dict[str, Any]:
        """Forget a stored response. One that runs in the background ends."""
        if not await state.response_store.delete(response_id):
            raise _not_found(response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @router.post("/cancel", responses=_STORED_RESPONSES)
    async def cancel_response(response_id: str) -> Response:
        """End a response that runs in the background. One that has ended is given as it is."""
        found = await find(response_id)
        if not found.is_background:
            message = "only a response with background can be cancelled; to end another, close its connection"
            raise InvalidRequestError(message, param="response_id")
        if found.is_running:
            cancelled = msgspec.json.encode({**msgspec.json.decode(found.body), "status": "cancelled"})
            await state.response_store.update(msgspec.structs.replace(found, status="cancelled", body=cancelled))
            # It may have ended by itself just before.
            found = await find(response_id)
        return _json(found.body)

    @router.get("/input_items", responses=_STORED_RESPONSES)
    async def list_input_items(
        response_id: str,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> Response:
        """The items of a response's own `input`, without those of earlier turns."""
        items: list[Item] = msgspec.json.decode((await find(response_id)).input_items)
        return _json(msgspec.json.encode(_page(items, limit, is_ascending=order == "asc", after=after)))

    return router


def _is_stored(request: ResponseRequest, state: ServerState) -> bool:
    """Raises InvalidRequestError where storing is asked for, and this server keeps nothing."""
    if state.response_store.is_enabled:
        return request.store is not False
    for field in ("store", "background"):
        if getattr(request, field):
            raise InvalidRequestError(f"{field}: this server stores no responses", param=field)
    return False


async def _encode(
    request: ResponseRequest, items: list[Item], tools: Sequence[FunctionTool], state: ServerState
) -> Prompt:
    """The prompt of the whole conversation."""
    earlier = await _earlier_items(request.previous_response_id, state)
    with renamed("messages", "input"):
        template = state.require_chat_template()
        messages = await off_loop(lambda: to_messages(request.instructions, earlier + items))
        return await encode_chat(messages, template, state.tokenizer, tools=tools)


async def _earlier_items(previous_id: str | None, state: ServerState) -> list[Item]:
    """Input and output of the turns before, first things first. Raises InvalidRequestError."""
    field = "previous_response_id"
    if previous_id is None:
        return []
    # What a client could send in one body it may also gather over many turns.
    found = await state.response_store.conversation(previous_id, state.max_body_bytes)
    if found.missing_id is not None:
        message = f"{field}: there is no response {found.missing_id[:80]!r}, or not any more"
        raise InvalidRequestError(message, param=field, code="previous_response_not_found")
    if found.is_too_long:
        message = f"{field}: the conversation takes more than the limit of {state.max_body_bytes} bytes"
        raise InvalidRequestError(message, param=field)
    last = found.turns[-1]
    if not last.is_continuable:
        raise InvalidRequestError(f"{field}: that response has no answer, it is {last.status}", param=field)
    items: list[Item] = []
    for turn in found.turns:
        items += msgspec.json.decode(turn.input_items)
        items += msgspec.json.decode(turn.body)["output"]
    return items


def _page(items: list[Item], limit: int, *, is_ascending: bool, after: str | None) -> dict[str, Any]:
    ordered = items if is_ascending else items[::-1]
    if after is not None:
        places = [place for place, item in enumerate(ordered) if item["id"] == after]
        if not places:
            raise InvalidRequestError(f"after: there is no item {after[:80]!r}", param="after")
        ordered = ordered[places[0] + 1 :]
    data = ordered[:limit]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": "", "last_id": ""}
    return {"object": "list", "data": data, **ends, "has_more": len(ordered) > limit}


def _not_found(response_id: str) -> ApiError:
    message = f"there is no response {response_id[:80]!r}, or not any more"
    return ApiError(404, message, param="response_id", code="response_not_found")


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
