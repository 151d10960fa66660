"""The chat page over the real server and the demo model."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage
from tests.server.conftest import ServerProcess
from tests.server.fakes import eventually

pytestmark = [pytest.mark.browser, pytest.mark.e2e]


def num_running(demo: ServerProcess) -> int:
    """Requests that the server has under way."""
    with demo.http() as http:
        (found,) = re.findall(r"^remuda:num_requests_running\S* (\S+)$", http.get("/metrics").text, re.M)
    return int(float(found))


def test_a_conversation_with_the_demo_model(open_page: OpenPage, demo: ServerProcess) -> None:
    chat = open_page(demo.url)
    assert f"remuda: chat page at {demo.url}/" in demo.log
    assert chat["#model option"].all_inner_texts() == ["demo", "stories"]
    expect(chat["#state"]).to_have_text("311 kB")
    expect(chat["#welcome-text"]).to_contain_text("4 million parameters")
    chat.click("#open-settings")
    chat.page.fill("#setting-temperature", "0")
    chat.click("#settings button[type=submit]")
    chat.send("Hi! How are you today?")
    (text,) = chat.texts("assistant")
    assert text.startswith("I'm doing well, thank you!")
    context = int(chat["#context"].inner_text())
    chat.send("Tell me a story about a little dog.")
    assert int(chat["#context"].inner_text()) > context
    expect(chat["#state"]).to_have_text("311 kB")
    chat.click('[data-action="retry"]:visible')
    chat.wait()
    assert len(chat.texts("assistant")) == 2


def test_stop_gives_the_slot_back(open_page: OpenPage, demo: ServerProcess) -> None:
    chat = open_page(demo.url)
    chat.click("#open-settings")
    chat.page.fill("#setting-max_tokens", "100000")
    chat.page.fill("#setting-min_p", "1")
    chat.click("#settings button[type=submit]")
    # So that the story does not end by itself.
    chat.page.route(
        "**/v1/chat/completions",
        lambda route: route.continue_(post_data={**route.request.post_data_json, "ignore_eos": True}),
    )
    chat.begin("Tell me a story about a little dog.")
    expect(chat[".assistant .text"]).not_to_be_empty()
    assert eventually(lambda: num_running(demo) == 1)
    chat.click("#stop")
    chat.wait()
    assert eventually(lambda: num_running(demo) == 0)
