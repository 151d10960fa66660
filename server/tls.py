"""TLS of the listener: the certificate's files, and an event loop that does not wait long for a handshake."""

import ssl
from dataclasses import dataclass, field
from typing import Any, Final

import uvloop

from remuda.engine.errors import ConfigError

PASSWORD_ENVIRONMENT: Final = "REMUDA_SSL_KEYFILE_PASSWORD"  # noqa: S105
_HANDSHAKE_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True)
class TlsFiles:
    """A certificate chain and its key, in PEM; without `keyfile` the key is in `certfile`."""

    certfile: str
    keyfile: str | None = None
    password: str | None = field(default=None, repr=False)

    def context(self) -> ssl.SSLContext:
        """The server's context: TLS 1.2 or newer. Raises ConfigError for files that do not make one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # A callback, or OpenSSL would ask the terminal for the password of an encrypted key.
            context.load_cert_chain(self.certfile, self.keyfile, lambda: self.password or "")
        except (OSError, ValueError) as error:
            files = " and ".join(file for file in (self.certfile, self.keyfile) if file is not None)
            raise ConfigError(f"cannot use {files} for TLS: {error}") from error
        return context


class ServerLoop(uvloop.Loop):
    """uvloop's loop, but that a TLS handshake has 10 seconds and not a minute."""

    async def create_server(self, *args: Any, **kwargs: Any) -> Any:
        """As in asyncio."""
        if kwargs.get("ssl") is not None:
            kwargs.setdefault("ssl_handshake_timeout", _HANDSHAKE_TIMEOUT_S)
        return await super().create_server(*args, **kwargs)
