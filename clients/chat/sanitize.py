"""Text of others on its way to a terminal: control characters, which make escape sequences, become visible."""

from typing import Final

_CONTROL_PICTURES: Final = 0x2400
_TABLE: Final[dict[int, int | None]] = {
    **{code: _CONTROL_PICTURES + code for code in range(0x20)},
    ord("\t"): ord("\t"),
    ord("\n"): ord("\n"),
    # CRLF becomes LF; a CR alone would let later text write over earlier text.
    ord("\r"): None,
    0x7F: 0x2421,
    **dict.fromkeys(range(128, 160), 65533),
    # Halves of surrogate pairs, which no output can encode.
    **dict.fromkeys(range(55296, 57344), 65533),
}


def clean(text: str) -> str:
    """Only newlines and tabs are left of the control characters."""
    return text.translate(_TABLE)


def clean_line(text: str) -> str:
    """`clean`, on one line."""
    return " ".join(clean(text).split())
