"""Finds what the tests of pages run in: a Chromium of this machine, and axe-core."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


class MissingBrowserError(Exception):
    """Something is not installed; says what, and how it is."""


def find_chromium() -> str:
    """The executable: REMUDA_CHROMIUM, or the first of NAMES on the path. Raises MissingBrowserError."""
    found = os.environ.get("REMUDA_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise MissingBrowserError("no Chromium: install it (Debian: chromium) or set REMUDA_CHROMIUM")
    return found


@contextmanager
def launched() -> Iterator[Browser]:
    """A headless Chromium. Raises MissingBrowserError."""
    executable = find_chromium()
    # Its sandbox does not work for root, as whom containers run.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


def axe_source() -> str:
    """The script of axe-core. Raises MissingBrowserError."""
    if not AXE.is_file():
        raise MissingBrowserError("no axe-core: `make browser` installs it, which needs npm")
    return AXE.read_text(encoding="utf-8")
