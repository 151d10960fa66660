"""The engine's log-probabilities in the shapes of the OpenAI API, as lists that are encoded piece by piece.

Computes none of them. Those of a prompt are as engine/logprob_pieces.py packs them.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final

from remuda.engine.logprob_pieces import num_at_once, unpacked
from remuda.engine.wire import TokenLogprobs
from remuda.server.prompts import AnyTokenizer
from remuda.server.sliced_json import Sliced

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
    of_prompt: Sequence[bytes],
    of_output: Sequence[TokenLogprobs],
    offsets: TextOffsets,
    num_top: int,
    tokenizer: AnyTokenizer,
) -> dict[str, Any]:
    """`choices[].logprobs` of a completion; a token without a log-probability, the first, has null.

    of_prompt: of one entry per id of `prompt_ids`, or empty where the prompt is not echoed. The offsets go on when
    the value is encoded.
    """

    def entries() -> Iterator[TokenLogprobs | None]:
        return chain(unpacked(of_prompt), of_output)

    ids = [*prompt_ids, *(entry.token for entry in of_output)]
    count = num_at_once(num_top)
    return {
        "tokens": Sliced((token_string(tokenizer, token) for token in ids), count),
        "token_logprobs": Sliced((None if e is None else _finite(e.logprob) for e in entries()), count),
        "top_logprobs": Sliced(
            (None if e is None else _top_by_text(e, num_top, tokenizer) for e in entries()), count
        ),
        "text_offset": Sliced((offsets.advance(token) for token in ids), count),
    }


def chat_logprobs(entries: Sequence[TokenLogprobs], num_top: int, tokenizer: AnyTokenizer) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion."""
    return {"content": Sliced(described(entries, num_top, tokenizer), num_at_once(num_top)), "refusal": None}


def described(entries: Sequence[TokenLogprobs], num_top: int, tokenizer: AnyTokenizer) -> Iterator[dict[str, Any]]:
    """Each token with its bytes and the likeliest in its place."""

    def describe(token: int, logprob: float) -> dict[str, Any]:
        raw = list(tokenizer.token_bytes(token))
        return {"token": token_string(tokenizer, token), "logprob": _finite(logprob), "bytes": raw}

    for entry in entries:
        top = [describe(token, logprob) for token, logprob in entry.top[:num_top]]
        yield {**describe(entry.token, entry.logprob), "top_logprobs": top}


def prompt_logprobs(pieces: Sequence[bytes], num_top: int, tokenizer: AnyTokenizer) -> Sliced:
    """vLLM's `choices[].prompt_logprobs`: by token id, the prompt's own token among the likeliest."""
    found = (None if entry is None else _by_id(entry, num_top, tokenizer) for entry in unpacked(pieces))
    return Sliced(found, num_at_once(num_top))


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
