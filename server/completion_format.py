"""How `/v1/completions` writes its choices: whole, or as stream events. Decides nothing else."""

from collections.abc import Iterable
from typing import Any, Final

from remuda.engine.wire import TokenLogprobs
from remuda.server.generation import Choice, Generation
from remuda.server.logprobs import TextOffsets, completion_logprobs, prompt_logprobs
from remuda.server.prompts import AnyTokenizer, Prompt
from remuda.server.schemas import CompletionRequest
from remuda.server.sse import EventTemplate, event, event_pieces

_OBJECT: Final = "text_completion"


class CompletionFormat:
    """The `ResponseFormat` of completions."""

    def __init__(
        self,
        response_id: str,
        created: int,
        request: CompletionRequest,
        num_choices: int,
        tokenizer: AnyTokenizer,
        system_fingerprint: str,
    ) -> None:
        self._head = {
            "id": response_id,
            "object": _OBJECT,
            "created": created,
            "model": request.model,
            "system_fingerprint": system_fingerprint,
        }
        self._request = request
        self._tokenizer = tokenizer
        self._skips_special = request.skip_special_tokens is not False
        self._is_plain = request.logprobs is None and request.has_plain_deltas
        self._offsets: dict[int, TextOffsets] = {}
        self._template = EventTemplate(
            [self._chunk(index, EventTemplate.hole(), None, None) for index in range(num_choices)]
            if request.stream
            else []
        )

    def opening(self, choice: Choice, generation: Generation) -> Iterable[bytes]:
        """The prompt, where it is to be echoed or its ids are wanted."""
        self._start_offsets(choice, generation)
        echo, wants_ids = self._request.echo, self._request.return_token_ids
        if not echo and not wants_ids:
            return ()
        prompt = generation.prompts[choice.prompt_index]
        logprobs = self._logprobs(choice, prompt, generation.prompt_logprobs, []) if echo else None
        ids = {"prompt_token_ids": prompt.token_ids, "token_ids": []} if wants_ids else {}
        return event_pieces(self._described(choice, self._prompt_text(prompt) if echo else "", logprobs, **ids))

    def delta(self, choice: Choice, text: str) -> bytes:
        """New text, with the log-probabilities that have gathered."""
        if self._is_plain:
            return self._template.fill(choice.index, text)
        logprobs = self._logprobs(choice, None, {}, choice.logprobs) if choice.logprobs else None
        ids = {"token_ids": choice.token_ids} if self._request.return_token_ids else {}
        choice.logprobs, choice.token_ids = [], []
        return self._event(choice, text, logprobs, **ids)

    def finish(self, choice: Choice) -> bytes:
        """An empty text with the finish reason."""
        return self._event(choice, "", None, finish_reason=choice.finish_reason)

    def closing(self, usage: dict[str, Any]) -> bytes:
        """The usage, where it was asked for."""
        return event({**self._head, "choices": [], "usage": usage}) if self._request.include_usage else b""

    def whole(self, generation: Generation, texts: list[str]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choices = [
            self._whole_choice(choice, generation, text)
            for choice, text in zip(generation.choices, texts, strict=True)
        ]
        return {**self._head, "choices": choices, "usage": generation.usage()}

    def _whole_choice(self, choice: Choice, generation: Generation, text: str) -> dict[str, Any]:
        self._start_offsets(choice, generation)
        echoed = generation.prompts[choice.prompt_index] if self._request.echo else None
        result = {
            "index": choice.index,
            "text": text if echoed is None else self._prompt_text(echoed) + text,
            "logprobs": self._logprobs(choice, echoed, generation.prompt_logprobs, choice.logprobs),
            "finish_reason": choice.finish_reason,
        }
        num_top = self._request.prompt_logprobs
        if num_top is not None:
            entries = generation.prompt_logprobs[choice.prompt_index]
            result["prompt_logprobs"] = prompt_logprobs(entries, num_top, self._tokenizer)
        if self._request.return_token_ids:
            prompt_ids = generation.prompts[choice.prompt_index].token_ids
            result |= {"prompt_token_ids": prompt_ids, "token_ids": choice.token_ids}
        return result

    def _event(self, choice: Choice, text: str, logprobs: dict[str, Any] | None, **more: Any) -> bytes:
        return event(self._described(choice, text, logprobs, **more))

    def _described(
        self, choice: Choice, text: str, logprobs: dict[str, Any] | None, **more: Any
    ) -> dict[str, Any]:
        """What a stream event says; `more`: further keys of the choice."""
        chunk = self._chunk(choice.index, text, logprobs, None)
        chunk["choices"][0] |= more
        if self._request.has_continuous_usage:
            chunk["usage"] = choice.usage()
        return chunk

    def _chunk(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if self._request.include_usage else {}
        return {**self._head, "choices": [choice], **usage}

    def _logprobs(
        self,
        choice: Choice,
        echoed: Prompt | None,
        of_prompts: dict[int, list[bytes]],
        of_output: list[TokenLogprobs],
    ) -> dict[str, Any] | None:
        num_top = self._request.logprobs
        if num_top is None:
            return None
        prompt_ids = [] if echoed is None else echoed.token_ids
        of_prompt = [] if echoed is None else of_prompts[choice.prompt_index]
        offsets = self._offsets[choice.index]
        return completion_logprobs(prompt_ids, of_prompt, of_output, offsets, num_top, self._tokenizer)

    def _start_offsets(self, choice: Choice, generation: Generation) -> None:
        if self._request.logprobs is None:
            return
        prompt = generation.prompts[choice.prompt_index]
        echo = bool(self._request.echo)
        skipped = self._tokenizer.special_ids if self._skips_special else frozenset[int]()
        before = None if echo or not self._tokenizer.vocab_size else prompt.token_ids[-1]
        self._offsets[choice.index] = offsets = TextOffsets(self._tokenizer, skipped, before)
        if echo and prompt.text is not None:
            # The client's own text is echoed as it is, special tokens included, but not the BOS before it.
            offsets.set_prompt(len(prompt.token_ids), num_hidden=int(prompt.has_added_bos))

    def _prompt_text(self, prompt: Prompt) -> str:
        if prompt.text is not None:
            return prompt.text
        return self._tokenizer.decode(prompt.token_ids, self._skips_special)
