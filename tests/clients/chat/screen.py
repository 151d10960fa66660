"""As much of a terminal as rich's redrawing needs: what stands on it after all that was written."""

import re
from typing import Final

_PIECES: Final = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


def screen(output: str) -> list[str]:
    """Lines, without spaces at their ends. Raises AssertionError for a sequence that it does not know."""
    rows, row, column = [""], 0, 0
    for piece in _PIECES.finditer(output):
        text, (count, kind) = piece[0], (piece[1], piece[2])
        if text == "\n":
            # A terminal's driver makes CR LF of it.
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif text == "\r":
            column = 0
        elif kind == "A":
            row -= int(count or 1)
            assert row >= 0
        elif kind == "K":
            assert count == "2"
            rows[row] = ""
        elif kind in ("m", "h", "l"):
            continue
        else:
            assert kind is None, text
            rows[row] = rows[row][:column].ljust(column) + text + rows[row][column + len(text) :]
            column += len(text)
    return [line.rstrip() for line in rows]
