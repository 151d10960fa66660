"""What one request may take of the engine, whatever its endpoint: how long, and how many prompt tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from remuda.engine.errors import InvalidRequestError

DEFAULT_REQUEST_TIMEOUT_S = 3600.0
DEFAULT_MAX_PROMPT_TOKENS = 1_000_000


@dataclass(frozen=True)
class RequestLimits:
    """request_timeout_s: seconds from its submission to the end of a request, in the queue included; None: any.
    max_prompt_tokens: of all prompts of a request together.
    """

    request_timeout_s: float | None = DEFAULT_REQUEST_TIMEOUT_S
    max_prompt_tokens: int = DEFAULT_MAX_PROMPT_TOKENS

    def check_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raise InvalidRequestError where the prompts have too many tokens."""
        num_tokens = sum(map(len, prompts))
        if num_tokens > self.max_prompt_tokens:
            raise InvalidRequestError(
                f"the prompt has {num_tokens} tokens, the limit is {self.max_prompt_tokens}",
                param="prompt",
                code="context_length_exceeded",
            )
