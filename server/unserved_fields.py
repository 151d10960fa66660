"""Fields of the OpenAI API that a request may have without an effect here: checked, and told to OpenAPI.

docs/api.md lists them; a field that would change the answer is refused by its name.
"""

from collections.abc import Mapping
from typing import Any, Final

from remuda.engine.errors import InvalidRequestError

# Accepted with any value.
HARMLESS: Final = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
# Not served, with the values besides null that ask for nothing.
NEUTRAL_VALUES: Final[dict[str, tuple[Any, ...]]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "reasoning_effort": ("none",),
    "suffix": ("",),
    "verbosity": ("medium",),
    "web_search_options": (),
}


def check_unserved(fields: Mapping[str, Any]) -> None:
    """Raise InvalidRequestError for a field that would change the answer, or that nobody knows."""
    for name, value in fields.items():
        if name in HARMLESS or (name in NEUTRAL_VALUES and value is None):
            continue
        if name not in NEUTRAL_VALUES:
            raise InvalidRequestError(f"unknown field {name[:100]!r}", param=name[:100])
        if value not in NEUTRAL_VALUES[name]:
            raise InvalidRequestError(f"{name} is not supported by this server", param=name)


def declare_unserved(schema: dict[str, Any]) -> None:
    """Complete the JSON schema of a request model by these fields; others there are none."""
    properties = schema["properties"]
    for name in sorted(HARMLESS):
        properties.setdefault(name, {"description": "Accepted and ignored."})
    for name, values in sorted(NEUTRAL_VALUES.items()):
        neutral = {"enum": [*values, None], "description": "Not served; these values ask for nothing."}
        properties.setdefault(name, neutral)
    schema["additionalProperties"] = False
