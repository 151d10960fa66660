"""The keyboard: every key of the help dialog, and the way through the page without a mouse."""

import pytest
from playwright.sync_api import expect

from tests.browser.chat_page import ChatPage
from tests.browser.conftest import OpenPage
from tests.server.fakes import AppServer, FakeEngine, eventually, says

pytestmark = pytest.mark.browser


def test_enter_sends_and_shift_enter_begins_a_line(chat: ChatPage, engine: FakeEngine) -> None:
    expect(chat["#prompt"]).to_be_focused()
    chat.page.keyboard.type("One")
    low = chat["#prompt"].bounding_box()
    chat.press("Shift+Enter")
    chat.page.keyboard.type("two")
    high = chat["#prompt"].bounding_box()
    assert low is not None
    assert high is not None
    assert high["height"] > low["height"]
    assert engine.requests == []
    chat.press("Enter")
    chat.wait()
    assert chat.texts("user") == ["One\ntwo"]
    expect(chat["#prompt"]).to_be_focused()
    chat.page.keyboard.type("Three")
    chat.press("Control+Enter")
    chat.wait()
    assert chat.texts("user") == ["One\ntwo", "Three"]


def test_enter_ends_a_composition_first(chat: ChatPage, engine: FakeEngine) -> None:
    """As where Japanese is typed."""
    chat.page.fill("#prompt", "日本")
    event = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true})"
    chat.page.evaluate(f"document.getElementById('prompt').dispatchEvent({event})")
    expect(chat["#prompt"]).to_have_value("日本")
    assert engine.requests == []


def test_escape_stops(chat: ChatPage, engine: FakeEngine) -> None:
    engine.script, engine.step_s = says("word " * 2000), 0.01
    chat.begin("Hi")
    expect(chat[".assistant .text"]).to_contain_text("word")
    # Of what is open, Escape closes that first.
    chat.click("#open-settings")
    chat.press("Escape")
    expect(chat["#settings"]).to_be_hidden()
    expect(chat["#stop"]).to_be_visible()
    chat.click("#more")
    expect(chat["#menu"]).to_be_visible()
    chat.press("Escape")
    expect(chat["#menu"]).to_be_hidden()
    expect(chat["#stop"]).to_be_visible()
    chat.press("Escape")
    chat.wait()
    assert eventually(lambda: engine.num_active == 0)


def test_arrow_up_edits_the_last_message(chat: ChatPage) -> None:
    chat.press("ArrowUp")
    expect(chat[".editing"]).to_have_count(0)
    chat.send("Hi")
    chat.page.fill("#prompt", "x")
    chat.press("ArrowUp")
    expect(chat[".editing"]).to_have_count(0)
    chat.page.fill("#prompt", "")
    chat.press("ArrowUp")
    expect(chat[".editing textarea"]).to_be_focused()
    chat.page.keyboard.type(" you")
    chat.press("Control+Enter")
    chat.wait()
    assert chat.texts("user") == ["Hi you"]


@pytest.mark.parametrize("command", ["Control", "Meta"])
def test_commands(open_page: OpenPage, server: AppServer, engine: FakeEngine, command: str) -> None:
    chat = open_page(server.url, permissions=["clipboard-read", "clipboard-write"])
    chat.send("Hi")
    engine.script = says("Other")
    chat.press(f"{command}+Shift+Enter")
    expect(chat[".assistant .text"]).to_have_text("Other")
    chat.wait()
    chat.press(f"{command}+Shift+L")
    chat.toast("Copied.")
    assert chat.page.evaluate("navigator.clipboard.readText()") == "Other"
    chat.press(f"{command}+.")
    expect(chat["#settings"]).to_be_visible()
    chat.press("Escape")
    chat.press(f"{command}+/")
    expect(chat["#help"]).to_be_visible()
    # Behind a dialog no command works.
    chat.press(f"{command}+Shift+O")
    chat.click("#close-help")
    assert chat.texts("user") == ["Hi"]
    chat.press(f"{command}+Shift+O")
    expect(chat["#welcome"]).to_be_visible()


def test_slash_goes_to_the_message_field(chat: ChatPage) -> None:
    chat["#log"].focus()
    chat.press("/")
    expect(chat["#prompt"]).to_be_focused()
    assert chat["#prompt"].input_value() == ""
    chat.press("/")
    assert chat["#prompt"].input_value() == "/"


def test_help_names_every_key(chat: ChatPage) -> None:
    chat.menu("open-help")
    rows = [" ".join(row.split()) for row in chat["#help tbody td:first-child"].all_inner_texts()]
    assert rows == [
        *("Enter", "Shift Enter", "Esc", "↑", "Ctrl/⌘ Shift Enter", "Ctrl/⌘ Shift L", "Ctrl/⌘ Shift O"),
        *("Ctrl/⌘ .", "Ctrl/⌘ /", "/"),
    ]
    chat.press("Enter")
    expect(chat["#help"]).to_be_hidden()


def test_the_way_by_tab(chat: ChatPage) -> None:
    """Everything can be reached in the order of the page, and the focus can be seen."""
    chat.send("Hi")
    chat[".skip"].focus()
    wanted = ["model", "new", "open-settings", "theme", "more", "log", "edit", "copy", "retry", "prompt"]
    for expected in wanted:
        chat.press("Tab")
        where, outline = chat.page.evaluate(
            """() => [document.activeElement.id || document.activeElement.dataset.action,
              getComputedStyle(document.activeElement).outlineStyle]"""
        )
        assert where == expected
        assert outline == "solid", where
    chat.page.keyboard.type("x")
    chat.press("Tab")
    expect(chat["#send"]).to_be_focused()


def test_skip_link(chat: ChatPage) -> None:
    chat.page.evaluate("document.activeElement.blur()")
    link = chat[".skip"]
    link.focus()
    box = link.bounding_box()
    assert box
    assert box["y"] >= 0
    chat.press("Enter")
    expect(chat["#prompt"]).to_be_focused()


def test_dialogs_give_the_focus_back(chat: ChatPage) -> None:
    chat["#open-settings"].focus()
    chat.press("Enter")
    expect(chat["#settings"]).to_be_visible()
    chat.press("Escape")
    expect(chat["#open-settings"]).to_be_focused()
