"""What shape a text must have: a JSON schema, a regular expression or a grammar. Compiles nothing."""

from typing import Final, Literal, get_args

import msgspec

from remuda.engine.errors import InvalidRequestError

# "grammar": Lark's notation as llguidance reads it, or GBNF; "lark": the former, written by ourselves.
GrammarKind = Literal["json_schema", "regex", "grammar", "lark"]

# A large schema takes llguidance about a millisecond per 10,000 characters.
MAX_GRAMMAR_CHARS: Final = 65_536
MAX_REGEX_CHARS: Final = 8_192
_MAX_CHARS: Final[dict[str, int]] = {"regex": MAX_REGEX_CHARS}


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
