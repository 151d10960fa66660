"""Makes the pictures of the chat page in docs/images/, of the demo model: python -m tests.browser.screenshots."""

import io
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser.chat_page import ChatPage
from tests.browser.chrome import launched
from tests.server.conftest import serving

IMAGES = Path(__file__).parents[2] / "docs" / "images"
WIDE, NARROW = {"width": 1200, "height": 760}, {"width": 375, "height": 740}
PICTURES: dict[str, dict[str, Any]] = {
    "chat-light": {"viewport": WIDE, "color_scheme": "light"},
    "chat-dark": {"viewport": WIDE, "color_scheme": "dark"},
    "chat-narrow": {"viewport": NARROW, "color_scheme": "light", "device_scale_factor": 2},
}
MESSAGES = ("Hi! How are you today?", "Tell me a story about a little dog.")
# The same answers each time, on one machine.
SEED = "7"


def converse(chat: ChatPage) -> None:
    """Two questions, each with its answer."""
    chat.click("#open-settings")
    chat.page.fill("#setting-temperature", "0.6")
    chat.page.fill("#setting-seed", SEED)
    chat.click("#settings button[type=submit]")
    for text in MESSAGES:
        chat.send(text)
    # The pointer lights up what it stands on.
    chat.page.mouse.move(0, 0)


def write_small(png: bytes, path: Path) -> None:
    """Packed as tightly as PNG allows."""
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(path, optimize=True)
    print(f"{path.relative_to(IMAGES.parents[1])}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """All of them."""
    IMAGES.mkdir(exist_ok=True)
    with serving("demo", "--num-slots", "4") as server, launched() as browser:
        for name, options in PICTURES.items():
            context = browser.new_context(**options)
            chat = ChatPage(context, server.url).open()
            converse(chat)
            if name == "chat-narrow":
                chat.click("#show-chart")
                chat.page.mouse.move(0, 0)
            chat.page.wait_for_timeout(500)
            write_small(chat.page.screenshot(), IMAGES / f"{name}.png")
            context.close()


if __name__ == "__main__":
    main()
