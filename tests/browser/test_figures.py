"""The live figures and their picture: exact where the server counts, marked where the page estimates."""

import json

import pytest
from playwright.sync_api import Route, expect

from tests.browser.chat_page import ChatPage
from tests.browser.conftest import OpenPage
from tests.server.fake_info import INFO
from tests.server.fakes import AppServer, FakeEngine, eventually, says

pytestmark = pytest.mark.browser

# The bytes of <bos><user>Hi<end><assistant>, one token each but for the special ones.
NUM_PROMPT = 6
# Fifty letters and the end.
ANSWER, NUM_ANSWER = "word " * 10, 51


def test_figures_of_an_answer(chat: ChatPage, engine: FakeEngine, server: AppServer) -> None:
    for cell in ("rate", "first", "context"):
        expect(chat[f"#{cell}"]).to_have_text("–")
    expect(chat["#state"]).to_have_text("1 kB")
    engine.script, engine.step_s = says(ANSWER), 0.02
    chat.send("Hi")
    num_prompt = len(engine.requests[0].prompt)
    assert num_prompt == NUM_PROMPT
    expect(chat["#context"]).to_have_text(str(num_prompt + NUM_ANSWER))
    rate = float(chat["#rate"].inner_text())
    # A step takes 20 ms at least; the first token may come late to the page.
    assert 0 < rate < 60
    first = chat["#first"].inner_text()
    assert first.endswith((" ms", " s"))
    expect(chat[".numbers"]).to_have_text(f"{NUM_ANSWER} tokens · {rate:.1f} a second · first after {first}")
    chat.send("Hi")
    expect(chat["#context"]).to_have_text(str(len(engine.requests[1].prompt) + NUM_ANSWER))
    expect(chat["#state"]).to_have_text("1 kB")
    assert server.records[-1].num_prompt_tokens == len(engine.requests[1].prompt)


def test_the_context_is_exact_while_it_grows(chat: ChatPage, engine: FakeEngine) -> None:
    engine.script, engine.step_s = says("word " * 200), 0.02
    chat.begin("Hi")
    expect(chat[".assistant .text"]).to_contain_text("word")
    seen = set()
    for _ in range(10):
        text, shown = chat.page.evaluate(
            "[document.getElementById('context').innerText, document.querySelector('.assistant .text').innerText]"
        )
        assert "≈" not in text
        seen.add(int(text))
        chat.page.wait_for_timeout(100)
    assert len(seen) > 3
    assert len(shown) > 10
    expect(chat["#state"]).to_have_text("1 kB")
    chat.press("Escape")
    chat.wait()
    expect(chat["#context"]).not_to_contain_text("≈")


def test_an_estimate_says_so(chat: ChatPage, engine: FakeEngine) -> None:
    engine.running.clear()
    chat.begin("Hi, how are you?")
    expect(chat["#context"]).to_have_text("≈ 4")
    expect(chat["#context"]).to_have_attribute("title", "Estimated until the server has counted")
    assert eventually(lambda: engine.num_active == 1)
    engine.running.set()
    chat.wait()
    expect(chat["#context"]).not_to_contain_text("≈")


def test_without_counts_the_chunks_are_counted(chat: ChatPage) -> None:
    """As of a server that does not tell the usage."""
    chunk = {"choices": [{"index": 0, "delta": {"content": "ab "}, "finish_reason": None}]}
    body = f"data: {json.dumps(chunk)}\n\n" * 30 + "data: [DONE]\n\n"

    def answer(route: Route) -> None:
        route.fulfill(status=200, headers={"content-type": "text/event-stream"}, body=body)

    chat.page.route("**/v1/chat/completions", answer)
    chat.send("Hi")
    expect(chat["#context"]).to_have_text("≈ 31")


def test_the_picture_says_that_the_state_stays(chat: ChatPage, engine: FakeEngine) -> None:
    chart, per_token = chat["#chart"], 2 * (INFO.num_layers // 2) * INFO.hidden_size * 2
    expect(chart).to_have_attribute("aria-label", at(0, per_token))
    lines = [line_of_state(chat)]
    for number in range(3):
        engine.script = says("word " * 20 * (number + 1))
        chat.send("Hi")
        num_tokens = len(engine.requests[-1].prompt) + 100 * (number + 1) + 1
        expect(chart).to_have_attribute("aria-label", at(num_tokens, per_token))
        lines.append(line_of_state(chat))
    # Level in each, and as long as the context is.
    assert all(start_y == end_y for _, start_y, _, end_y in lines)
    assert all(end_x > start_x for start_x, _, end_x, _ in lines[1:])
    expect(chat["#legend-state"]).to_have_text("1 kB")
    expect(chat["#basis"]).to_contain_text("2 × 2 layers × 32 wide × 2 bytes for each token")


def at(num_tokens: int, per_token: int) -> str:
    """What the picture says in words."""
    cache = num_tokens * per_token
    shown = f"{cache} B" if cache < 1000 else f"{round(cache / 1000, 1 if cache < 99_500 else 0):g} kB"
    if 1000 <= cache < 9_995:
        shown = f"{round(cache / 1000, 2):g} kB"
    return (
        f"At {num_tokens} tokens of context the state takes 1 kB, as at any length; a KV cache would take {shown}."
    )


def line_of_state(chat: ChatPage) -> tuple[float, ...]:
    """x and y of its start and end."""
    path = chat["#chart path.stays:not(.ahead)"].get_attribute("d")
    assert path
    return tuple(float(number) for number in path.removeprefix("M").replace("L", " ").split(" "))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (311_296, "311 kB"),
        (999_600, "1 MB"),
        (12_582_912, "12.6 MB"),
        (2.5e12, "2.5 TB"),
    ],
)
def test_bytes(chat: ChatPage, value: float, shown: str) -> None:
    assert chat.page.evaluate("shownBytes", value) == shown


@pytest.mark.parametrize(("ms", "shown"), [(0.4, "0 ms"), (999, "999 ms"), (1234, "1.23 s"), (61_234, "61.2 s")])
def test_seconds(chat: ChatPage, ms: float, shown: str) -> None:
    assert chat.page.evaluate("shownSeconds", ms) == shown


@pytest.mark.parametrize(("rate", "shown"), [(8.46, "8.5"), (99.6, "100"), (2400.4, "2,400")])
def test_rates(chat: ChatPage, rate: float, shown: str) -> None:
    assert chat.page.evaluate("shownRate", rate) == shown


@pytest.mark.parametrize(
    ("number", "shown"), [(1, "1"), (12_000, "12,000"), (3_963_136, "4 million"), (1.34e9, "1.3 billion")]
)
def test_counts(chat: ChatPage, number: float, shown: str) -> None:
    assert chat.page.evaluate("shownCount", number) == shown


def test_on_a_narrow_screen_the_picture_is_behind_a_button(open_page: OpenPage, server: AppServer) -> None:
    chat = open_page(server.url, viewport={"width": 375, "height": 700})
    expect(chat["#picture"]).to_be_hidden()
    for is_shown in (True, False):
        chat.click("#show-chart")
        expect(chat["#picture"]).to_be_visible(visible=is_shown)
        expect(chat["#show-chart"]).to_have_attribute("aria-expanded", str(is_shown).lower())
