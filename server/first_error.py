"""Stops pydantic at the first complaint: it would report every bad item and unknown field, a microsecond each.

For lists, `Field(fail_fast=True)` does that by itself.
"""

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class ClosedModel(BaseModel):
    """A model that refuses unknown fields. Of many it sees, and names, the first."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _leave_one_unknown(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        unknown = [name for name in value if name not in cls.model_fields]
        return {name: item for name, item in value.items() if name in cls.model_fields or name == unknown[0]}


def at_most(max_items: int) -> BeforeValidator:
    """Refuse a longer list or object before any item is looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > max_items:
            message = "{num_items} items are over the limit of {max_items}"
            raise PydanticCustomError("too_long", message, {"num_items": len(value), "max_items": max_items})
        return value

    return BeforeValidator(check)
