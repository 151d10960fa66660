"""What is asked: ids, words, files, conversations, and what a server is told beyond OpenAI's fields."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remuda.clients.load.errors import UsageError
from remuda.clients.load.options import LoadOptions, PromptOptions
from remuda.clients.load.prompts import Listed, RandomIds, RandomWords, read_sharegpt, read_texts
from tests.clients.load.conftest import FakeServer, fixed, run

TURNS = [("system", "Be kind."), ("human", "Hi?"), ("gpt", "Hello."), ("human", "And?"), ("gpt", "x" * 40)]
CONVERSATION = {"conversations": [{"from": who, "value": text} for who, text in TURNS]}


def write(path: Path, data: Any) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_random_ids() -> None:
    source = RandomIds(np.array([3, 5]), fixed(100), fixed(7), np.random.default_rng(0))
    prompt = source.draw()
    assert (set(prompt.content), len(prompt.content)) == ({3, 5}, 100)
    assert (prompt.prompt_tokens, prompt.max_tokens) == (100, 7)
    assert prompt.content != source.draw().content
    again = RandomIds(np.array([3, 5]), fixed(100), fixed(7), np.random.default_rng(0))
    assert again.draw() == prompt


def test_random_words() -> None:
    prompt = RandomWords(1.25, fixed(100), fixed(7), np.random.default_rng(0)).draw()
    assert isinstance(prompt.content, str)
    assert len(prompt.content.split()) == 80


def test_lines_come_in_turns(tmp_path: Path) -> None:
    rows = read_texts(write(tmp_path / "a.txt", "one\n\n  \ntwo\nthree\n"), is_whole=False)
    source = Listed(rows, fixed(9), np.random.default_rng(0))
    drawn = [source.draw() for _ in range(6)]
    assert {prompt.content for prompt in drawn[:3]} == {prompt.content for prompt in drawn[3:]}
    assert {prompt.content for prompt in drawn} == {"one", "two", "three"}
    assert {prompt.max_tokens for prompt in drawn} == {9}


def test_a_whole_file(tmp_path: Path) -> None:
    (row,) = read_texts(write(tmp_path / "a.txt", "one\ntwo\n"), is_whole=True)
    assert row.content == "one\ntwo\n"


def test_sharegpt(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [CONVERSATION, {"conversations": []}, {"conversations": CONVERSATION}, 3])
    (chat,) = read_sharegpt(path, is_chat=True)
    assert [message["role"] for message in chat.content if isinstance(message, dict)] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert chat.max_tokens == 10
    (completion,) = read_sharegpt(path, is_chat=False)
    assert (completion.content, completion.max_tokens) == ("Hi?", 1)


def test_a_role_that_is_no_text_is_left_out(tmp_path: Path) -> None:
    turns = [{"from": ["a"], "value": "x"}, *CONVERSATION["conversations"]]
    (row,) = read_sharegpt(write(tmp_path / "a.json", [{"conversations": turns}]), is_chat=True)
    assert len(row.content) == 4


def test_half_a_surrogate_pair_is_refused_where_it_is_read(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "hi \ud83d"}, {"from": "gpt", "value": "x"}]
    path = write(tmp_path / "a.json", [CONVERSATION, {"conversations": turns}])
    with pytest.raises(UsageError, match=r"a\.json: conversation 2: half a surrogate pair at character 3"):
        read_sharegpt(path, is_chat=True)


def test_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\u2028two\fthree\nfour\r\n", encoding="utf-8", newline="")
    rows = read_texts(tmp_path / "a.txt", is_whole=False)
    assert [row.content for row in rows] == ["one\u2028two\fthree", "four"]


@pytest.mark.parametrize(
    "data", ["{", "[" * 100_000, "3", "[]", '[{"conversations": [{"from": "human", "value": "x"}]}]']
)
def test_sharegpt_that_is_none(tmp_path: Path, data: str) -> None:
    with pytest.raises(UsageError, match=r"a\.json"):
        read_sharegpt(write(tmp_path / "a.json", data), is_chat=True)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"\xe9\xe9")
    for path in (tmp_path / "none.txt", tmp_path / "latin.txt", write(tmp_path / "empty.txt", "\n")):
        with pytest.raises(UsageError, match=path.name):
            read_texts(path, is_whole=False)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_bodies(fake: FakeServer, endpoint: Any) -> None:
    prompts = PromptOptions(fixed(5), fixed(4), temperature=0.5)
    load = LoadOptions(concurrency=1, num_requests=1)
    script = {"first": 0.01, "gap": 0.01, "role": endpoint == "chat"}
    (stage,) = run(fake.url, load, script=script, prompts=prompts, endpoint=endpoint).result.stages
    (body,) = fake.log()["bodies"]
    assert stage.output_tokens == 4
    assert body["model"] == "fake-1"
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert (body["ignore_eos"], body["temperature"], body["max_tokens"]) == (True, 0.5, 4)
    assert ("messages" in body, "prompt" in body) == (endpoint == "chat", endpoint != "chat")


def test_a_server_that_is_not_known_gets_openai_fields_alone() -> None:
    server = FakeServer("somebody")
    try:
        prompts = PromptOptions(fixed(5), fixed(4))
        run(server.url, LoadOptions(concurrency=1, num_requests=1), script={"first": 0.01}, prompts=prompts)
        (body,) = server.log()["bodies"]
    finally:
        server.stop()
    allowed = {"model", "prompt", "max_tokens", "stream", "stream_options", "script", "authorization"}
    assert set(body) == allowed
    assert body["stream_options"] == {"include_usage": True}
    assert isinstance(body["prompt"], str)
