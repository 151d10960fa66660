"""API keys: read from options, file and environment, compared in constant time, demanded on every route.

Nothing is open by being forgotten: what is served without a key is listed here.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from remuda.engine.errors import ConfigError
from remuda.server.errors import ApiError

ENVIRONMENT: Final = "REMUDA_API_KEYS"
# What a load balancer asks: it says whether requests are served and nothing else.
OPEN_PATHS: Final = frozenset({"/health", "/ready"})
# Whoever is to give a key needs the page that asks for it. It is the same for everybody and tells nothing.
CHAT_PAGE: Final = "/"
_OPEN_METHODS: Final = frozenset({"GET", "HEAD"})
_MAX_KEY_CHARS: Final = 512
_KEY: Final = re.compile(rf"[!-~]{{1,{_MAX_KEY_CHARS}}}")


def read_keys(given: Iterable[str], file: Path | None, environment: MutableMapping[str, str]) -> tuple[str, ...]:
    """All keys: those given, those of the file (one a line), those of the environment (by comma or line).

    Takes them out of the environment, which child processes inherit. Raises ConfigError for a file that
    cannot be read, for a file or a variable that has none: whoever gave it wants no open server; and for a key
    that could never arrive in a header. No message shows a key.
    """
    keys = [*given]
    if file is not None:
        keys += _of_file(file)
    if (listed := environment.pop(ENVIRONMENT, None)) is not None:
        keys += _of_environment(listed)
    for number, key in enumerate(keys, 1):
        if not _KEY.fullmatch(key):
            raise ConfigError(f"API key {number} is not 1 to {_MAX_KEY_CHARS} ASCII characters without spaces")
    return tuple(dict.fromkeys(keys))


def _of_file(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the API keys of {file}: {error}") from error
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise ConfigError(f"the API key file {file} holds no key")
    return keys


def _of_environment(listed: str) -> list[str]:
    keys = [key for key in re.split(r"[,\s]+", listed) if key]
    if not keys:
        raise ConfigError(f"{ENVIRONMENT} is set and holds no key; unset it to serve without keys")
    return keys


class ApiKeys:
    """The keys as digests, so that a comparison tells neither how alike nor how long two keys are."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def accept(self, key: bytes) -> bool:
        """The key is one of them. Takes the same time whichever it is, and if it is none."""
        digest = _digest(key)
        is_known = False
        for known in self._digests:
            is_known |= hmac.compare_digest(known, digest)
        return is_known


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class KeyGuard:
    """Answers 401 to whatever has no key, by the path that the router is about to see."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self._is_open(scope) or self._keys.accept(_bearer(scope)):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401,
            "give a valid API key, as `Authorization: Bearer KEY`",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
        await JSONResponse(error.body, error.status_code, headers=error.headers)(scope, receive, send)

    @staticmethod
    def _is_open(scope: Scope) -> bool:
        if scope["type"] == "lifespan":
            return True
        if scope["type"] != "http":
            return False
        method, path = scope["method"], scope["path"]
        return (method in _OPEN_METHODS and path in OPEN_PATHS) or (method == "GET" and path == CHAT_PAGE)


def _bearer(scope: Scope) -> bytes:
    """The key of the only Authorization header; empty, which is no key, where there is none or several."""
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(found) != 1:
        return b""
    scheme, _, key = found[0].partition(b" ")
    return bytes(key.strip()) if scheme.lower() == b"bearer" else b""
