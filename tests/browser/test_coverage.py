"""No button of the page is left out of these tests."""

import re
from pathlib import Path

import pytest

from remuda.server.static_page import StaticPage

pytestmark = pytest.mark.browser

HERE = Path(__file__).parent


def test_every_button_is_pressed_by_a_test() -> None:
    page = StaticPage("chat/page.html").text
    named = set(re.findall(r'<button id="([\w-]+)"', page))
    actions = set(re.findall(r'actionButton\("([\w-]+)"', page))
    assert len(named) > 15
    assert actions == {"edit", "retry", "copy", "save-edit", "cancel-edit"}
    tests = "\n".join(file.read_text(encoding="utf-8") for file in HERE.glob("test_*.py"))
    pressed = set(re.findall(r'click\("#([\w-]+)"\)', tests)) | set(re.findall(r'menu\("([\w-]+)"\)', tests))
    assert named - pressed == set()
    assert {action for action in actions if f'data-action="{action}"' not in tests} == set()
