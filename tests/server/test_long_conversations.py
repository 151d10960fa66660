"""Tens of thousands of items that become one message cost no more than as many messages do."""

import time
from collections.abc import Callable
from typing import Any

from remuda.server.responses_input import parse_input, to_messages
from remuda.server.tool_messages import plain_messages

NUM_ITEMS = 20_000
TEXT = "x" * 150


def work(do: Callable[[], object]) -> float:
    """Seconds of this thread's computing."""
    begin = time.thread_time()
    do()
    return time.thread_time() - begin


def test_messages_of_the_assistant() -> None:
    def items(*roles: str) -> list[dict[str, Any]]:
        return parse_input([{"role": roles[i % len(roles)], "content": TEXT} for i in range(NUM_ITEMS)])

    joined, apart = items("assistant"), items("assistant", "user")
    assert [message.content for message in to_messages(None, joined)] == [TEXT * NUM_ITEMS]
    assert work(lambda: to_messages(None, joined)) < 10 * work(lambda: to_messages(None, apart))


def test_results_of_tools() -> None:
    def messages(*roles: str) -> list[dict[str, Any]]:
        return [{"role": roles[i % len(roles)], "content": TEXT} for i in range(NUM_ITEMS)]

    joined, apart = messages("tool"), messages("tool", "user")
    result = f"<tool_response>\n{TEXT}\n</tool_response>"
    assert plain_messages(joined, ()) == [{"role": "user", "content": "\n".join([result] * NUM_ITEMS)}]
    assert work(lambda: plain_messages(joined, ())) < 20 * work(lambda: plain_messages(apart, ()))
