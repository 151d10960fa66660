"""Holds JSON to the models of the `openai` package: types strictly, and no key that the model does not have."""

from collections.abc import Iterator
from typing import Any, TypeVar

import pydantic

Model = TypeVar("Model", bound=pydantic.BaseModel)


def conform(model: type[Model], text: str | bytes, extras: frozenset[str] = frozenset()) -> Model:
    """The typed form of a JSON text; fails where it is not one. extras: further keys that were asked for."""
    value = model.model_validate_json(text, strict=True)
    surplus = {place for place in _surplus(value, model.__name__) if place.rpartition(".")[2] not in extras}
    assert not surplus, f"keys that {model.__name__} does not have: {sorted(surplus)}"
    return value


def _surplus(value: Any, place: str) -> Iterator[str]:
    """Places of the keys that the package's models keep without knowing them."""
    if isinstance(value, pydantic.BaseModel):
        yield from (f"{place}.{name}" for name in value.model_extra or {})
        for name in type(value).model_fields:
            yield from _surplus(getattr(value, name), f"{place}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from _surplus(item, place)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _surplus(item, place)


def events(text: str) -> list[str]:
    """The data of the events of a whole stream of chat completions or completions, without [DONE]."""
    *found, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") and "\n" not in event for event in found)
    return [event.removeprefix("data: ") for event in found]
