"""The chat page as a test sees it: what a user does, and what stands there afterwards."""

from typing import Any

from playwright.sync_api import Locator, Page, expect

from tests.server.fakes import eventually


class ChatPage:
    """A page of `browser` at `url`. `errors`: what the page did not expect, which a test must find empty."""

    def __init__(self, context: Any, url: str) -> None:
        self.page: Page = context.new_page()
        self.url = url
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._on_console)

    def _on_console(self, message: Any) -> None:
        # Chromium logs each answer that is an error; the tests that want one look at the page.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.errors.append(message.text)

    def open(self) -> "ChatPage":
        """Load the page and wait until it knows the model."""
        self.page.goto(self.url)
        expect(self.page.locator("#model option")).not_to_have_count(0)
        return self

    def __getitem__(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def click(self, selector: str) -> None:
        """Click the one element there."""
        self.page.locator(selector).click()

    def press(self, keys: str) -> None:
        """Keys, to whatever has the focus."""
        self.page.keyboard.press(keys)

    def begin(self, text: str) -> None:
        """Send a message once the page lets one be sent, and do not wait for the answer."""
        self.page.fill("#prompt", text)
        expect(self.page.locator("#send")).to_be_enabled()
        self.page.press("#prompt", "Enter")

    def send(self, text: str) -> None:
        """Send a message and wait for the end of the answer."""
        self.begin(text)
        self.wait()

    def wait(self) -> None:
        """Until no answer is coming."""
        expect(self.page.locator("body")).not_to_have_class("busy")

    def until(self, condition: str, within_s: float = 30) -> None:
        """Until an expression is true. Playwright's own way evaluates strings in the page, which may not."""
        assert eventually(lambda: bool(self.page.evaluate(condition)), within_s), condition

    def texts(self, role: str) -> list[str]:
        """Of all messages of a role, what is to be read."""
        return self.page.locator(f".{role} .text").all_inner_texts()

    def menu(self, name: str) -> None:
        """Choose from the menu."""
        self.page.click("#more")
        self.page.click(f"#{name}")

    def toast(self, text: str) -> None:
        """Expect a note."""
        expect(self.page.locator("#toast.shown p")).to_have_text(text)

    def stored(self, storage: str) -> dict[str, str]:
        """What a storage of the browser holds for the page."""
        found: dict[str, str] = self.page.evaluate(f"({{...{storage}}})")
        return found
