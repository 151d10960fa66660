"""Text of one sequence, as its tokens arrive: whole characters only, and stop strings cut out. No torch."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from remuda.engine.sampling_params import SamplingParams
from remuda.engine.tokenizer import TokenIdTokenizer, Tokenizer
from remuda.engine.wire import FinishReason

# The last prompt tokens that a generated token may join with: a character has at most four bytes.
_CONTEXT_TOKENS: Final = 8


class TextDelta(NamedTuple):
    """What some new tokens added to a text.

    text: to be appended; never the beginning of a stop string that may still complete.
    token_ids_consumed: how many of the pushed ids belong to the answer; fewer than were pushed when a
    stop string ended it, the id that completed the string being the last. stopped: a stop string was met.
    """

    text: str
    token_ids_consumed: int
    stopped: bool


class TextStream:
    """Decodes one sequence token by token; work and memory per token do not grow with its length.

    The texts of all deltas together are `tokenizer.decode` of all ids, up to the stop string or, with
    `include_stop_str_in_output`, to its end. (One difference: where a byte-fallback tokenizer's bytes are
    not UTF-8, the valid characters among them are kept.) Of two stop strings the one that ends first counts,
    of those the longest, so the result does not depend on how the text was cut into tokens or pushes.
    """

    def __init__(
        self, tokenizer: Tokenizer | TokenIdTokenizer, params: SamplingParams, prompt_ids: Sequence[int] = ()
    ) -> None:
        """prompt_ids: what stands before, so that the first token keeps the space that joins it on."""
        decoder = _ByteDecoder if tokenizer.joins_bytes else _PieceDecoder
        self._decoder = decoder(tokenizer, params.skip_special_tokens)
        self._shows_stop = params.include_stop_str_in_output
        self._matcher = _StopMatcher(params.stop, shows_stop=self._shows_stop) if params.stop else None
        self._min_tokens = params.min_tokens
        self._num_tokens = 0
        self._done = False
        for token in prompt_ids[-_CONTEXT_TOKENS:]:
            self._decoder.push(token)

    def push(
        self,
        token_ids: Sequence[int],
        finish_reason: FinishReason | None = None,
        stop_token: int | None = None,
    ) -> TextDelta:
        """Add new tokens. With a finish reason, give out everything that was held back.

        stop_token: the id that ended the sequence, the last of `token_ids`; it adds no text, unless the
        parameters ask for it.
        After a stop string or a finish, further tokens are ignored.
        """
        if self._done:
            return TextDelta("", 0, False)
        # The common case, which a worker meets once for each token of each stream.
        if self._matcher is None and finish_reason is None and len(token_ids) == 1:
            return TextDelta(self._decoder.push(token_ids[0]), 1, False)
        pieces: list[str] = []
        num_text_tokens = len(token_ids) - (stop_token is not None and not self._shows_stop)
        for i, token in enumerate(token_ids[:num_text_tokens]):
            self._num_tokens += 1
            if self._add(self._decoder.push(token), pieces):
                return TextDelta("".join(pieces), i + 1, True)
        if finish_reason is not None:
            self._done = True
            if self._add(self._decoder.flush(), pieces):
                return TextDelta("".join(pieces), len(token_ids), True)
            if self._matcher is not None:
                pieces.append(self._matcher.held)
        return TextDelta("".join(pieces), len(token_ids), False)

    def _add(self, text: str, pieces: list[str]) -> bool:
        """Append to `pieces` what of `text` may be shown; True when it completed a stop string."""
        if self._matcher is None:
            pieces.append(text)
            return False
        shown, met = self._matcher.push(text, is_armed=self._num_tokens >= self._min_tokens)
        pieces.append(shown)
        self._done = self._done or met
        return met


class _ByteDecoder:
    """For tokenizers whose text is the concatenation of their tokens' bytes: byte-level BPE, characters."""

    def __init__(self, tokenizer: Tokenizer | TokenIdTokenizer, skip_special_tokens: bool) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._whole_texts = tokenizer.whole_texts
        self._is_clear = True
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        # Python and the tokenizers library both replace each maximal invalid part by one U+FFFD.
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        if token in self._skipped:
            return ""
        text = self._whole_texts.get(token) if self._is_clear else None
        return self._decode(token) if text is None else text

    def _decode(self, token: int) -> str:
        text = self._utf8.decode(self._token_bytes(token))
        was_clear, self._is_clear = self._is_clear, not self._utf8.getstate()[0]
        if was_clear and self._is_clear:
            # It begins and ends with a character, so its text does not depend on its neighbours.
            self._whole_texts[token] = text
        return text

    def flush(self) -> str:
        return self._utf8.decode(b"", True)


class _PieceDecoder:
    """For all others: a token's text is what it adds to the text of the token before it."""

    def __init__(self, tokenizer: Tokenizer | TokenIdTokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._context: list[int] = []
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        tokenizer, context = self._tokenizer, self._context
        if token in self._skipped or not (content := tokenizer.token_bytes(token)):
            return ""
        self._context = [token]
        # The first token goes through the decoder, which may strip a space there.
        if tokenizer.is_byte_token(token) and (context or not content.isascii()):
            return self._utf8.decode(content)
        before = tokenizer.decode(context, False)
        return self.flush() + tokenizer.decode([*context, token], False)[len(before) :]

    def flush(self) -> str:
        text = self._utf8.decode(b"", True)
        self._utf8.reset()
        return text


class _StopMatcher:
    """Finds stop strings in a text that comes in pieces, in linear time (Aho and Corasick 1975)."""

    def __init__(self, stop: tuple[str, ...], *, shows_stop: bool) -> None:
        self._shows_stop = shows_stop
        self._trie = _build_trie(stop)
        self._node = 0
        # The characters held back: the longest end of the text that begins a stop string.
        self.held = ""

    def push(self, text: str, *, is_armed: bool) -> tuple[str, bool]:
        """What may be shown now, and whether a stop string was completed. Unarmed, none counts."""
        trie, node = self._trie, self._node
        pending = self.held + text
        start = len(self.held)
        for i in range(start, len(pending)):
            node = trie.step(node, pending[i])
            length = trie.match_length[node]
            if length and is_armed:
                self._node, self.held = 0, ""
                return pending[: i + 1 - (0 if self._shows_stop else length)], True
        self._node = node
        split = len(pending) - trie.depth[node]
        self.held = pending[split:]
        return pending[:split], False


@dataclass(frozen=True)
class _Trie:
    """Aho and Corasick's machine. Node 0 is the root; per node: its children, where to fall back, its depth,
    and the length of the longest stop string that ends there (0: none)."""

    children: list[dict[str, int]]
    fallback: list[int]
    depth: list[int]
    match_length: list[int]

    def step(self, node: int, character: str) -> int:
        while node and character not in self.children[node]:
            node = self.fallback[node]
        return self.children[node].get(character, 0)


@lru_cache(maxsize=256)
def _build_trie(stop: tuple[str, ...]) -> _Trie:
    trie = _Trie([{}], [0], [0], [0])
    for text in stop:
        node = 0
        for character in text:
            if character not in trie.children[node]:
                trie.children[node][character] = len(trie.children)
                trie.children.append({})
                trie.fallback.append(0)
                trie.depth.append(trie.depth[node] + 1)
                trie.match_length.append(0)
            node = trie.children[node][character]
        trie.match_length[node] = len(text)
    queue = list(trie.children[0].values())
    for node in queue:
        for character, child in trie.children[node].items():
            trie.fallback[child] = trie.step(trie.fallback[node], character)
            trie.match_length[child] = trie.match_length[child] or trie.match_length[trie.fallback[child]]
            queue.append(child)
    return trie
