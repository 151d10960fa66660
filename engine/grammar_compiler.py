"""Compiles grammars for one vocabulary by llguidance, and keeps a bounded number of them. No torch.

Its matchers say which tokens may come next; guide.py asks them for one sequence.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import llguidance
from llguidance.gbnf_to_lark import any_to_lark

from remuda.engine.grammar import NO_TOKENIZER, Grammar, TokenBytes, json_rule
from remuda.engine.grammar_reason import shorten_reason as _shorten

MAX_CACHED: Final = 64
# Of all cached grammars together; a compiled one takes some ten times its text.
MAX_CACHED_CHARS: Final = 1_000_000
# What compiling one grammar, and one mask of it, may cost, in llguidance's units: some 20 ms each.
_LIMITS: Final[dict[str, Any]] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 10_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
# Without it a mask would allow only the tokens that the tokenizer itself would write, where the text is forced.
_HEADER: Final = '%llguidance {"no_forcing": true}\n'


class GrammarCompiler:
    """Makes matchers for one vocabulary. May be used by several threads."""

    def __init__(self, load_tokens: Callable[[], TokenBytes | None]) -> None:
        """load_tokens: called at the first grammar; None where the model has no tokenizer."""
        self._load_tokens = load_tokens
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._cache: OrderedDict[tuple[str, str], llguidance.LLMatcher | str] = OrderedDict()
        self._num_chars = 0
        self._lock = threading.Lock()
        self._vocabulary_lock = threading.Lock()

    @property
    def num_cached(self) -> int:
        """Grammars that are kept, bad ones among them."""
        return len(self._cache)

    def is_known(self, grammar: Grammar) -> bool:
        """Whether `matcher` will answer at once."""
        return grammar.key in self._cache

    def matcher(self, grammar: Grammar) -> llguidance.LLMatcher:
        """A matcher at the beginning of a text, the caller's own. Raises InvalidRequestError."""
        with self._lock:
            found = self._cache.get(grammar.key)
            if found is not None:
                self._cache.move_to_end(grammar.key)
        if found is None:
            found = self._compile(grammar)
            self._keep(grammar.key, found)
        if isinstance(found, str):
            raise grammar.error(found)
        return found.deep_copy()

    def _keep(self, key: tuple[str, str], result: llguidance.LLMatcher | str) -> None:
        with self._lock:
            if key not in self._cache:
                self._num_chars += len(key[1])
            self._cache[key] = result
            while len(self._cache) > MAX_CACHED or (self._num_chars > MAX_CACHED_CHARS and len(self._cache) > 1):
                (_, text), _ = self._cache.popitem(last=False)
                self._num_chars -= len(text)

    def _compile(self, grammar: Grammar) -> llguidance.LLMatcher | str:
        """A matcher, or why there can be none."""
        tokenizer = self._vocabulary()
        if tokenizer is None:
            return NO_TOKENIZER
        try:
            lark = _HEADER + _to_lark(grammar)
        except ValueError as error:
            return _shorten(str(error))
        except RecursionError:
            return "is nested too deeply"
        limits = llguidance.LLParserLimits(**_LIMITS)
        matcher = llguidance.LLMatcher(
            tokenizer, llguidance.LLMatcher.grammar_from_lark(lark), log_level=0, limits=limits
        )
        if not matcher.is_error():
            # Some faults show only where the first token is asked for: that no token can begin the text, too.
            probe = matcher.deep_copy()
            probe.compute_bitmask()
            if probe.is_error():
                return _shorten(probe.get_error())
        return _shorten(matcher.get_error()) if matcher.is_error() else matcher

    def _vocabulary(self) -> llguidance.LLTokenizer | None:
        with self._vocabulary_lock:
            if self._tokenizer is None:
                tokens = self._load_tokens()
                if tokens is not None:
                    self._tokenizer = _make_tokenizer(tokens)
            return self._tokenizer


class _Vocabulary:
    """What llguidance wants to know of a vocabulary. The end has an id of its own, past those of the model."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: TokenBytes) -> None:
        self.eos_token_id = len(tokens)
        self.tokens = [*tokens, b"end"]
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: bytes) -> list[int]:
        """Never asked for: nothing is forced."""
        raise NotImplementedError


def _make_tokenizer(tokens: TokenBytes) -> llguidance.LLTokenizer:
    vocabulary: Any = _Vocabulary(tokens)
    return llguidance.LLTokenizer(vocabulary, n_vocab=len(tokens) + 1, eos_token=len(tokens))


def as_lark(grammar: Grammar) -> Grammar:
    """One of kind "grammar" as one of kind "lark": a long GBNF takes the converter, which is Python, a second.

    Others stay as they are. Raises InvalidRequestError.
    """
    if grammar.kind != "grammar":
        return grammar
    try:
        return Grammar("lark", _to_lark(grammar), grammar.param)
    except ValueError as error:
        raise grammar.error(_shorten(str(error))) from error
    except RecursionError as error:
        raise grammar.error("is nested too deeply") from error


def _to_lark(grammar: Grammar) -> str:
    """Lark source of a grammar. Raises ValueError, whose text tells what is wrong."""
    match grammar.kind:
        case "json_schema":
            schema = json.loads(grammar.text)
            if not isinstance(schema, dict):
                raise ValueError("the schema must be an object")
            return f"start: {json_rule(schema)}\n"
        case "regex":
            inner = json.loads(llguidance.LLMatcher.grammar_from_regex(grammar.text))
            source: str = inner["grammars"][0]["lark_grammar"]
            return source
        case "grammar":
            if "%llguidance" in grammar.text:
                raise ValueError("%llguidance is not available")
            return _from_lark_or_gbnf(grammar.text)
        case "lark":
            return grammar.text


def _from_lark_or_gbnf(text: str) -> str:
    try:
        return any_to_lark(text)
    except Exception as error:
        # The converter raises whatever its parser stumbles over.
        raise ValueError(f"not a GBNF grammar: {error}") from error
