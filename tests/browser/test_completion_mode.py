"""A base model without a chat template: the page goes on with a text, and adds nothing to it."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.browser.chat_page import ChatPage
from tests.browser.conftest import OpenPage
from tests.server.fakes import AppServer, FakeEngine, byte_tokenizer, says

pytestmark = pytest.mark.browser


@pytest.fixture
def base(engine: FakeEngine) -> Iterator[AppServer]:
    """A server of a model without a template."""
    running = AppServer(engine, byte_tokenizer(template=None))
    yield running
    running.stop()


@pytest.fixture
def chat(open_page: OpenPage, base: AppServer) -> ChatPage:
    return open_page(base.url)


def test_it_says_so(chat: ChatPage) -> None:
    expect(chat["#welcome-text"]).to_contain_text("It has no chat template")
    expect(chat["#prompt"]).to_have_attribute("placeholder", "Write the beginning of a text")


def test_the_text_goes_on(chat: ChatPage, engine: FakeEngine) -> None:
    engine.script = says(" there was a *dog*.")
    with chat.page.expect_request("**/v1/completions") as found:
        chat.send("Once ")
    body = found.value.post_data_json
    assert (body["prompt"], body["max_tokens"]) == ("Once ", 512)
    assert "messages" not in body
    with chat.page.expect_request("**/v1/completions") as found:
        chat.send(" And then")
    assert found.value.post_data_json["prompt"] == "Once  there was a *dog*. And then"
    # Its stars are part of the text.
    assert chat[".assistant .text"].first.text_content() == " there was a *dog*."
    chat.page.reload()
    expect(chat[".assistant .text"].first).to_have_text("there was a *dog*.")
    expect(chat[".assistant em"]).to_have_count(0)


def test_stop_and_figures(chat: ChatPage, engine: FakeEngine) -> None:
    engine.script, engine.step_s = says("a line\n" * 2000), 0.01
    chat.begin("Go")
    expect(chat[".assistant .text"]).to_contain_text("a line")
    chat.press("Escape")
    chat.wait()
    expect(chat[".assistant .numbers"]).to_contain_text("stopped")
    assert int(chat["#context"].inner_text()) > len("Go")
