"""The certificate's files for TLS."""

import ssl
from dataclasses import dataclass, field
from typing import Final

from remuda.engine.errors import ConfigError

PASSWORD_ENVIRONMENT: Final = "REMUDA_SSL_KEYFILE_PASSWORD"  # noqa: S105


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
