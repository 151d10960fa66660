"""A conversation on the page: every button of it, what the engine gets, and what is kept."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.chat_page import ChatPage
from tests.browser.conftest import OpenPage
from tests.server.fakes import TOKENIZER, AppServer, FakeEngine, eventually, says

pytestmark = pytest.mark.browser

HI = "<bos><user>Hi<end><assistant>"


def prompt_of(engine: FakeEngine, number: int = -1) -> str:
    """The text that the engine was given."""
    return str(TOKENIZER.decode(engine.requests[number].prompt, skip_special_tokens=False))


def test_a_message_is_answered(chat: ChatPage, engine: FakeEngine) -> None:
    expect(chat["#welcome"]).to_be_visible()
    expect(chat["#send"]).to_be_disabled()
    chat.page.fill("#prompt", "Hi")
    chat.click("#send")
    chat.wait()
    assert (chat.texts("user"), chat.texts("assistant")) == (["Hi"], ["Hello there"])
    assert prompt_of(engine) == HI
    assert chat["#prompt"].input_value() == ""
    expect(chat["#welcome"]).to_be_hidden()
    expect(chat["#announcer"]).to_have_text("Answer: Hello there")


def test_the_next_message_comes_after_all_others(chat: ChatPage, engine: FakeEngine) -> None:
    chat.send("Hi")
    engine.script = says("Again")
    chat.send("  And now?\nWell?  ")
    assert prompt_of(engine) == f"{HI}Hello there<end><user>And now?\nWell?<end><assistant>"
    assert chat.texts("assistant") == ["Hello there", "Again"]


def test_white_space_is_no_message(chat: ChatPage, engine: FakeEngine) -> None:
    chat.page.fill("#prompt", " \n ")
    expect(chat["#send"]).to_be_disabled()
    chat.page.press("#prompt", "Enter")
    expect(chat["#welcome"]).to_be_visible()
    assert engine.requests == []


def test_a_suggestion_is_sent(chat: ChatPage, engine: FakeEngine) -> None:
    expect(chat[".chip"]).to_have_count(3)
    text = chat[".chip"].nth(1).inner_text()
    chat[".chip"].nth(1).click()
    chat.wait()
    assert chat.texts("user") == [text]
    assert text in prompt_of(engine)


def test_stop_frees_the_request_in_the_engine(chat: ChatPage, engine: FakeEngine, server: AppServer) -> None:
    engine.script, engine.step_s = says("word " * 2000), 0.01
    chat.begin("Hi")
    expect(chat[".assistant .text"]).to_contain_text("word word")
    expect(chat["#send"]).to_be_hidden()
    assert engine.num_active == 1
    chat.click("#stop")
    chat.wait()
    assert eventually(lambda: engine.num_active == 0 and server.link.num_requests == 0)
    assert len(engine.aborts) == 1
    expect(chat[".assistant .numbers"]).to_contain_text("stopped")
    (text,) = chat.texts("assistant")
    assert text.startswith("word word")
    assert len(text) < 9000
    expect(chat["#stop"]).to_be_hidden()
    # What has come is part of the conversation.
    engine.script, engine.step_s = says("Yes"), 0
    chat.send("Go on")
    assert f"{HI}{text[:9]}" in prompt_of(engine)


def test_stop_while_the_request_waits(chat: ChatPage, engine: FakeEngine) -> None:
    engine.running.clear()
    chat.begin("Hi")
    assert eventually(lambda: engine.num_active == 1)
    expect(chat[".waiting"]).to_be_visible()
    chat.click("#stop")
    chat.wait()
    assert eventually(lambda: engine.num_active == 0)
    engine.running.set()
    assert chat.texts("assistant") == [""]
    expect(chat['.assistant [data-action="copy"]']).to_have_count(0)
    expect(chat['.assistant [data-action="retry"]']).to_be_visible()


def test_retry_writes_the_last_answer_anew(chat: ChatPage, engine: FakeEngine) -> None:
    chat.send("Hi")
    chat.send("More")
    expect(chat['[data-action="retry"]:visible']).to_have_count(1)
    engine.script = says("Other")
    chat.click('[data-action="retry"]:visible')
    chat.wait()
    assert chat.texts("assistant") == ["Hello there", "Other"]
    assert prompt_of(engine, -1) == prompt_of(engine, -2)


def test_edit_drops_what_came_after(chat: ChatPage, engine: FakeEngine) -> None:
    for text in ("Hi", "More", "Most"):
        chat.send(text)
    chat['.user [data-action="edit"]'].nth(1).click()
    field = chat[".editing textarea"]
    expect(field).to_be_focused()
    assert field.input_value() == "More"
    field.fill("Less")
    chat.click('[data-action="save-edit"]')
    chat.wait()
    assert chat.texts("user") == ["Hi", "Less"]
    assert prompt_of(engine) == f"{HI}Hello there<end><user>Less<end><assistant>"


def test_edit_can_be_left(chat: ChatPage, engine: FakeEngine) -> None:
    chat.send("Hi")
    for leave in (lambda: chat.click('[data-action="cancel-edit"]'), lambda: chat.press("Escape")):
        chat.click('.user [data-action="edit"]')
        chat[".editing textarea"].fill("Changed")
        leave()
        expect(chat[".editing"]).to_have_count(0)
        assert chat.texts("user") == ["Hi"]
    # An empty message is not sent; the field stays.
    chat.click('.user [data-action="edit"]')
    chat[".editing textarea"].fill(" ")
    chat.click('[data-action="save-edit"]')
    expect(chat[".editing textarea"]).to_be_focused()
    assert len(engine.requests) == 1


def test_an_edit_waits_for_an_answer_under_way(chat: ChatPage, engine: FakeEngine) -> None:
    chat.send("Hi")
    chat.click('.user [data-action="edit"]')
    engine.running.clear()
    chat.begin("Other")
    assert eventually(lambda: engine.num_active == 1)
    chat[".editing textarea"].fill("Mine")
    chat.click('[data-action="save-edit"]')
    expect(chat[".editing textarea"]).to_have_value("Mine")
    engine.running.set()
    chat.wait()
    chat.click('[data-action="save-edit"]')
    chat.wait()
    assert chat.texts("user") == ["Mine"]


def test_new_conversation_and_undo(chat: ChatPage, engine: FakeEngine) -> None:
    chat.send("Hi")
    chat.click("#new")
    expect(chat["#welcome"]).to_be_visible()
    chat.toast("This is a new conversation.")
    chat.click("#toast button")
    assert chat.texts("assistant") == ["Hello there"]
    chat.click("#new")
    chat.send("Fresh")
    assert prompt_of(engine) == "<bos><user>Fresh<end><assistant>"


def test_new_conversation_ends_the_answer_under_way(chat: ChatPage, engine: FakeEngine) -> None:
    engine.script, engine.step_s = says("word " * 2000), 0.01
    chat.begin("Hi")
    expect(chat[".assistant .text"]).to_contain_text("word")
    chat.click("#new")
    expect(chat["#welcome"]).to_be_visible()
    chat.wait()
    assert eventually(lambda: engine.num_active == 0)
    expect(chat["#context"]).to_have_text("–")
    chat.click("#toast button")
    expect(chat[".assistant .numbers"]).to_contain_text("stopped")


def test_copy(open_page: OpenPage, server: AppServer, engine: FakeEngine) -> None:
    chat = open_page(server.url, permissions=["clipboard-read", "clipboard-write"])
    engine.script = says("**Bold** words\n\n```py\nx = 1\n```")
    chat.send("Hi")
    chat.click('.assistant [data-action="copy"]')
    chat.toast("Copied.")
    assert chat.page.evaluate("navigator.clipboard.readText()") == "**Bold** words\n\n```py\nx = 1\n```"
    chat.click(".copy-code")
    assert chat.page.evaluate("navigator.clipboard.readText()") == "x = 1"


def test_copy_where_the_page_is_not_secure(chat: ChatPage) -> None:
    """Over HTTP from another machine there is no clipboard API."""
    chat.send("Hi")
    chat.page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    chat.page.evaluate("document.addEventListener('copy', () => { window.copied = String(getSelection()); })")
    chat.click('.assistant [data-action="copy"]')
    chat.toast("Copied.")
    assert chat.page.evaluate("window.copied") == "Hello there"


def test_export_and_import(open_page: OpenPage, server: AppServer, tmp_path: Path) -> None:
    chat = open_page(server.url)
    chat.click("#more")
    expect(chat["#export"]).to_be_disabled()
    chat.press("Escape")
    chat.send("Hi")
    with chat.page.expect_download() as found:
        chat.menu("export")
    file = tmp_path / found.value.suggested_filename
    found.value.save_as(file)
    content = json.loads(file.read_text())
    assert (content["format"], content["version"], content["model"]) == ("remuda-chat", 1, "fake")
    assert [(m["role"], m["content"]) for m in content["messages"]] == [
        ("user", "Hi"),
        ("assistant", "Hello there"),
    ]
    other = open_page(server.url)
    load(other, file)
    other.toast("Imported 2 messages.")
    assert other.texts("assistant") == chat.texts("assistant")
    assert other[".numbers"].all_inner_texts() == chat[".numbers"].all_inner_texts()
    other.page.reload()
    assert other.texts("user") == ["Hi"]


def load(chat: ChatPage, file: Path) -> None:
    """Import a file by the menu."""
    with chat.page.expect_file_chooser() as chooser:
        chat.menu("import")
    chooser.value.set_files(file)


HEAD = {"format": "remuda-chat", "version": 1}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "The file is not JSON."),
        ("null", "The file is not a conversation that this page exported."),
        ('{"messages": []}', "The file is not a conversation that this page exported."),
        (json.dumps({**HEAD, "version": 2}), "The file has version 2, this page reads version 1."),
        (json.dumps(HEAD), "The file has no list of messages."),
        (
            json.dumps(
                {**HEAD, "messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}
            ),
            "Message 2 of the file has no role user or assistant, or no text.",
        ),
        (
            json.dumps({**HEAD, "messages": [{"role": "user", "content": 3}]}),
            "Message 1 of the file has no role user or assistant, or no text.",
        ),
    ],
)
def test_files_that_are_none(chat: ChatPage, tmp_path: Path, content: str, problem: str) -> None:
    file = tmp_path / "chat.json"
    file.write_text(content)
    chat.send("Hi")
    load(chat, file)
    chat.toast(problem)
    assert chat.texts("user") == ["Hi"]


def test_a_reload_keeps_the_conversation(chat: ChatPage, engine: FakeEngine) -> None:
    chat.send("Hi")
    numbers = chat[".numbers"].inner_text()
    chat.page.reload()
    assert (chat.texts("user"), chat.texts("assistant")) == (["Hi"], ["Hello there"])
    assert chat[".numbers"].inner_text() == numbers
    chat.send("More")
    assert prompt_of(engine) == f"{HI}Hello there<end><user>More<end><assistant>"
    assert "remuda-chat-conversation" in chat.stored("sessionStorage")
    assert "remuda-chat-conversation" not in chat.stored("localStorage")


def test_a_reload_in_the_middle_keeps_what_has_come(chat: ChatPage, engine: FakeEngine) -> None:
    engine.script, engine.step_s = says("word " * 2000), 0.01
    chat.begin("Hi")
    expect(chat[".assistant .text"]).to_contain_text("word word")
    chat.page.reload()
    assert eventually(lambda: engine.num_active == 0)
    expect(chat[".assistant .numbers"]).to_contain_text("stopped")
    assert chat.texts("assistant")[0].startswith("word word")


def test_a_conversation_too_long_to_keep(chat: ChatPage) -> None:
    full = "throw new DOMException('full', 'QuotaExceededError')"
    chat.page.evaluate(f"() => {{ Storage.prototype.setItem = () => {{ {full}; }}; }}")
    chat.send("Hi")
    chat.toast("The conversation is too long to be kept over a reload; export it.")
    assert chat.texts("assistant") == ["Hello there"]


def test_the_model_that_is_picked_is_asked(chat: ChatPage) -> None:
    assert chat["#model option"].all_inner_texts() == ["fake", "org/alias"]
    chat.page.select_option("#model", "org/alias")
    with chat.page.expect_request("**/v1/chat/completions") as found:
        chat.send("Hi")
    assert found.value.post_data_json["model"] == "org/alias"
