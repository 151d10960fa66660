"""`/docs` in a browser, under the same policy as the chat page."""

import pytest
from playwright.sync_api import expect

from tests.browser.chat_page import ChatPage

pytestmark = pytest.mark.browser


def test_the_api_reference_is_one_click_away(chat: ChatPage) -> None:
    chat.click("#more")
    chat.click("#menu a")
    expect(chat["h1"]).to_contain_text("Remuda API")
    expect(chat["#about"]).to_contain_text("A star marks what is required.")
    paths = chat["#operations summary code"].all_inner_texts()
    assert "/v1/chat/completions" in paths
    chat["summary"].get_by_text("/v1/chat/completions").click()
    expect(chat["details[open] td code"].first).to_be_visible()
