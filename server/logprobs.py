"""The engine's log-probabilities in the shapes of the OpenAI API. Computes none of them."""

from collections.abc import Sequence
from typing import Any, Final

from remuda.engine.wire import TokenLogprobs
from remuda.server.prompts import AnyTokenizer

# What the OpenAI API gives for a probability of zero: JSON knows no infinity.
_LOWEST_LOGPROB: Final = -9999.0


def token_string(tokenizer: AnyTokenizer, token: int) -> str:
    """A token as text, or as OpenAI's `bytes:\\xe2\\x80` where its bytes are not UTF-8 by themselves."""
    raw = tokenizer.token_bytes(token)
    try:
        return raw.decode() or tokenizer.token_text(token)
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class TextOffsets:
    """Where in a choice's text its tokens begin, in characters; mirrors what text_stream.py shows."""

    def __init__(self, tokenizer: AnyTokenizer, skipped: frozenset[int], before: int | None = None) -> None:
        """skipped: tokens that show no text. before: the token before the text, whose context counts."""
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._previous = before
        self._offset = 0
        self._num_hidden = 0
        self._num_shown = 0

    def set_prompt(self, num_tokens: int, *, num_hidden: int) -> None:
        """Of the next `num_tokens`, the first `num_hidden` show no text, and all others do."""
        self._num_hidden, self._num_shown = num_hidden, num_tokens - num_hidden

    def advance(self, token: int) -> int:
        """The offset at which `token` begins; the next one begins after it."""
        offset = self._offset
        if self._shows(token):
            self._offset += self._num_chars(token)
            self._previous = token
        return offset

    def _shows(self, token: int) -> bool:
        if self._num_hidden:
            self._num_hidden -= 1
            return False
        if self._num_shown:
            self._num_shown -= 1
            return True
        return token not in self._skipped

    def _num_chars(self, token: int) -> int:
        tokenizer = self._tokenizer
        if tokenizer.joins_bytes or tokenizer.is_byte_token(token):
            # A character counts where its first byte is; continuation bytes are 10xxxxxx.
            return sum(byte & 0xC0 != 0x80 for byte in tokenizer.token_bytes(token))
        context = [] if self._previous is None else [self._previous]
        return len(tokenizer.decode([*context, token], False)) - len(tokenizer.decode(context, False))


def completion_logprobs(
    prompt_ids: Sequence[int],
    of_prompt: Sequence[TokenLogprobs | None],
    of_output: Sequence[TokenLogprobs],
    offsets: TextOffsets,
    num_top: int,
    tokenizer: AnyTokenizer,
) -> dict[str, Any]:
    """`choices[].logprobs` of a completion; a token without a log-probability, the first, has null.

    of_prompt: one entry per id of `prompt_ids`, or empty where the prompt is not echoed.
    """
    tokens: list[str] = []
    chosen: list[float | None] = []
    top: list[dict[str, float] | None] = []
    text_offset: list[int] = []
    pairs = [*zip(prompt_ids, of_prompt, strict=True), *((entry.token, entry) for entry in of_output)]
    for token, entry in pairs:
        tokens.append(token_string(tokenizer, token))
        text_offset.append(offsets.advance(token))
        chosen.append(None if entry is None else _finite(entry.logprob))
        top.append(None if entry is None else _top_by_text(entry, num_top, tokenizer))
    return {"tokens": tokens, "token_logprobs": chosen, "top_logprobs": top, "text_offset": text_offset}


def chat_logprobs(entries: Sequence[TokenLogprobs], num_top: int, tokenizer: AnyTokenizer) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion."""

    def describe(token: int, logprob: float) -> dict[str, Any]:
        raw = list(tokenizer.token_bytes(token))
        return {"token": token_string(tokenizer, token), "logprob": _finite(logprob), "bytes": raw}

    content = [
        {
            **describe(entry.token, entry.logprob),
            "top_logprobs": [describe(token, logprob) for token, logprob in entry.top[:num_top]],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(
    entries: Sequence[TokenLogprobs | None], num_top: int, tokenizer: AnyTokenizer
) -> list[dict[str, Any] | None]:
    """vLLM's `choices[].prompt_logprobs`: by token id, the prompt's own token among the likeliest."""
    return [None if entry is None else _by_id(entry, num_top, tokenizer) for entry in entries]


def _by_id(entry: TokenLogprobs, num_top: int, tokenizer: AnyTokenizer) -> dict[str, Any]:
    ranked = {token: (logprob, rank) for rank, (token, logprob) in enumerate(entry.top[:num_top], 1)}
    found = {entry.token: ranked.get(entry.token, (entry.logprob, None)), **ranked}
    return {
        str(token): {
            "logprob": _finite(logprob),
            "rank": rank,
            "decoded_token": token_string(tokenizer, token),
        }
        for token, (logprob, rank) in found.items()
    }


def _top_by_text(entry: TokenLogprobs, num_top: int, tokenizer: AnyTokenizer) -> dict[str, float]:
    """The likeliest tokens, and the chosen one whether or not it is among them."""
    top: dict[str, float] = {}
    for token, logprob in entry.top[:num_top]:
        top.setdefault(token_string(tokenizer, token), _finite(logprob))
    top.setdefault(token_string(tokenizer, entry.token), _finite(entry.logprob))
    return top


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST_LOGPROB)
