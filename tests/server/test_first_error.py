"""However much of a request is wrong, pydantic reports a handful of errors: each costs, on the event loop."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from remuda.server.responses_schema import ResponseRequest
from remuda.server.routes_embeddings import EmbeddingRequest
from remuda.server.routes_tokenize import DetokenizeRequest, TokenizeRequest
from remuda.server.schemas import ChatCompletionRequest, CompletionRequest

MODELS = (
    CompletionRequest,
    ChatCompletionRequest,
    ResponseRequest,
    EmbeddingRequest,
    TokenizeRequest,
    DetokenizeRequest,
)
FIELDS = [(model, field) for model in MODELS for field in model.model_fields]
BAD: dict[str, Any] = {
    "numbers": [1.5] * 2000,
    "lists": [[]] * 2000,
    "objects": [{}] * 2000,
    "ids": list(range(2000)),
    "names": {f"x{i}": [] for i in range(2000)},
}


def num_errors(model: type[BaseModel], body: dict[str, Any]) -> int:
    """Errors of the fields that `body` has."""
    try:
        model.model_validate(body)
    except ValidationError as error:
        return sum(complaint["type"] != "missing" or len(complaint["loc"]) > 1 for complaint in error.errors())
    return 0


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
@pytest.mark.parametrize(("model", "field"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_of_the_items_of_a_field(model: type[BaseModel], field: str, value: Any) -> None:
    # One, or one for each branch of a union.
    assert num_errors(model, {field: value}) <= 2


@pytest.mark.parametrize("model", MODELS)
def test_of_unknown_fields(model: type[BaseModel]) -> None:
    assert num_errors(model, BAD["names"]) <= 1


def test_the_first_unknown_field_is_named() -> None:
    with pytest.raises(ValidationError) as caught:
        TokenizeRequest.model_validate({"prompt": "a", "b": 1, "a": 1})
    assert [error["loc"] for error in caught.value.errors()] == [("b",)]


def test_the_first_bad_item_is_named() -> None:
    with pytest.raises(ValidationError) as caught:
        ChatCompletionRequest.model_validate({"model": "m", "messages": [{"role": "user"}, 1, 2]})
    assert [error["loc"] for error in caught.value.errors()] == [("messages", 1)]
