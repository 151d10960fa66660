"""The request models: types, defaults, and every field that is served, harmless, refused or unknown."""

from typing import Any

import pytest
from pydantic import ValidationError

from remuda.engine.errors import InvalidRequestError
from remuda.engine.sampling_params import SamplingParams
from remuda.server.schemas import ChatCompletionRequest, CompletionRequest


def completion(**fields: Any) -> SamplingParams:
    return CompletionRequest.model_validate({"model": "m", "prompt": "x", **fields}).to_params()


def chat(**fields: Any) -> SamplingParams:
    messages = [{"role": "user", "content": "x"}]
    request = ChatCompletionRequest.model_validate({"model": "m", "messages": messages, **fields})
    return request.to_params(request.tool_set())


def test_defaults() -> None:
    assert completion() == SamplingParams(max_tokens=16)
    assert chat() == SamplingParams(max_tokens=1024)


def test_every_sampling_field_arrives() -> None:
    fields = {
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": -0.3,
        "seed": -5,
        "ignore_eos": True,
        "min_tokens": 3,
        "max_tokens": 9,
        "skip_special_tokens": False,
    }
    given = {**fields, "logit_bias": {"7": -100, "0": 1.5}, "stop": ["a", "b"], "stop_token_ids": [1, 2]}
    expected = SamplingParams(**fields, logit_bias={7: -100.0, 0: 1.5}, stop=("a", "b"), stop_token_ids=(1, 2))
    assert completion(**given) == expected
    assert chat(**given) == expected


def test_nulls_mean_the_default() -> None:
    names = [name for name in CompletionRequest.model_fields if name not in ("model", "prompt")]
    assert completion(**dict.fromkeys(names)) == completion()
    names = [name for name in ChatCompletionRequest.model_fields if name not in ("model", "messages")]
    assert chat(**dict.fromkeys(names)) == chat()


def test_logprobs() -> None:
    assert completion(logprobs=0).logprobs == 0
    assert completion(logprobs=3).prompt_logprobs is None
    assert completion(logprobs=3, echo=True).prompt_logprobs == 3
    assert completion(logprobs=3, echo=True, prompt_logprobs=5).prompt_logprobs == 5
    assert chat(logprobs=True).logprobs == 0
    assert chat(logprobs=True, top_logprobs=4).logprobs == 4
    assert chat(logprobs=False).logprobs is None


def test_max_completion_tokens() -> None:
    assert chat(max_completion_tokens=7).max_tokens == 7
    assert chat(max_completion_tokens=7, max_tokens=7).max_tokens == 7
    with pytest.raises(InvalidRequestError, match="max_completion_tokens"):
        chat(max_completion_tokens=7, max_tokens=8)


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto"},
        {"parallel_tool_calls": False, "prompt_cache_key": "k", "safety_identifier": "s"},
        {"tools": None, "tool_choice": "none", "functions": None, "response_format": {"type": "text"}},
        {"modalities": ["text"], "audio": None, "reasoning_effort": None},
    ],
)
def test_harmless_fields(fields: dict[str, Any]) -> None:
    assert chat(**fields) == chat()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("function_call", {"name": "f"}),
        ("response_format", {"type": "structural_tag"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("reasoning_effort", "high"),
        ("web_search_options", {}),
        ("frequency_penality", 1.0),
        ("echo", True),
    ],
)
def test_refused_fields(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=name) as caught:
        chat(**{name: value})
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"messages": []}, "messages"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"stop": [1]}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"01": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_refused_in_completions(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        completion(**fields)
    assert caught.value.param == param


def test_best_of_that_asks_for_nothing() -> None:
    assert completion(best_of=1) == completion()
    assert completion(best_of=3, n=3).n == 3


def test_top_logprobs() -> None:
    for fields in ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 21}):
        with pytest.raises(InvalidRequestError, match="top_logprobs"):
            chat(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": "5"},
        {"max_tokens": 5.5},
        {"max_tokens": True},
        {"temperature": "hot"},
        {"temperature": True},
        {"temperature": 10**400},
        {"stream": "yes"},
        {"stream": 1},
        {"model": 5},
        {"logit_bias": [1]},
        {"stop_token_ids": ["1"]},
        {"stream": True, "stream_options": {"include_usage": True, "x": 1}},
    ],
    ids=str,
)
def test_wrong_types(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        completion(**fields)
