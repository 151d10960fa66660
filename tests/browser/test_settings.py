"""The settings dialog: what each field allows, what a request then asks for, and what is kept."""

from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.chat_page import ChatPage
from tests.server.fakes import FakeEngine

pytestmark = pytest.mark.browser


def fill(chat: ChatPage, **typed: str) -> None:
    """Open the dialog and type."""
    chat.click("#open-settings")
    for name, text in typed.items():
        chat.page.fill(f"#setting-{name}", text)


def save(chat: ChatPage) -> None:
    chat.click("#settings button[type=submit]")
    expect(chat["#settings"]).to_be_hidden()


def sent(chat: ChatPage) -> dict[str, Any]:
    """The body of the next request."""
    with chat.page.expect_request("**/v1/chat/completions") as found:
        chat.send("Hi")
    body: dict[str, Any] = found.value.post_data_json
    return body


def test_what_is_asked_without_settings(chat: ChatPage) -> None:
    body = sent(chat)
    assert body == {
        "model": "fake",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 512,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }


def test_every_setting_is_asked_for(chat: ChatPage, engine: FakeEngine) -> None:
    numbers = {"temperature": "0.5", "top_p": "0.9", "top_k": "40", "min_p": "0.05", "repetition_penalty": "1.1"}
    fill(chat, **numbers, max_tokens="7", seed="-3", stop="END\n\\n\\n\n\n z")
    save(chat)
    body = sent(chat)
    found = {name: body[name] for name in (*numbers, "max_tokens", "seed", "stop")}
    assert found == {
        **{"temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1},
        **{"max_tokens": 7, "seed": -3, "stop": ["END", "\n\n", " z"]},
    }
    params = engine.requests[-1].params
    assert (params.temperature, params.top_k, params.max_tokens, params.seed) == (0.5, 40, 7, -3)
    assert chat.texts("assistant") == ["Hello t"]
    expect(chat[".numbers"]).to_contain_text("cut at the most new tokens")


def test_the_system_prompt_comes_first(chat: ChatPage) -> None:
    fill(chat, system="  Be brief.\n")
    save(chat)
    assert sent(chat)["messages"][0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("name", "good", "bad", "complaint"),
    [
        ("temperature", ["0", "2", "", " 1 "], ["-0.1", "2.1"], "Temperature must be from 0 to 2."),
        ("temperature", [], ["x", "1,5", "NaN", "1e999"], "Temperature must be a number."),
        ("top_p", ["0.0001", "1"], ["0", "1.1", "-1"], "Top p must be above 0 and at most 1."),
        ("top_k", ["-1", "0", "50"], ["-2"], "Top k must be from -1 to 1000000000."),
        ("top_k", [], ["1.5"], "Top k must be a whole number."),
        ("min_p", ["0", "1"], ["-0.1", "1.01"], "Min p must be from 0 to 1."),
        ("repetition_penalty", ["0.01", "100"], ["0", "101"], "Repetition penalty must be from 0.01 to 100."),
        ("max_tokens", ["1", "2147483647"], ["0", "2147483648"], "Most new tokens must be from 1 to 2147483647."),
        ("seed", ["0", "-5", "9007199254740991"], ["0.5", "9007199254740992"], "Seed must be a whole number."),
        ("stop", ["a", "x" * 256, "\n".join("abcdefghijklmnop")], ["\n".join("abcdefghijklmnopq")],
         "There may be 16 stop texts at most, not 17."),
        ("stop", [], ["x" * 257], "A stop text may have 256 characters at most, not 257."),
    ],
)  # fmt: skip
def test_what_a_field_allows(chat: ChatPage, name: str, good: list[str], bad: list[str], complaint: str) -> None:
    for text in good:
        fill(chat, **{name: text})
        expect(chat[f"#setting-{name}-wrong"]).to_have_text("")
        save(chat)
    for text in bad:
        if chat["#settings"].is_hidden():
            fill(chat)
        chat.page.fill(f"#setting-{name}", text)
        expect(chat[f"#setting-{name}-wrong"]).to_have_text(complaint)
        field = chat[f"#setting-{name}"]
        expect(field).to_have_attribute("aria-invalid", "true")
        assert f"setting-{name}-wrong" in (field.get_attribute("aria-describedby") or "")
        chat.click("#settings button[type=submit]")
        expect(chat["#settings"]).to_be_visible()
        expect(field).to_be_focused()


def test_cancel_and_defaults(chat: ChatPage) -> None:
    fill(chat, temperature="0.3", max_tokens="9")
    save(chat)
    for leave in (lambda: chat.click("#cancel-settings"), lambda: chat.press("Escape")):
        fill(chat, temperature="1.9")
        leave()
        expect(chat["#settings"]).to_be_hidden()
    fill(chat)
    assert chat["#setting-temperature"].input_value() == "0.3"
    chat.click("#reset-settings")
    assert chat["#setting-temperature"].input_value() == ""
    assert chat["#setting-max_tokens"].input_value() == "512"
    save(chat)
    assert "temperature" not in sent(chat)


def test_settings_are_kept_in_the_browser(chat: ChatPage) -> None:
    fill(chat, temperature="0.3", system="Be brief.")
    save(chat)
    chat.open()
    fill(chat)
    assert chat["#setting-temperature"].input_value() == "0.3"
    assert "Be brief." in chat.stored("localStorage")["remuda-chat-settings"]
    # What is no longer allowed, or no JSON, is left out.
    for kept, temperature in (('{"temperature": "9", "top_k": 3}', ""), ("{", ""), ('{"temperature": "1"}', "1")):
        chat.page.evaluate("text => localStorage.setItem('remuda-chat-settings', text)", kept)
        chat.open()
        fill(chat)
        assert chat["#setting-temperature"].input_value() == temperature


def background(chat: ChatPage) -> str:
    color: str = chat.page.evaluate("getComputedStyle(document.body).backgroundColor")
    return color


LIGHT, DARK = "rgb(250, 248, 245)", "rgb(22, 20, 18)"


def test_the_theme_follows_the_system_until_one_is_chosen(chat: ChatPage) -> None:
    assert background(chat) == LIGHT
    chat.page.emulate_media(color_scheme="dark")
    assert background(chat) == DARK
    expect(chat["#theme"]).to_have_attribute("aria-label", "Light theme")
    chat.click("#theme")
    assert background(chat) == LIGHT
    expect(chat["#theme"]).to_have_attribute("aria-label", "Dark theme")
    chat.open()
    assert background(chat) == LIGHT
    for choice, color in (("dark", DARK), ("light", LIGHT), ("system", DARK)):
        fill(chat)
        chat.page.select_option("#appearance", choice)
        save(chat)
        assert background(chat) == color
    assert "remuda-chat-theme" not in chat.stored("localStorage")
    chat.page.emulate_media(color_scheme="light")
    assert background(chat) == LIGHT
    expect(chat["#theme"]).to_have_attribute("aria-label", "Dark theme")
