"""The choices of one HTTP request while the engine feeds them: text, counts, log-probabilities, endings."""

from collections.abc import Iterator, Sequence
from typing import Any

from remuda.engine.sampling_params import SamplingParams
from remuda.engine.text_stream import TextStream
from remuda.engine.tokenizer import TokenIdTokenizer
from remuda.engine.wire import SequenceOutput, TokenLogprobs, output_error
from remuda.server.prompts import AnyTokenizer, Prompt
from remuda.server.request_handle import RequestHandle


class Choice:
    """One continuation of one prompt. `logprobs` and `token_ids` are those that have not been shown yet."""

    __slots__ = (
        "finish_reason",
        "index",
        "is_open",
        "logprobs",
        "num_prompt_tokens",
        "num_tokens",
        "prompt_index",
        "text_stream",
        "token_ids",
    )

    def __init__(self, index: int, prompt_index: int, text_stream: TextStream, num_prompt_tokens: int) -> None:
        self.index = index
        self.prompt_index = prompt_index
        self.num_prompt_tokens = num_prompt_tokens
        self.text_stream = text_stream
        self.finish_reason: str | None = None
        self.num_tokens = 0
        self.logprobs: list[TokenLogprobs] = []
        # Gathered only where the answer is to show them.
        self.token_ids: list[int] = []
        # Whether the first event of a stream was sent for it.
        self.is_open = False

    def usage(self) -> dict[str, Any]:
        """Token counts of this choice so far."""
        return _usage(self.num_prompt_tokens, self.num_tokens)


class Generation:
    """All choices of one request: `n` for each prompt, in the order of the prompts."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        tokenizer: AnyTokenizer,
        *,
        echo: bool = False,
        keeps_token_ids: bool = False,
    ) -> None:
        self._keeps_token_ids = keeps_token_ids
        self.prompts = prompts
        self.params = params
        # Of each prompt by its number; see engine/logprob_pieces.py.
        self.prompt_logprobs: dict[int, list[bytes]] = {}
        # Without a tokenizer, a text that stands alone begins with a token and not with the space before it.
        has_context = echo or not isinstance(tokenizer, TokenIdTokenizer)
        self.choices = [
            Choice(
                number,
                number // params.n,
                TextStream(tokenizer, params, prompt.token_ids if has_context else ()),
                len(prompt.token_ids),
            )
            for number, prompt in enumerate(prompt for prompt in prompts for _ in range(params.n))
        ]
        self._num_open = len(self.choices)
        self._num_prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        asks_logprobs = params.logprobs is not None or params.prompt_logprobs is not None
        self._shows_prompts = echo or keeps_token_ids or asks_logprobs

    def hand_over_prompts(self) -> list[list[int]]:
        """Token ids of each prompt, for the engine. They are let go where the answer shows nothing of them: held
        while it streams, they would be the one thing here that grows with the context.
        """
        token_ids = [prompt.token_ids for prompt in self.prompts]
        if not self._shows_prompts:
            self.prompts = ()
        return token_ids

    @property
    def is_finished(self) -> bool:
        """Every choice has its finish reason."""
        return self._num_open == 0

    def feed(self, outputs: Sequence[SequenceOutput], handle: RequestHandle) -> Iterator[tuple[Choice, str]]:
        """Take what the engine sent; yields each choice with its new text, just as it is after that text.

        Raises UnhealthyStateError where the engine ended a sequence by itself, and InvalidRequestError where the
        request's grammar is why, once all else is taken.
        """
        failed: SequenceOutput | None = None
        for output in outputs:
            choice = self.choices[output.index]
            if output.prompt_logprob_pieces is not None:
                self.prompt_logprobs[choice.prompt_index] = output.prompt_logprob_pieces
            if choice.finish_reason is not None:
                continue
            reason = output.finish_reason
            if reason == "error":
                failed = failed or output
                continue
            delta = choice.text_stream.push(output.token_ids, reason, output.stop_token)
            choice.num_tokens += delta.token_ids_consumed
            if output.logprobs is not None:
                choice.logprobs += output.logprobs[: delta.token_ids_consumed]
            if self._keeps_token_ids:
                choice.token_ids += output.token_ids[: delta.token_ids_consumed]
            if delta.stopped and reason is None:
                handle.abort_choice(choice.index)
            if delta.stopped or reason is not None:
                choice.finish_reason = "stop" if delta.stopped else reason
                self._num_open -= 1
            yield choice, delta.text
        if failed is not None:
            raise output_error(failed, self.params)

    def usage(self) -> dict[str, Any]:
        """Token counts; a prompt counts once, however many choices continue it."""
        return _usage(self._num_prompt_tokens, sum(choice.num_tokens for choice in self.choices))


def _usage(num_prompt: int, num_output: int) -> dict[str, Any]:
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "total_tokens": num_prompt + num_output,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
