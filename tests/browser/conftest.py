"""Fixtures: one headless Chromium, and the chat page over a scripted engine.

Without a browser the tests are skipped with the reason, unless REMUDA_BROWSER_TESTS=required.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.browser.chat_page import ChatPage
from tests.browser.chrome import MissingBrowserError, launched
from tests.server.conftest import demo, engine, server  # noqa: F401
from tests.server.fakes import AppServer


def missing(error: MissingBrowserError) -> None:
    """Skip, or fail where browser tests must not be left out."""
    if os.environ.get("REMUDA_BROWSER_TESTS") == "required":
        pytest.fail(str(error))
    pytest.skip(str(error))


# Not of the session: playwright keeps an event loop in this thread, in which others could start none.
@pytest.fixture(scope="package")
def chromium() -> Iterator[Any]:
    """The browser."""
    try:
        with launched() as browser:
            yield browser
    except MissingBrowserError as error:
        missing(error)


OpenPage = Callable[..., ChatPage]


@pytest.fixture
def open_page(chromium: Any) -> Iterator[OpenPage]:
    """Opens a page in a context of its own, with the options of playwright's new_context."""
    opened: list[ChatPage] = []
    contexts = []

    def open_one(url: str, *, ready: bool = True, **options: Any) -> ChatPage:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = ChatPage(context, url)
        opened.append(page)
        if ready:
            page.open()
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert [error for page in opened for error in page.errors] == []


@pytest.fixture
def chat(open_page: OpenPage, server: AppServer) -> ChatPage:  # noqa: F811
    """The page over the scripted engine, on a wide screen."""
    return open_page(server.url)
