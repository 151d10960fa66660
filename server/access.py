"""Who may speak to the server, as one policy of ASGI wrappers: hosts, origins of browsers, API keys."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from remuda.engine.errors import ConfigError
from remuda.server.api_keys import OPEN_PATHS, ApiKeys, KeyGuard
from remuda.server.errors import ApiError

_EXPOSED_HEADERS: Final = ("x-request-id", "retry-after")
_MAX_PREFLIGHT_AGE_S: Final = 600


@dataclass(frozen=True)
class AccessPolicy:
    """api_keys: any of them is demanded; none: everybody may. cors_origins: the web pages whose scripts may
    read answers. allowed_hosts: the names by which the server may be called; none: any.
    """

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for host in self.allowed_hosts:
            if not host or "/" in host or "*" in host.removeprefix("*."):
                raise ConfigError(f"allowed host {host!r} must be a name such as example.org or *.example.org")
        for origin in self.cors_origins:
            scheme, _, rest = origin.partition("://")
            if origin != "*" and (scheme not in ("http", "https") or not rest or "/" in rest):
                raise ConfigError(f"CORS origin {origin!r} must be `*`, or such as https://example.org")


def with_access(app: ASGIApp, policy: AccessPolicy) -> ASGIApp:
    """`app` behind the policy: hosts first, then preflights of browsers, which carry no key, then keys."""
    if policy.api_keys:
        app = KeyGuard(app, ApiKeys(policy.api_keys))
    if policy.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=policy.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=_EXPOSED_HEADERS,
            max_age=_MAX_PREFLIGHT_AGE_S,
        )
    if policy.allowed_hosts:
        app = HostGuard(app, policy.allowed_hosts)
    return app


class HostGuard:
    """Answers 421 to a request for another host, such as a page sends whose name was bound to this address."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._names = frozenset(host.lower() for host in hosts if not host.startswith("*."))
        self._suffixes = tuple(host[1:].lower() for host in hosts if host.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS or self._is_allowed(scope):
            await self._app(scope, receive, send)
            return
        error = ApiError(421, "this server is not served under that host name", code="unknown_host")
        await JSONResponse(error.body, error.status_code)(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1:
            return False
        name = _without_port(hosts[0].decode("latin-1").lower())
        return name in self._names or (bool(self._suffixes) and name.endswith(self._suffixes))


def _without_port(host: str) -> str:
    """The name or address of a Host header; an IPv6 address stays in its brackets."""
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.partition(":")[0]
