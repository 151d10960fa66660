"""`/tokenize` and `/detokenize`: the prompt that the model would read, and its text."""

from typing import Any

import httpx2
import pytest

from tests.server.fake_info import ASSISTANT, BOS, END, USER, VOCAB_SIZE
from tests.server.fakes import FakeEngine, ids

MESSAGES = [{"role": "user", "content": "Hi"}]
RENDERED = [BOS, USER, *ids("Hi"), END, ASSISTANT]


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": "Hi"}, [BOS, *ids("Hi")]),
        ({"prompt": "Hi", "model": "fake"}, [BOS, *ids("Hi")]),
        ({"prompt": "Hi", "add_special_tokens": False}, ids("Hi")),
        ({"prompt": ""}, [BOS]),
        ({"prompt": "", "add_special_tokens": False}, []),
        ({"prompt": "<end>"}, [BOS, END]),
        ({"prompt": "é" * 20_000}, [BOS, *ids("é") * 20_000]),
        ({"messages": MESSAGES}, RENDERED),
        ({"messages": MESSAGES, "add_generation_prompt": False}, RENDERED[:-1]),
        ({"messages": MESSAGES, "add_special_tokens": True}, RENDERED),
    ],
    ids=lambda value: str(value)[:60],
)
def test_tokens(http: httpx2.Client, engine: FakeEngine, body: dict[str, Any], tokens: list[int]) -> None:
    answer = http.post("/tokenize", json=body).json()
    assert answer == {"count": len(tokens), "max_model_len": 2**31 - 1, "tokens": tokens, "token_strs": None}
    if "messages" in body and "add_generation_prompt" not in body:
        http.post("/v1/chat/completions", json={"model": "fake", "messages": body["messages"]})
        assert engine.requests[0].prompt.tolist() == tokens


def test_token_strings(http: httpx2.Client) -> None:
    answer = http.post("/tokenize", json={"prompt": "Hé<end>", "return_token_strs": True}).json()
    assert answer["token_strs"] == ["<bos>", "H", "bytes:\\xc3", "bytes:\\xa9", "<end>"]


def test_detokenize_is_the_way_back(http: httpx2.Client) -> None:
    text = "Hé <end> 🐎" * 600
    tokens = http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": "<bos>" + text}
    assert http.post("/detokenize", json={"model": "fake", "tokens": []}).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("tokenize", {}, "prompt"),
        ("tokenize", {"prompt": "x", "messages": MESSAGES}, "prompt"),
        ("tokenize", {"prompt": ["x"]}, "prompt"),
        ("tokenize", {"prompt": "x", "model": "y"}, "model"),
        ("tokenize", {"messages": []}, "messages"),
        ("tokenize", {"messages": [{"role": "robot"}]}, "messages.0.role"),
        ("tokenize", {"prompt": "x", "nonsense": 1}, "nonsense"),
        ("tokenize", {"messages": MESSAGES, "chat_template": "{{ 1 }}"}, "chat_template"),
        ("detokenize", {}, "tokens"),
        ("detokenize", {"tokens": "x"}, "tokens"),
        ("detokenize", {"tokens": [True]}, "tokens"),
        ("detokenize", {"tokens": [1.5]}, "tokens"),
        ("detokenize", {"tokens": [-1]}, "tokens"),
        ("detokenize", {"tokens": [VOCAB_SIZE]}, "tokens"),
        ("detokenize", {"tokens": [10**4000]}, "tokens"),
        ("detokenize", {"tokens": [1], "model": "y"}, "model"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bad_fields(http: httpx2.Client, path: str, body: dict[str, Any], param: str) -> None:
    answer = http.post(f"/{path}", json=body)
    assert answer.status_code == (404 if param == "model" else 400)
    assert answer.json()["error"]["param"] == param
