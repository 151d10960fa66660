"""What a key of a server may be, and the variable of the environment that has it. Imports nothing else of ours."""

import re
from typing import Final

KEY_ENVIRONMENT: Final = "REMUDA_API_KEY"
KEY_RULE: Final = "a key is printable ASCII without spaces"
# What a header may hold.
_KEY: Final = re.compile(r"[\x21-\x7e]+")


def is_key(text: str) -> bool:
    """It can be sent as one: KEY_RULE says when."""
    return _KEY.fullmatch(text) is not None
