"""How `/v1/chat/completions` writes its choices: whole, or as stream events. Decides nothing else."""

from collections.abc import Iterable
from typing import Any, Final

from remuda.server.generation import Choice, Generation
from remuda.server.logprobs import chat_logprobs, prompt_logprobs
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
        system_fingerprint: str,
    ) -> None:
        self._head: Final = {
            "id": response_id,
            "created": created,
            "model": request.model,
            "system_fingerprint": system_fingerprint,
        }
        self._request = request
        self._tokenizer = tokenizer
        self._is_plain = not request.logprobs and request.has_plain_deltas
        self._template = EventTemplate(
            [self._chunk(i, {"content": EventTemplate.hole()}, None, None) for i in range(num_choices)]
            if request.stream
            else []
        )

    def opening(self, choice: Choice, generation: Generation) -> Iterable[bytes]:
        """The role."""
        chunk = self._chunk(choice.index, {"role": "assistant", "content": "", "refusal": None}, None, None)
        if self._request.return_token_ids:
            chunk["prompt_token_ids"] = generation.prompts[choice.prompt_index].token_ids
        return (self._event(choice, chunk),)

    def delta(self, choice: Choice, text: str) -> bytes:
        """New text, with the log-probabilities that have gathered."""
        if self._is_plain:
            return self._template.fill(choice.index, text)
        return self._delta(choice, {"content": text})

    def finish(self, choice: Choice) -> bytes:
        """An empty delta with the finish reason."""
        return self._event(choice, self._chunk(choice.index, {}, None, choice.finish_reason))

    def closing(self, usage: dict[str, Any]) -> bytes:
        """The usage, where it was asked for."""
        if not self._request.include_usage:
            return b""
        return event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage})

    def whole(self, generation: Generation, texts: list[str]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choices = [
            self._whole_choice(choice, text) for choice, text in zip(generation.choices, texts, strict=True)
        ]
        body = {**self._head, "object": "chat.completion", "choices": choices, "usage": generation.usage()}
        if self._request.return_token_ids:
            body["prompt_token_ids"] = generation.prompts[0].token_ids
        num_top = self._request.prompt_logprobs
        if num_top is not None:
            body["prompt_logprobs"] = prompt_logprobs(generation.prompt_logprobs[0], num_top, self._tokenizer)
        return body

    def _whole_choice(self, choice: Choice, text: str) -> dict[str, Any]:
        ids = {"token_ids": choice.token_ids} if self._request.return_token_ids else {}
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs(choice),
            "finish_reason": choice.finish_reason,
            **ids,
        }

    def _delta(self, choice: Choice, delta: dict[str, Any]) -> bytes:
        """The event with a delta, and with what has gathered for it."""
        logprobs = self._logprobs(choice) if choice.logprobs else None
        chunk = self._chunk(choice.index, delta, logprobs, None)
        if self._request.return_token_ids:
            chunk["choices"][0]["token_ids"] = choice.token_ids
        choice.logprobs, choice.token_ids = [], []
        return self._event(choice, chunk)

    def _event(self, choice: Choice, chunk: dict[str, Any]) -> bytes:
        if self._request.has_continuous_usage:
            chunk["usage"] = choice.usage()
        return event(chunk)

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
