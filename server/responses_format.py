"""How `/v1/responses` writes its one choice: the response object, and the events of its stream."""

import time
from typing import Any, Final

import msgspec

from remuda.engine.errors import InvalidRequestError, QueueFullError, RemudaError
from remuda.server.generation import Choice, Generation
from remuda.server.logprobs import chat_logprobs
from remuda.server.prompts import AnyTokenizer
from remuda.server.responses_input import new_id
from remuda.server.responses_schema import ResponseRequest

_DELTA: Final = "response.output_text.delta"


class ResponsesFormat:
    """The `ResponseFormat` of responses. `response` is the response object as it stands."""

    def __init__(
        self, response_id: str, request: ResponseRequest, tokenizer: AnyTokenizer, *, is_stored: bool
    ) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._settings = _settings(request, is_stored=is_stored)
        self._head = {"id": response_id, "object": "response", "created_at": int(time.time())}
        self.response = self._describe("queued" if request.background else "in_progress")
        self._place: Final = {"item_id": new_id("msg"), "output_index": 0, "content_index": 0}
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._num_events = 0
        # Most events of a stream differ in two places alone.
        opened = msgspec.json.encode({"type": _DELTA, **self._place, "logprobs": []})[:-1]
        self._before_delta = f"event: {_DELTA}\ndata: ".encode() + opened + b',"delta":'
        self._encode = msgspec.json.Encoder().encode

    def beginning(self) -> bytes:
        """The events before anything is generated."""
        return self._event("response.created", response=self.response) + self._event(
            "response.in_progress", response=self.response
        )

    def opening(self, choice: Choice, generation: Generation) -> bytes:
        """The item and its one part."""
        item = self._message("in_progress", [])
        return self._event("response.output_item.added", output_index=0, item=item) + self._event(
            "response.content_part.added", **self._place, part=_output_text("", [])
        )

    def delta(self, choice: Choice, text: str) -> bytes:
        """New text, with the log-probabilities that have gathered."""
        self._texts.append(text)
        logprobs = self._take_logprobs(choice)
        if logprobs:
            return self._event(_DELTA, **self._place, delta=text, logprobs=_without_bytes(logprobs))
        return self._before_delta + self._encode(text) + b',"sequence_number":%d}\n\n' % self._next_number()

    def finish(self, choice: Choice) -> bytes:
        """The ends of text, part and item."""
        self._end("".join(self._texts), choice)
        (item,) = self.response["output"]
        (part,) = item["content"]
        return (
            self._event(
                "response.output_text.done",
                **self._place,
                text=part["text"],
                logprobs=_without_bytes(part["logprobs"]),
            )
            + self._event("response.content_part.done", **self._place, part=part)
            + self._event("response.output_item.done", output_index=0, item=item)
        )

    def closing(self, usage: dict[str, Any]) -> bytes:
        """The whole response."""
        self.response["usage"] = _usage(usage)
        return self._event(f"response.{self.response['status']}", response=self.response)

    def whole(self, generation: Generation, texts: list[str]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        (choice,), (text,) = generation.choices, texts
        self._take_logprobs(choice)
        self._end(text, choice)
        self.response["usage"] = _usage(generation.usage())
        return self.response

    def start(self) -> None:
        """A response in the background has left the queue."""
        self.response = self._describe("in_progress")

    def cancel(self) -> None:
        """The response has ended without an answer, because nobody wants it any more."""
        self.response = self._describe("cancelled")

    def fail(self, error: RemudaError) -> bytes:
        """The response has ended with an error; the event that says so."""
        self.response = {**self._describe("failed"), "error": {"code": _error_code(error), "message": str(error)}}
        return self._event("response.failed", response=self.response)

    def _describe(self, status: str) -> dict[str, Any]:
        nothing: dict[str, Any] = {
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            "completed_at": None,
        }
        return {**self._head, "status": status, **self._settings, **nothing}

    def _end(self, text: str, choice: Choice) -> None:
        """Put the answer into the response."""
        status = "incomplete" if choice.finish_reason == "length" else "completed"
        self.response = self._describe(status)
        self.response["output"] = [self._message(status, [_output_text(text, self._logprobs)])]
        if status == "completed":
            self.response["completed_at"] = int(time.time())
        else:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._place["item_id"],
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _take_logprobs(self, choice: Choice) -> list[dict[str, Any]]:
        if not choice.logprobs:
            return []
        num_top = self._request.top_logprobs or 0
        entries: list[dict[str, Any]] = chat_logprobs(choice.logprobs, num_top, self._tokenizer)["content"]
        choice.logprobs = []
        self._logprobs += entries
        return entries

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = msgspec.json.encode({"type": kind, **fields, "sequence_number": self._next_number()})
        return f"event: {kind}\ndata: ".encode() + data + b"\n\n"

    def _next_number(self) -> int:
        self._num_events += 1
        return self._num_events - 1


def _settings(request: ResponseRequest, *, is_stored: bool) -> dict[str, Any]:
    """The part of the response object that says what was asked, with the defaults filled in."""
    return {
        "background": bool(request.background),
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "model": request.model,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": is_stored,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": request.tool_choice or "auto",
        "tools": request.tools or [],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "truncation": request.truncation or "disabled",
        "user": request.user,
    }


def _output_text(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _without_bytes(logprobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As OpenAI's events have them; the bytes of tokens are in the item."""
    keys = ("token", "logprob")
    return [
        {key: entry[key] for key in keys}
        | {"top_logprobs": [{key: top[key] for key in keys} for top in entry["top_logprobs"]]}
        for entry in logprobs
    ]


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    """Of the other endpoints' usage."""
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": usage["completion_tokens_details"],
        "total_tokens": usage["total_tokens"],
    }


def _error_code(error: RemudaError) -> str:
    """One of the codes that OpenAI's clients know."""
    match error:
        case QueueFullError():
            return "rate_limit_exceeded"
        case InvalidRequestError():
            return "invalid_prompt"
    return "server_error"
