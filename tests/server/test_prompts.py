"""prompts: what counts as a prompt, BOS, vocabulary, and messages."""

import asyncio
import json
import threading
from typing import Any

import pytest

from remuda.engine.chat_template import ChatTemplate
from remuda.engine.errors import InvalidRequestError
from remuda.engine.tokenizer import TokenIdTokenizer
from remuda.server.prompts import (
    Prompt,
    check_num_choices,
    check_num_prompt_logprobs,
    encode_chat,
    encode_prompts,
    parse_prompts,
)
from remuda.server.schemas import ChatMessage
from remuda.server.tool_messages import plain_messages
from tests.server.fake_info import ASSISTANT, BOS, END, USER, VOCAB_SIZE
from tests.server.fakes import TEMPLATE, TOKENIZER, byte_tokenizer, ids


def encode(prompt: object, tokenizer: Any = TOKENIZER, add_bos: bool = True) -> list[Prompt]:
    return asyncio.run(encode_prompts(parse_prompts(prompt), tokenizer, VOCAB_SIZE, add_bos=add_bos))


def encode_messages(messages: list[dict[str, Any]], template: str = TEMPLATE) -> list[int]:
    parsed = [ChatMessage.model_validate(message) for message in messages]
    compiled = ChatTemplate(template, "<bos>", "<end>")
    return asyncio.run(encode_chat(parsed, compiled, TOKENIZER)).token_ids


@pytest.mark.parametrize(
    ("prompt", "token_ids"),
    [
        ("Hi", [[BOS, *ids("Hi")]]),
        (["Hi", "é"], [[BOS, *ids("Hi")], [BOS, *ids("é")]]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
        (["Hi", [7]], [[BOS, *ids("Hi")], [7]]),
        ("", [[BOS]]),
        (None, [[BOS]]),
        ("<bos>Hi", [[BOS, *ids("Hi")]]),
        ([VOCAB_SIZE - 1], [[VOCAB_SIZE - 1]]),
    ],
)
def test_prompts(prompt: object, token_ids: list[list[int]]) -> None:
    assert [found.token_ids for found in encode(prompt)] == token_ids


def test_bos_only_where_the_model_wants_it() -> None:
    assert encode("Hi", add_bos=False)[0].token_ids == ids("Hi")
    assert encode("Hi", byte_tokenizer(bos=False))[0].token_ids == ids("Hi")
    assert encode("", add_bos=False)[0].token_ids == [BOS]


def test_added_bos_is_known() -> None:
    assert encode("Hi")[0].has_added_bos
    assert not encode("<bos>Hi")[0].has_added_bos
    assert not encode("Hi", add_bos=False)[0].has_added_bos


@pytest.mark.parametrize(
    "prompt",
    [
        *([], [[]], [[5], []], {}, 5, 5.0, True, [None], [1.5], [5, "x"], ["x", 5], [True], [[5, None]], [[[5]]]),
        *([-1], [VOCAB_SIZE], [10**30], [[5], [VOCAB_SIZE]]),
    ],
    ids=str,
)
def test_bad_prompts(prompt: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        encode(prompt)
    assert caught.value.param == "prompt"


def test_empty_text_without_bos_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="beginning-of-sequence"):
        encode("", byte_tokenizer(bos=False))


def test_text_without_tokenizer_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="token ids"):
        encode("Hi", TokenIdTokenizer())
    assert encode([5], TokenIdTokenizer())[0].token_ids == [5]


def test_long_texts_leave_the_event_loop() -> None:
    text = "long " * 10_000
    assert encode(text)[0].token_ids == [BOS, *ids(text)]


def test_number_of_choices() -> None:
    check_num_choices(8, 128)
    with pytest.raises(InvalidRequestError, match="choices"):
        check_num_choices(9, 128)


def test_chat_has_one_bos() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    assert encode_messages(messages) == [BOS, USER, *ids("Hi"), END, ASSISTANT]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, "user:Hi"),
        ({"role": "developer", "content": "Hi"}, "system:Hi"),
        ({"role": "assistant", "content": None, "refusal": None, "tool_calls": None}, "assistant:"),
        ({"role": "assistant", "content": "Hi", "annotations": [], "audio": None}, "assistant:Hi"),
        ({"role": "assistant", "content": "Hi", "provider_specific_fields": {"refusal": None}}, "assistant:Hi"),
        ({"role": "user", "content": "Hi", "name": "Ann"}, "user:Hi"),
    ],
)
def test_messages(message: dict[str, Any], text: str) -> None:
    assert encode_messages([message], "{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}") == ids(
        text
    )


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages.0.tool_call_id"),
        ({"role": "user", "content": "x", "tool_calls": [{}]}, "messages.0.tool_calls"),
        ({"role": "king", "content": "x"}, "messages.0.role"),
        ({"role": "user", "content": 5}, "messages.0.content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages.0.content.0"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content.0"),
        ({"role": "user", "content": ["x"]}, "messages.0.content.0"),
        ({"role": "assistant", "content": "", "tool_calls": [{}]}, "messages.0.tool_calls.0"),
        ({"role": "user", "content": "x", "cache_control": {}}, "messages.0.cache_control"),
    ],
)
def test_refused_messages(message: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        encode_messages([message])
    assert caught.value.param == param


def test_no_messages() -> None:
    with pytest.raises(InvalidRequestError, match="messages is empty"):
        encode_messages([])


def test_template_that_renders_nothing() -> None:
    with pytest.raises(InvalidRequestError, match="empty prompt"):
        encode_messages([{"role": "user", "content": "x"}], "{{ '' }}")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "x" * 20_000},
        {"role": "user", "content": [{"type": "text", "text": "x" * 20_000}]},
        {"role": "user", "content": [{"type": "text", "text": ""}] * 10_000},
        {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "x" * 20_000}}]},
    ],
)
def test_long_conversations_are_not_prepared_on_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, message: dict[str, Any]
) -> None:
    threads = []

    def note(*args: Any) -> list[dict[str, Any]]:
        threads.append(threading.current_thread())
        return plain_messages(*args)

    monkeypatch.setattr("remuda.server.prompts.plain_messages", note)
    short = {"role": "user", "content": "x"}
    encode_messages([short])
    encode_messages([message])
    encode_messages([short] * 20_000)
    assert threads[0] is threading.main_thread()
    assert threading.main_thread() not in threads[1:]


@pytest.mark.parametrize("item", ["{}", "[]", '""'])
def test_arguments_are_no_way_around_the_limit_of_parts(monkeypatch: pytest.MonkeyPatch, item: str) -> None:
    """In a body they are one string. Together they have 70,000 items, and none of them is parsed."""
    arguments = '{"a": [' + ",".join([item] * 35_000) + "]}"
    message = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": arguments}}]}
    assert encode_messages([message])
    monkeypatch.delattr("remuda.server.tool_messages.json.loads")
    with pytest.raises(InvalidRequestError, match="over the limit of 65536") as caught:
        encode_messages([message, {"role": "user", "content": "x"}, message])
    assert caught.value.param == "messages"


def test_marks_in_strings_of_arguments_are_text() -> None:
    arguments = json.dumps({"code": "{[:" * 70_000})
    message = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": arguments}}]}
    assert encode_messages([message])


def test_prompt_logprobs_of_a_whole_request() -> None:
    check_num_prompt_logprobs([Prompt([5] * 50_000)], 1, "prompt_logprobs")
    check_num_prompt_logprobs([Prompt([5] * 1_000_000)], None, "prompt_logprobs")
    check_num_prompt_logprobs([Prompt([5] * 25_000)], 1, "prompt_logprobs", num_times=2)
    with pytest.raises(InvalidRequestError, match=r"25000 prompt tokens × \(1 \+ 1\) × 3 choices = 150000 "):
        check_num_prompt_logprobs([Prompt([5] * 25_000)], 1, "prompt_logprobs", num_times=3)
    for num_prompts, num_tokens, num_top in ((1, 50_001, 1), (2, 25_001, 1), (1, 4762, 20)):
        with pytest.raises(InvalidRequestError, match="more than the limit of 100000") as caught:
            check_num_prompt_logprobs([Prompt([5] * num_tokens)] * num_prompts, num_top, "prompt_logprobs")
        assert caught.value.param == "prompt_logprobs"
