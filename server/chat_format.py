"""How `/v1/chat/completions` writes its choices: whole, or as stream events. Decides nothing else."""

from typing import Any, Final

from remuda.server.generation import Choice, Generation
from remuda.server.logprobs import chat_logprobs
from remuda.server.prompts import AnyTokenizer
from remuda.server.schemas import ChatCompletionRequest
from remuda.server.sse import EventTemplate, event


class ChatFormat:
    """The `ResponseFormat` of chat completions."""

    def __init__(
        self,
        response_id: str,
        created: int,
        request: ChatCompletionRequest,
        num_choices: int,
        tokenizer: AnyTokenizer,
    ) -> None:
        self._head: Final = {"id": response_id, "created": created, "model": request.model}
        self._request = request
        self._tokenizer = tokenizer
        self._template = EventTemplate(
            [self._chunk(i, {"content": EventTemplate.hole()}, None, None) for i in range(num_choices)]
            if request.stream
            else []
        )

    def opening(self, choice: Choice, generation: Generation) -> bytes:
        """The role."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return event(self._chunk(choice.index, delta, None, None))

    def delta(self, choice: Choice, text: str) -> bytes:
        """New text, with the log-probabilities that have gathered."""
        if not choice.logprobs:
            return self._template.fill(choice.index, text)
        logprobs = self._logprobs(choice)
        choice.logprobs = []
        return event(self._chunk(choice.index, {"content": text}, logprobs, None))

    def finish(self, choice: Choice) -> bytes:
        """An empty delta with the finish reason."""
        return event(self._chunk(choice.index, {}, None, choice.finish_reason))

    def closing(self, usage: dict[str, Any]) -> bytes:
        """The usage, where it was asked for."""
        if not self._request.include_usage:
            return b""
        return event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage})

    def whole(self, generation: Generation, texts: list[str]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choices = [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": self._logprobs(choice),
                "finish_reason": choice.finish_reason,
            }
            for choice, text in zip(generation.choices, texts, strict=True)
        ]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": generation.usage()}

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if self._request.include_usage else {}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice], **usage}

    def _logprobs(self, choice: Choice) -> dict[str, Any] | None:
        if not self._request.logprobs:
            return None
        return chat_logprobs(choice.logprobs, self._request.top_logprobs or 0, self._tokenizer)
