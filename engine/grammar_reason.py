"""What llguidance has against a grammar, in words for the one who sent it. Calls nothing of llguidance."""

import re
from typing import Final

_MAX_REASON_CHARS: Final = 300
_NOT_FOR_USERS: Final = re.compile(
    r"^(?:at )?\d+\(\d+\): |<state>.*|<non-verbose/>.*|^ *\d* *\|.*$", re.DOTALL | re.MULTILINE
)


def shorten_reason(reason: str) -> str:
    """llguidance's message without places and excerpts, which are of source that it was given by us."""
    if reason.startswith("NoExtension"):
        return "no text that this model can write begins as it asks"
    text = " ".join(_NOT_FOR_USERS.sub("", reason).split())
    return text[:_MAX_REASON_CHARS] or "cannot be enforced"
