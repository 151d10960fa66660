"""The pages for browsers, `/` and `/docs`: whole in one answer, and allowed nothing beyond it."""

import base64
import hashlib
import re

import httpx2
import pytest

from remuda.server.static_page import StaticPage, content_policy

PAGES = {"/": "chat/page.html", "/docs": "docs.html"}


def digests(kind: str, page: str) -> list[str]:
    """The sources that a policy must list for the page's inline scripts or styles."""
    texts = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts]


@pytest.mark.parametrize("path", PAGES)
def test_the_policy_allows_what_is_on_the_page_alone(http: httpx2.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    directives = {}
    for directive in answer.headers["content-security-policy"].split("; "):
        name, *sources = directive.split(" ")
        directives[name] = sources
    assert directives.pop("script-src") == digests("script", answer.text)
    assert directives.pop("style-src") == digests("style", answer.text)
    assert directives == {
        "default-src": ["'none'"],
        "img-src": ["data:"],
        "connect-src": ["'self'"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
        "require-trusted-types-for": ["'script'"],
        "trusted-types": ["'none'"],
    }
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", PAGES)
def test_the_page_is_whole(http: httpx2.Client, path: str) -> None:
    page = http.get(path).text
    assert page == StaticPage(PAGES[path]).text
    assert "@include" not in page
    assert not re.search(r"<(script|style|link|img|iframe)[^>]* (src|href)=(?![\"']?data:)", page)
    assert not re.search(r"(url|(?<!#)import)\(|@import", page)
    # What a policy by hashes would stop without a word.
    assert not re.search(r"<[a-z][^>]* (style|on[a-z]+)=", page)
    assert page.count("<script>") == page.count("</script>") == len(digests("script", page))


def test_no_script_makes_html_of_text() -> None:
    page = StaticPage("chat/page.html").text
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert forbidden not in page


def test_pages_are_not_in_the_schema(http: httpx2.Client) -> None:
    assert not set(PAGES) & set(http.get("/openapi.json").json()["paths"])


def test_other_methods(http: httpx2.Client) -> None:
    answer = http.post("/")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET"


def test_every_block_has_its_hash() -> None:
    policy = content_policy("<script>a</script><style>b</style><script>c</script>")
    assert len(re.findall(r"'sha256-[\w+/]{43}='", policy)) == 3
    assert content_policy("<script>a</script><style>b</style>") != content_policy(
        "<script>x</script><style>b</style>"
    )
