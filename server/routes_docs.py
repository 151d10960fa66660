"""`/docs`: one page that lists what `/openapi.json` says. It loads nothing from anywhere else."""

import base64
import hashlib
import re
from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

_INLINE: Final = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def docs_routes() -> APIRouter:
    """The route."""
    page = (files("remuda.server") / "static" / "docs.html").read_text(encoding="utf-8")
    headers = {"content-security-policy": _policy(page), "x-content-type-options": "nosniff"}
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def show_docs() -> HTMLResponse:
        """The API, to read in a browser."""
        return HTMLResponse(page, headers=headers)

    return router


def _policy(page: str) -> str:
    """The page may run its own script and style, by their hashes, and ask this server alone."""
    hashes = {
        kind: f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for kind, text in _INLINE.findall(page)
    }
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
