"""How `/v1/chat/completions` writes answers in which there may be calls of tools. Finds none of them itself."""

import secrets
from typing import Any

from remuda.server.chat_format import ChatFormat
from remuda.server.generation import Choice, Generation
from remuda.server.prompts import AnyTokenizer
from remuda.server.schemas import ChatCompletionRequest
from remuda.server.tool_calls import CallArguments, CallStart, TextPiece, ToolEvent
from remuda.server.tool_parsers import ToolCallParser
from remuda.server.tools import ToolSet


class ToolChatFormat(ChatFormat):
    """A `ChatFormat` that gives calls as `tool_calls`."""

    def __init__(
        self,
        response_id: str,
        created: int,
        request: ChatCompletionRequest,
        num_choices: int,
        tokenizer: AnyTokenizer,
        system_fingerprint: str,
        *,
        tools: ToolSet,
        parser: str,
    ) -> None:
        """parser: a key of CALL_FORMATS."""
        super().__init__(response_id, created, request, num_choices, tokenizer, system_fingerprint)
        self._parsers = [make_parser(parser, tools) for _ in range(num_choices)]

    def delta(self, choice: Choice, text: str) -> bytes:
        """What new text brought, with the log-probabilities and ids that have gathered; they may wait for it."""
        deltas = [_delta(one) for one in self._parsers[choice.index].push(text)]
        if not deltas and choice.finish_reason is not None and (choice.logprobs or choice.token_ids):
            deltas = [{"content": ""}]
        return b"".join(self._delta(choice, delta) for delta in deltas)

    def finish(self, choice: Choice) -> bytes:
        """What was held back, then an empty delta with the finish reason."""
        parser = self._parsers[choice.index]
        events = parser.finish(is_cut=choice.finish_reason == "length")
        held = b"".join(self._delta(choice, _delta(one)) for one in events)
        return held + self._event(choice, self._chunk(choice.index, {}, None, finish_reason(choice, parser)))

    def whole(self, generation: Generation, texts: list[str]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        body = super().whole(generation, texts)
        for choice, described, text in zip(generation.choices, body["choices"], texts, strict=True):
            parser = self._parsers[choice.index]
            is_cut = choice.finish_reason == "length"
            content, calls = gather([*parser.push(text), *parser.finish(is_cut=is_cut)])
            if calls:
                described["message"] |= {"content": content or None, "tool_calls": calls}
                described["finish_reason"] = finish_reason(choice, parser)
            elif is_cut:
                # Without the beginning of a call that has no name yet.
                described["message"]["content"] = content
        return body


def make_parser(name: str, tools: ToolSet) -> ToolCallParser:
    """A parser for one answer to a request with these tools; name: a key of CALL_FORMATS."""
    return ToolCallParser(name, tools.callable_names, None if tools.is_parallel else 1)


def finish_reason(choice: Choice, parser: ToolCallParser) -> str | None:
    """Of a choice whose text the parser has seen to its end."""
    return "tool_calls" if choice.finish_reason == "stop" and parser.num_calls else choice.finish_reason


def gather(events: list[ToolEvent]) -> tuple[str, list[dict[str, Any]]]:
    """The text of an answer, and its `tool_calls`."""
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for one in events:
        match one:
            case TextPiece():
                texts.append(one.text)
            case CallStart():
                calls.append(_call(one.name))
            case CallArguments():
                calls[one.index]["function"]["arguments"] += one.text
    return "".join(texts), calls


def _call(name: str) -> dict[str, Any]:
    call_id = f"call_{secrets.token_hex(12)}"
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}


def _delta(one: ToolEvent) -> dict[str, Any]:
    match one:
        case TextPiece():
            return {"content": one.text}
        case CallStart():
            return {"tool_calls": [{"index": one.index, **_call(one.name)}]}
        case CallArguments():
            return {"tool_calls": [{"index": one.index, "function": {"arguments": one.text}}]}
