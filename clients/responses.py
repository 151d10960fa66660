"""What servers answer at `/v1/responses`, whole or as stream events."""

from typing import Any

import msgspec


class ContentPart(msgspec.Struct, frozen=True):
    """A part of a message; `text` is None where it is no text."""

    type: str = ""
    text: str | None = None
    logprobs: list[Any] | None = None


class OutputItem(msgspec.Struct, frozen=True):
    """A message, with `content`, or a function call, with `name`, `arguments` and `call_id`."""

    type: str
    id: str | None = None
    status: str | None = None
    role: str | None = None
    content: list[ContentPart] | None = None
    name: str | None = None
    arguments: str | None = None
    call_id: str | None = None

    @property
    def text(self) -> str:
        """Of all its parts."""
        return "".join(part.text or "" for part in self.content or ())


class ResponseUsage(msgspec.Struct, frozen=True):
    """Token counts."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0


class ResponseProblem(msgspec.Struct, frozen=True):
    """Why a response failed."""

    message: str = ""
    code: str | None = None


class Response(msgspec.Struct, frozen=True):
    """A response as it stands: queued, in_progress, completed, incomplete, failed or cancelled."""

    id: str
    status: str | None = None
    output: list[OutputItem] = []
    usage: ResponseUsage | None = None
    error: ResponseProblem | None = None
    incomplete_details: dict[str, Any] | None = None
    created_at: float = 0
    model: str = ""
    instructions: Any = None
    previous_response_id: str | None = None
    metadata: dict[str, Any] | None = None
    background: bool | None = None
    store: bool | None = None

    @property
    def text(self) -> str:
        """Of all its messages."""
        return "".join(item.text for item in self.output if item.type == "message")


class ResponseEvent(msgspec.Struct, frozen=True):
    """An event of a stream; `type` says which fields it has."""

    type: str | None = None
    sequence_number: int | None = None
    delta: Any = None
    text: str | None = None
    arguments: str | None = None
    item_id: str | None = None
    output_index: int | None = None
    content_index: int | None = None
    item: OutputItem | None = None
    part: ContentPart | None = None
    response: Response | None = None
    message: str | None = None
    code: str | None = None
    param: str | None = None
    error: Any = None


class DeletedResponse(msgspec.Struct, frozen=True):
    """A response that the server has forgotten."""

    id: str
    deleted: bool


class InputItems(msgspec.Struct, frozen=True):
    """One page of a response's own input; `last_id` is the `after` of the next, where `has_more`."""

    data: list[dict[str, Any]]
    has_more: bool = False
    first_id: str | None = None
    last_id: str | None = None
