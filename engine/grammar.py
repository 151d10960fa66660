"""What shape a text must have: a JSON schema, a regular expression or a grammar. Compiles nothing."""

import json
from typing import Any, Final, Literal, get_args

import msgspec

from remuda.engine.errors import InvalidRequestError

# "grammar": Lark's notation as llguidance reads it, or GBNF; "lark": the former, written by ourselves.
GrammarKind = Literal["json_schema", "regex", "grammar", "lark"]

MAX_GRAMMAR_CHARS: Final = 65_536
MAX_REGEX_CHARS: Final = 8_192
NO_TOKENIZER: Final = "this model has no tokenizer, so that the shape of its text cannot be enforced"
# Between the parts of a JSON text: nothing, one space, or a line break and an indent. A model that is unsure
# would go on with unbounded white space for ever.
_WHITESPACE: Final = {"whitespace_pattern": r"([ ]|\n[ ]{0,16})?", "lenient": False}

_MAX_CHARS: Final[dict[str, int]] = {"regex": MAX_REGEX_CHARS, "lark": 4 * MAX_GRAMMAR_CHARS}

# Bytes of each token, by id; empty for tokens that stand for no text.
TokenBytes = list[bytes]


class Grammar(msgspec.Struct, frozen=True):
    """The texts that a request allows. `param` is the field that asked for it, which errors name."""

    kind: GrammarKind
    text: str
    param: str = "grammar"

    def __post_init__(self) -> None:
        # The constructor of a Struct takes anything.
        if self.kind not in get_args(GrammarKind) or not isinstance(self.text, str):
            raise self.error(f"must be text of one of the kinds {', '.join(get_args(GrammarKind))}")
        limit = _MAX_CHARS.get(self.kind, MAX_GRAMMAR_CHARS)
        if len(self.text) > limit:
            raise self.error(f"a {self.kind} of {len(self.text)} characters is over the limit of {limit}")
        if not self.text.isascii():
            try:
                self.text.encode()
            except UnicodeEncodeError as error:
                raise self.error("has half of a surrogate pair in it, which is not valid Unicode") from error

    @property
    def key(self) -> tuple[str, str]:
        """Grammars of one key allow the same texts."""
        return self.kind, self.text

    def error(self, reason: str) -> InvalidRequestError:
        """The error of a grammar that cannot be honoured."""
        return InvalidRequestError(f"{self.param}: {reason}", param=self.param)


def json_rule(schema: dict[str, Any]) -> str:
    """A part of a Lark rule: JSON texts of a schema."""
    return f"%json {json.dumps({**schema, 'x-guidance': _WHITESPACE})}"


def token_bytes(tokenizer: Any, vocab_size: int) -> TokenBytes | None:
    """Bytes by id of a `Tokenizer`, padded to the model's vocabulary; None for a `TokenIdTokenizer`."""
    if not tokenizer.vocab_size:
        return None
    special: frozenset[int] = tokenizer.special_ids | frozenset(tokenizer.eos_token_ids)
    return [b"" if i in special else tokenizer.token_bytes(i) for i in range(vocab_size)]
