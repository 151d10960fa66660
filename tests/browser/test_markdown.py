"""Markdown of answers: what it looks like, that text never becomes HTML, and that a stream ends as the whole."""

import random
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.chat_page import ChatPage
from tests.browser.conftest import OpenPage
from tests.server.fakes import AppServer, FakeEngine, says

pytestmark = pytest.mark.browser

RENDER = "text => { const box = element('div'); box.append(renderMarkdown(text)); return box.innerHTML; }"
LINK = '<a href="{0}" target="_blank" rel="noopener noreferrer nofollow" title="{0}">{1}</a>'
CODE = (
    '<div class="code"><div class="bar"><span>{0}</span><button class="quiet copy-code" type="button">Copy code'
    '</button></div><pre tabindex="0"><code>{1}</code></pre></div>'
)


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("", ""),
        ("one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"),
        ("# A\n### B ##\n", "<h3>A</h3><h5>B</h5>"),
        ("#no heading", "<p>#no heading</p>"),
        ("*a* **b** ***c*** _d_ __e__ ~~f~~", "<p><em>a</em> <strong>b</strong> <strong><em>c</em></strong> "
         "<em>d</em> <strong>e</strong> <del>f</del></p>"),
        ("**a *b* c**", "<p><strong>a <em>b</em> c</strong></p>"),
        ("*a **b** c*", "<p><em>a <strong>b</strong> c</em></p>"),
        ("2 * 3 * 4, snake_case_name, **open", "<p>2 * 3 * 4, snake_case_name, **open</p>"),
        (r"\*no\*", "<p>*no*</p>"),
        ("`a < b` ``x ` y`` `open", "<p><code>a &lt; b</code> <code>x ` y</code> `open</p>"),
        ("```py\nx = 1\n\ny\n```\nz", CODE.format("py", "x = 1\n\ny") + "<p>z</p>"),
        ("~~~\n```\n~~~", CODE.format("", "```")),
        ("```\nnot ended", CODE.format("", "not ended")),
        ("- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("1. a\n\n2. b", '<ol><li>a</li></ol><ol start="2"><li>b</li></ol>'),
        ("- a\n  more", "<ul><li>a\nmore</li></ul>"),
        ("text\n- a\ntext", "<p>text</p><ul><li>a</li></ul><p>text</p>"),
        ("> a\n> - b\n\nc", "<blockquote><p>a</p><ul><li>b</li></ul></blockquote><p>c</p>"),
        ("---\n***", "<hr><hr>"),
        ("[a *b*](https://x.org/y)", "<p>" + LINK.format("https://x.org/y", "a <em>b</em>") + "</p>"),
        ("see https://x.org/a_b.", "<p>see " + LINK.format("https://x.org/a_b", "https://x.org/a_b") + ".</p>"),
        ("(http://x.org)", "<p>(" + LINK.format("http://x.org/", "http://x.org") + ")</p>"),
        ("[a](/b) [c](mailto:d)", "<p>[a](/b) [c](mailto:d)</p>"),
    ],
)  # fmt: skip
def test_blocks_and_lines(rendering: ChatPage, text: str, html: str) -> None:
    assert rendering.page.evaluate(RENDER, text) == html


@pytest.fixture(scope="module")
def rendering(chromium: Any) -> Any:
    """A page whose functions are called; no server is asked."""
    from remuda.server.static_page import StaticPage

    page = StaticPage("chat/page.html")
    context = chromium.new_context()
    context.route(
        "**/*", lambda route: route.fulfill(body=page.text, content_type="text/html", headers=page.headers)
    )
    chat = ChatPage(context, "http://localhost/")
    chat.page.goto(chat.url)
    yield chat
    context.close()


HOSTILE = [
    "<img src=x onerror=\"window.hacked = 1\">",
    "<script>window.hacked = 1</script>",
    "<svg onload='window.hacked = 1'>",
    "<iframe src=\"javascript:parent.hacked = 1\"></iframe>",
    "</div></li></ol><h1>Out</h1><form action=https://evil.org><input name=key>",
    "<!-- <style>*{display:none}</style>",
    "[x](javascript:window.hacked=1)",
    "[x]( JaVaScRiPt:window.hacked=1)",
    "[x](data:text/html,<script>window.hacked=1</script>)",
    "[x](https://a.org\" onclick=\"window.hacked=1)",
    "[x](\\x01javascript:window.hacked=1)",
    "![x](https://evil.org/pixel.png)",
    "https://a.org/\"onmouseover=\"window.hacked=1",
    "<https://a.org/><b>bold</b>",
    "[<img src=x onerror=window.hacked=1>](https://a.org)",
    "`<img src=x onerror=window.hacked=1>`",
    "```html\n<script>window.hacked = 1</script>\n```",
    "```\"><img/src/onerror=window.hacked=1>\nx\n```",
    "# <img src=x onerror=window.hacked=1>",
    "- <img src=x onerror=window.hacked=1>\n  - <b>b</b>",
    "> <img src=x onerror=window.hacked=1>",
    "**<img src=x onerror=window.hacked=1>**",
    "&lt;img src=x onerror=window.hacked=1&gt; &#106;avascript:",
    "{{constructor.constructor('window.hacked=1')()}} ${window.hacked=1}",
    "\u202egnp.exe \u2066 \u0000 \ufeff <b>",
]  # fmt: skip
ALLOWED = {
    *("DIV", "SPAN", "P", "H3", "H4", "H5", "H6", "UL", "OL", "LI", "BLOCKQUOTE", "PRE", "CODE", "EM", "STRONG"),
    *("DEL", "HR", "A", "BUTTON"),
}


def check_harmless(chat: ChatPage) -> None:
    """Nothing in the messages but what the renderer makes, no handler, no odd link; no script has run."""
    found = chat.page.evaluate(
        """() => [...document.querySelectorAll("#messages .text *")].map((node) =>
          [node.tagName, [...node.attributes].map((a) => a.name), node.href || null])"""
    )
    for tag, attributes, href in found:
        assert tag in ALLOWED, tag
        assert set(attributes) <= {"class", "type", "tabindex", "href", "target", "rel", "title", "start"}
        assert href is None or href.startswith(("https://", "http://"))
    assert chat.page.evaluate("window.hacked") is None
    assert chat.page.evaluate("document.querySelectorAll('h1').length") == 1


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_stays_text(rendering: ChatPage, text: str) -> None:
    """All of it can be read, and nothing of it runs."""
    found = rendering.page.evaluate(
        """text => { const box = document.createElement("div"); box.append(renderMarkdown(text));
          document.body.append(box);
          const nodes = [...box.querySelectorAll("*")].map((node) =>
            [node.tagName, [...node.attributes].map((a) => a.name), node.href || null]);
          const shown = box.textContent; box.remove(); return [nodes, shown, window.hacked]; }""",
        text,
    )
    nodes, shown, hacked = found
    assert hacked is None
    for tag, attributes, href in nodes:
        assert tag in ALLOWED, tag
        assert set(attributes) <= {"class", "type", "tabindex", "href", "target", "rel", "title", "start"}
        assert href is None or href.startswith(("https://", "http://"))
    # What a link or the line of a fence hides is not to be read; all else is.
    if "](http" not in text and not text.startswith("```"):
        assert shown.count("<") == text.count("<")


def test_a_hostile_answer_a_hostile_user_and_a_reload(
    open_page: OpenPage, server: AppServer, engine: FakeEngine
) -> None:
    chat = open_page(server.url)
    text = "\n\n".join(HOSTILE)
    engine.script = says(text)
    chat.click("#open-settings")
    chat.page.fill("#setting-max_tokens", "9000")
    chat.click("#settings button[type=submit]")
    chat.send(HOSTILE[0] + HOSTILE[1])
    assert chat.texts("user") == [HOSTILE[0] + HOSTILE[1]]
    check_harmless(chat)
    expect(chat[".assistant .text"]).to_contain_text('<img src=x onerror="window.hacked = 1">')
    chat.page.reload()
    expect(chat[".assistant .text"]).to_contain_text('<img src=x onerror="window.hacked = 1">')
    check_harmless(chat)


def test_hostile_failures_and_names(open_page: OpenPage, server: AppServer) -> None:
    image = HOSTILE[0]
    chat = open_page(server.url, ready=False)
    models = {"data": [{"id": image}]}
    chat.page.route("**/v1/models", lambda route: route.fulfill(json=models))
    chat.open()
    chat.page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(status=400, json={"error": {"message": image}})
    )
    chat.begin("Hi")
    expect(chat[".failure p"]).to_have_text(f"The server refused the request: {image}.")
    assert chat["#model option"].all_inner_texts() == [image]
    assert chat.page.evaluate("window.hacked") is None
    assert chat.page.evaluate("document.images.length") == 0


def test_the_browser_itself_refuses_html(chat: ChatPage) -> None:
    """The second wall: trusted types, and no script but the page's own."""
    for attempt in (
        "document.body.innerHTML = '<b>x</b>'",
        "document.body.insertAdjacentHTML('beforeend', '<b>x</b>')",
        "document.write('<b>x</b>')",
    ):
        caught = chat.page.evaluate(
            f"() => {{ try {{ {attempt}; return null; }} catch (e) {{ return e.name; }} }}"
        )
        assert caught == "TypeError", attempt
    chat.page.evaluate("document.body.append(element('img'))")
    chat.page.evaluate("document.querySelector('img').src = 'https://evil.org/x.png'")
    chat.until("document.querySelector('img').complete")
    assert chat.page.evaluate("document.querySelector('img').naturalWidth") == 0
    assert any("Content Security Policy" in error for error in chat.errors)
    chat.errors.clear()


SAMPLE = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
PIECES = [
    SAMPLE[:6000],
    *(
        "```\ncode\n\n\ncode\n```\n\ntext **bold",
        "- a\n- b\n\n- c\n  - d\n\n\ntext",
        "> q\n\n> r\n```\n\n",
        "\n\n\n",
    ),
    "a " * 3000 + "\n\n**b** " + "c " * 3000,
    "```py\n" + "x = 1\n" * 1200 + "\n\n" + "y = 2\n" * 1200 + "```\nend",
    "\n\n".join(HOSTILE),
]
STREAM = """([text, cuts]) => {
  const box = document.createElement("div");
  const stream = new MarkdownStream(box);
  let from = 0;
  for (const cut of [...cuts, text.length]) { stream.append(text.slice(from, cut)); stream.flush(); from = cut; }
  stream.finish();
  return box.innerHTML;
}"""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("number", range(len(PIECES)))
def test_a_stream_ends_as_the_whole(rendering: ChatPage, number: int, seed: int) -> None:
    text, draw = PIECES[number], random.Random(seed)
    cuts = sorted(draw.randrange(len(text) + 1) for _ in range([0, 40, 400][seed]))
    assert rendering.page.evaluate(STREAM, [text, cuts]) == rendering.page.evaluate(RENDER, text)


@pytest.mark.parametrize(
    "part",
    [
        "*",
        "**a ",
        "[",
        "[a](",
        "`",
        "` `` ",
        "_a",
        "~~",
        "> ",
        "- ",
        "# ",
        "http://",
        "\\",
        "***a**",
        "  - a\n",
        "1. ",
    ],
)
def test_no_text_hangs_the_page(rendering: ChatPage, part: str) -> None:
    """100,000 characters of what makes careless parsers slow; the page's own limit of time is playwright's."""
    text = part * (100_000 // len(part))
    shown = rendering.page.evaluate(
        "text => { const box = document.createElement('div'); box.append(renderMarkdown(text)); "
        "return box.textContent.length; }",
        text,
    )
    assert shown <= len(text)
