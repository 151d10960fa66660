"""How `/v1/responses` writes its one choice: the response object, and the events of its stream."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from remuda.engine.errors import InvalidRequestError, QueueFullError, RemudaError
from remuda.server.generation import Choice, Generation
from remuda.server.logprobs import described
from remuda.server.prompts import AnyTokenizer
from remuda.server.responses_items import Entry, EventWriter, HeldLogprobs, OutputItems
from remuda.server.responses_schema import ResponseRequest
from remuda.server.responses_tools import echoed_choice, echoed_format, echoed_tools
from remuda.server.tool_calls import CallArguments, CallStart, TextPiece, ToolEvent
from remuda.server.tool_parsers import ToolCallParser


class ResponsesFormat:
    """The `StreamFormat` of responses. `response` is the response object as it stands.

    An answer that is not streamed is written the same way, and its events are thrown away.
    """

    def __init__(
        self,
        response_id: str,
        request: ResponseRequest,
        tokenizer: AnyTokenizer,
        parser: ToolCallParser | None = None,
        *,
        is_stored: bool,
    ) -> None:
        """parser: finds calls in the answer; without one there are none."""
        self._request = request
        self._tokenizer = tokenizer
        self._parser = parser
        self._settings = _settings(request, is_stored=is_stored)
        self._head = {"id": response_id, "object": "response", "created_at": int(time.time())}
        self.response = self._describe("queued" if request.background else "in_progress")
        self._events = EventWriter()
        self._output = OutputItems(self._events)
        self._held_logprobs = HeldLogprobs()

    def beginning(self) -> bytes:
        """The events before anything is generated."""
        return self._events.write("response.created", response=self.response) + self._events.write(
            "response.in_progress", response=self.response
        )

    def opening(self, choice: Choice, generation: Generation) -> Iterable[bytes]:
        """Nothing: an item begins once it is known whether it is a message or a call."""
        return ()

    def delta(self, choice: Choice, text: str) -> bytes:
        """What new text brought, with the log-probabilities that have gathered."""
        logprobs = self._take_logprobs(choice)
        if self._parser is None:
            return self._output.add_text(text, logprobs)
        if logprobs:
            self._held_logprobs.hold(len(text), logprobs)
        return self._write(self._parser.push(text))

    def finish(self, choice: Choice) -> bytes:
        """What was held back, then the end of the last item."""
        is_cut = choice.finish_reason == "length"
        held = b"" if self._parser is None else self._write(self._parser.finish(is_cut=is_cut))
        left = self._held_logprobs.clear()
        if not self._output.items or (left and not self._output.is_in_call):
            held += self._output.add_text("", left)
        held += self._output.close("incomplete" if is_cut and not self._is_behind_call() else "completed")
        self._end("incomplete" if is_cut else "completed")
        return held

    def closing(self, usage: dict[str, Any]) -> bytes:
        """The whole response."""
        response = self.whole(usage)
        return self._events.write(f"response.{response['status']}", response=response)

    def add(self, choice: Choice, text: str) -> None:
        """Take new text of an answer that is not streamed, and its end."""
        self.delta(choice, text)
        if choice.finish_reason is not None:
            self.finish(choice)

    def whole(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The body of an answer that has been added."""
        self.response["usage"] = _usage(usage)
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
        return self._events.write("response.failed", response=self.response)

    def _write(self, found: Sequence[ToolEvent]) -> bytes:
        """What the parser found. Calls have no log-probabilities."""
        written = []
        for one in found:
            match one:
                case TextPiece():
                    logprobs = self._held_logprobs.take(len(one.text), is_behind_call=self._output.is_in_call)
                    written.append(self._output.add_text(one.text, logprobs))
                case CallStart():
                    self._held_logprobs.clear()
                    written.append(self._output.start_call(one.name))
                case CallArguments():
                    self._held_logprobs.clear()
                    written.append(self._output.add_arguments(one.text))
        return b"".join(written)

    def _is_behind_call(self) -> bool:
        """The open item is a call whose object has ended, so that a cut does not concern it."""
        return (
            self._output.is_in_call
            and self._parser is not None
            and (self._parser.num_calls >= self._output.num_calls)
        )

    def _describe(self, status: str) -> dict[str, Any]:
        nothing: dict[str, Any] = {
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            "completed_at": None,
        }
        return {**self._head, "status": status, **self._settings, **nothing}

    def _end(self, status: str) -> None:
        """Put the answer into the response."""
        self.response = self._describe(status)
        self.response["output"] = self._output.items
        if status == "completed":
            self.response["completed_at"] = int(time.time())
        else:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}

    def _take_logprobs(self, choice: Choice) -> list[Entry]:
        if not choice.logprobs:
            return []
        num_top = self._request.top_logprobs or 0
        entries = [Entry.of(one) for one in described(choice.logprobs, num_top, self._tokenizer)]
        choice.logprobs = []
        return entries


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
        "text": {"format": echoed_format(request.text_format), "verbosity": "medium"},
        "tool_choice": echoed_choice(request.tool_choice),
        "tools": echoed_tools(request.tools),
        "top_logprobs": request.top_logprobs or 0,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "truncation": request.truncation or "disabled",
        "user": request.user,
    }


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
