"""Long conversations and answers: the page's work for a token does not grow with what is there already."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.chat_page import ChatPage
from tests.browser.test_conversation import load
from tests.server.fakes import FakeEngine, says

pytestmark = pytest.mark.browser

NUM_MESSAGES = 400
# Of one byte each, in paragraphs of 100.
NUM_TOKENS = 10_000
WATCH = """() => {
  window.seen = {batches: 0, nodes: 0, from: performance.now()};
  new MutationObserver((records) => {
    seen.batches += 1;
    for (const record of records) seen.nodes += record.addedNodes.length;
    seen.ms = performance.now() - seen.from;
  }).observe(document.getElementById("messages"), {childList: true, characterData: true, subtree: true});
}"""


def answer_long(chat: ChatPage, engine: FakeEngine, text: str) -> None:
    """Stream a long answer, watched."""
    chat.click("#open-settings")
    chat.page.fill("#setting-max_tokens", str(NUM_TOKENS + 10))
    chat.click("#settings button[type=submit]")
    engine.script, engine.step_s = says(text), 0.0002
    chat.page.evaluate(WATCH)
    chat.begin("Go")
    expect(chat[".assistant .text"].last).to_contain_text("word")
    text_of = "document.querySelector('.assistant:last-child .text').textContent"
    chat.until(f"{text_of}.length > 300")
    chat.page.evaluate("window.early = document.querySelector('.assistant:last-child .text p')")


def finish(chat: ChatPage) -> dict[str, float]:
    chat.until("!document.body.classList.contains('busy')", within_s=120)
    seen: dict[str, float] = chat.page.evaluate("seen")
    return seen


def test_an_answer_of_ten_thousand_tokens(chat: ChatPage, engine: FakeEngine) -> None:
    text = ("word " * 19 + "end\n\n") * (NUM_TOKENS // 100)
    assert len(text) == NUM_TOKENS
    answer_long(chat, engine, text)
    seen = finish(chat)
    # Ten times a second at most, and a few for the beginning and the end; not once a token.
    assert seen["batches"] <= seen["ms"] / 100 + 10
    # Paragraphs that have ended are never made again: the others are those that were open at a tick.
    assert chat.page.evaluate("early.isConnected")
    assert seen["nodes"] <= 4 * seen["batches"] + 3 * NUM_TOKENS / 100
    assert chat[".assistant .text > p"].count() == NUM_TOKENS // 100
    assert chat[".assistant .text"].text_content() == text.replace("\n\n", "")
    expect(chat[".numbers"]).to_contain_text("10,001 tokens")


def test_one_endless_paragraph(chat: ChatPage, engine: FakeEngine) -> None:
    """Beyond some length it grows as plain text, and is rendered once at its end."""
    text = "**word** " * (NUM_TOKENS // 9)
    answer_long(chat, engine, text)
    seen = finish(chat)
    assert seen["batches"] <= seen["ms"] / 100 + 10
    assert chat[".assistant .text strong"].count() == NUM_TOKENS // 9
    assert chat[".assistant .text > p"].count() == 1


def test_hundreds_of_messages(chat: ChatPage, engine: FakeEngine, tmp_path: Path) -> None:
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": f"Message {i}.\n\n- **one**\n- two " + "word " * 25}
        for i in range(NUM_MESSAGES)
    ]
    file = tmp_path / "long.json"
    file.write_text(json.dumps({"format": "remuda-chat", "version": 1, "messages": messages}))
    load(chat, file)
    expect(chat[".message"]).to_have_count(NUM_MESSAGES)
    at_end = "log.scrollHeight - log.scrollTop - log.clientHeight"
    assert chat.page.evaluate(at_end) < 2
    chat.page.evaluate(WATCH)
    engine.script = says("word " * 40)
    chat.send("Hi")
    assert chat[".assistant .text"].last.inner_text() == ("word " * 40).strip()
    seen = chat.page.evaluate("seen")
    assert seen["batches"] <= seen["ms"] / 100 + 10
    # Nothing but the two new messages was made.
    assert seen["nodes"] < 100
    assert chat.page.evaluate(at_end) < 2
    chat.page.reload()
    expect(chat[".message"]).to_have_count(NUM_MESSAGES + 2)


def test_the_view_follows_the_end_unless_the_user_has_left_it(chat: ChatPage, engine: FakeEngine) -> None:
    engine.script, engine.step_s = says("line\n" * 2000), 0.002
    chat.begin("Hi")
    chat.until("log.scrollHeight > log.clientHeight + 200 && log.scrollTop > 100")
    expect(chat["#jump"]).to_be_hidden()
    chat.page.evaluate("log.scrollTo(0, 0)")
    expect(chat["#jump"]).to_be_visible()
    before = chat.page.evaluate("log.scrollHeight")
    chat.until(f"log.scrollHeight > {before}")
    assert chat.page.evaluate("log.scrollTop") == 0
    chat.click("#jump")
    expect(chat["#jump"]).to_be_hidden()
    chat.until("log.scrollTop > 100")
    chat.press("Escape")
    chat.wait()
