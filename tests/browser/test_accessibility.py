"""axe-core finds nothing serious: in both themes and on a narrow screen, in every state of the page.

Also what axe cannot see: what a screen reader is told and what not, and the width of 375 px.
"""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.chat_page import ChatPage
from tests.browser.chrome import MissingBrowserError, axe_source
from tests.browser.conftest import OpenPage, missing
from tests.browser.test_failures import rejected
from tests.server.fakes import AppServer, FakeEngine, says

pytestmark = pytest.mark.browser

WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 375, "height": 700}
SCREENS: dict[str, dict[str, Any]] = {
    "light": {"viewport": WIDE, "color_scheme": "light"},
    "dark": {"viewport": WIDE, "color_scheme": "dark"},
    "narrow light": {"viewport": NARROW, "color_scheme": "light", "has_touch": True},
    "narrow dark": {"viewport": NARROW, "color_scheme": "dark", "has_touch": True},
}
ANSWER = """# Title

Some **bold** words, `code`, [a link](https://example.org) and

- a list
  - in a list

> quote

```py
print("a long line of code that is wider than a narrow screen is, so that it has to be scrolled")
```

a_very_long_word_without_any_place_to_break_it_that_goes_on_and_on_and_on_and_on_and_on
"""


@pytest.fixture(scope="module")
def axe() -> str:
    try:
        return axe_source()
    except MissingBrowserError as error:
        missing(error)
        raise


def fill_settings_wrongly(chat: ChatPage) -> None:
    chat.click("#open-settings")
    for name in ("temperature", "top_p", "seed"):
        chat.page.fill(f"#setting-{name}", "x")


def open_menu(chat: ChatPage) -> None:
    chat.click("#more")
    expect(chat["#menu"]).to_be_visible()


def begin_edit(chat: ChatPage) -> None:
    chat["[data-action=edit]"].first.click()


def open_key(chat: ChatPage) -> None:
    chat.menu("open-key")
    chat.press("Enter")
    expect(chat["#key-error"]).not_to_be_empty()


def show_chart(chat: ChatPage) -> None:
    if chat["#show-chart"].is_visible():
        chat.click("#show-chart")


STATES: dict[str, Callable[[ChatPage], None]] = {
    "as it is": lambda chat: None,
    "menu": open_menu,
    "settings": fill_settings_wrongly,
    "key": open_key,
    "help": lambda chat: chat.press("Control+/"),
    "edit": begin_edit,
    "chart": show_chart,
    "note": lambda chat: chat.click("[data-action=copy]"),
}


def check(chat: ChatPage, axe: str) -> None:
    """No finding that is serious or worse, and nothing beside the screen."""
    if chat.page.evaluate("typeof axe") == "undefined":
        chat.page.evaluate(axe)
    # What is still changing its colour has not the contrast that it will have.
    chat.page.evaluate("() => Promise.all(document.getAnimations().filter(a => a instanceof CSSTransition)"
                       ".map(a => a.finished.catch(() => {})))")  # fmt: skip
    found = chat.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    told = [
        (finding["id"], node["target"], node["failureSummary"])
        for finding in found["violations"]
        if finding["impact"] in ("serious", "critical")
        for node in finding["nodes"]
    ]
    assert told == []
    assert found["passes"]
    assert chat.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert chat.page.evaluate(
        "document.getElementById('log').scrollWidth <= document.getElementById('log').clientWidth"
    )


@pytest.mark.parametrize("screen", SCREENS)
def test_axe_finds_nothing_serious(
    open_page: OpenPage, server: AppServer, engine: FakeEngine, axe: str, screen: str
) -> None:
    chat = open_page(server.url, **SCREENS[screen])
    check(chat, axe)
    engine.script = says(ANSWER)
    chat.send("Show me all of it")
    for reach in STATES.values():
        reach(chat)
        check(chat, axe)
        chat.press("Escape")
    engine.script, engine.step_s = says("word " * 2000), 0.01
    chat.begin("Hi")
    expect(chat[".assistant .text"].last).to_contain_text("word word")
    check(chat, axe)
    chat.click("#stop")
    chat.wait()
    engine.script, engine.step_s = rejected("QueueFullError", "64 requests wait"), 0
    chat.begin("Hi")
    expect(chat[".failure"]).to_be_visible()
    check(chat, axe)
    server.state.is_draining = True
    chat.page.reload()
    expect(chat["#notice"]).to_be_visible()
    check(chat, axe)


def test_a_screen_reader_hears_the_answer_once(chat: ChatPage, engine: FakeEngine) -> None:
    log = chat["#log"]
    expect(log).to_have_attribute("role", "log")
    expect(log).to_have_attribute("aria-live", "off")
    expect(chat["#announcer"]).to_have_attribute("aria-live", "polite")
    chat.page.evaluate(
        """() => { window.heard = []; const node = document.getElementById("announcer");
          new MutationObserver(() => heard.push(node.textContent)).observe(node, {childList: true}); }"""
    )
    engine.script, engine.step_s = says("One two three four"), 0.02
    chat.begin("Hi")
    expect(chat[".assistant"]).to_have_attribute("aria-busy", "true")
    chat.wait()
    assert chat.page.evaluate("heard") == ["Answer: One two three four"]
    assert chat[".assistant"].get_attribute("aria-busy") is None


def test_landmarks_and_names(chat: ChatPage) -> None:
    chat.send("Hi")
    for landmark in ("banner", "main", "complementary", "navigation"):
        expect(chat.page.get_by_role(landmark)).to_have_count(1)
    for name in ("New conversation", "Settings", "Dark theme", "More", "Send", "Edit", "Copy", "Retry"):
        expect(chat.page.get_by_role("button", name=name, exact=True)).to_have_count(1)
    expect(chat.page.get_by_label("Message", exact=True)).to_be_visible()
    expect(chat.page.get_by_label("Model")).to_be_visible()
    assert chat.page.evaluate("document.documentElement.lang") == "en"


def test_less_motion(open_page: OpenPage, server: AppServer, engine: FakeEngine) -> None:
    running = "document.getAnimations().length"
    for motion, is_moving in (("no-preference", True), ("reduce", False)):
        chat = open_page(server.url, reduced_motion=motion)
        engine.running.clear()
        chat.begin("Hi")
        expect(chat[".waiting"]).to_be_visible()
        assert (chat.page.evaluate(running) > 0) == is_moving
        engine.running.set()
        chat.wait()
