"""Pages of one answer each, with their scripts and styles inside: a browser may load and run nothing else."""

import base64
import hashlib
import re
from importlib.resources import files
from typing import Final

from fastapi.responses import HTMLResponse

_INCLUDE: Final = re.compile(r"@include ([\w-]+\.(?:css|js))")
_INLINE: Final = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


class StaticPage:
    """A file of `server/static`, read once. `@include NAME` in it stands for the file NAME beside it."""

    def __init__(self, path: str) -> None:
        file = files("remuda.server") / "static" / path
        folder = path.rpartition("/")[0]

        def included(found: re.Match[str]) -> str:
            return (files("remuda.server") / "static" / folder / found[1]).read_text(encoding="utf-8")

        self.text: Final = _INCLUDE.sub(included, file.read_text(encoding="utf-8"))
        self.headers: Final = {
            "content-security-policy": content_policy(self.text),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            # It belongs to the version of the server that answers.
            "cache-control": "no-cache",
        }

    def answer(self) -> HTMLResponse:
        """The page."""
        return HTMLResponse(self.text, headers=self.headers)


def content_policy(page: str) -> str:
    """The page may run its own scripts and styles, by their hashes, and ask this server alone.

    Trusted types keep its scripts from making HTML or code of any text.
    """
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(page):
        hashes[kind].append(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
    return (
        f"default-src 'none'; script-src {' '.join(hashes['script'])}; style-src {' '.join(hashes['style'])}; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
