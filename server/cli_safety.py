"""The flags of `remuda serve` about access, limits, logs and traces, as one group; cli.py has the others."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from remuda.engine.errors import ConfigError
from remuda.engine.log_format import LogFormat
from remuda.server.access import AccessPolicy
from remuda.server.api_keys import ENVIRONMENT, read_keys
from remuda.server.options import DEFAULT_MAX_CONNECTIONS
from remuda.server.request_limits import (
    DEFAULT_MAX_PROMPT_TOKENS,
    DEFAULT_REQUEST_TIMEOUT_S,
    RequestLimits,
)
from remuda.server.sizes import parse_whole
from remuda.server.tls import PASSWORD_ENVIRONMENT, TlsFiles

_ACCESS = Group.create_ordered("Access")
_LIMITS = Group.create_ordered("Limits")
_LOGS = Group.create_ordered("Logs and traces")

_WHOLE = Parameter(converter=lambda type_, tokens: parse_whole(tokens[0].value))
_Texts = tuple[str, ...]
_REPEATED = Parameter(negative=(), show_default=False)


@dataclass(frozen=True)
class SafetyFlags:
    """As they were given; the methods make options of them."""

    api_key: Annotated[
        _Texts,
        _REPEATED,
        Parameter(
            group=_ACCESS,
            help="A key that requests must bring, on every route but /health and /ready; repeat for more. "
            f"Others on the machine see it in `ps`: prefer --api-key-file, or {ENVIRONMENT} in the environment.",
        ),
    ] = field(default=(), repr=False)
    api_key_file: Annotated[Path | None, Parameter(group=_ACCESS, help="A file of keys, one a line.")] = None
    cors_origin: Annotated[
        _Texts,
        _REPEATED,
        Parameter(
            group=_ACCESS, help="Web pages that may call from a browser, as https://example.org; repeat for more."
        ),
    ] = ()
    allowed_host: Annotated[
        _Texts,
        _REPEATED,
        Parameter(group=_ACCESS, help="A name by which it may be called, by default any; repeat for more."),
    ] = ()
    ssl_certfile: Annotated[
        Path | None, Parameter(group=_ACCESS, help="Certificate chain in PEM; with it HTTPS is served.")
    ] = None
    ssl_keyfile: Annotated[
        Path | None,
        Parameter(group=_ACCESS, help=f"The certificate's key in PEM; its password is in {PASSWORD_ENVIRONMENT}."),
    ] = None
    max_connections: Annotated[
        int,
        _WHOLE,
        Parameter(group=_LIMITS, validator=Number(gte=1, lte=1_000_000), help="Connections that may be open."),
    ] = DEFAULT_MAX_CONNECTIONS
    max_prompt_tokens: Annotated[
        int,
        _WHOLE,
        Parameter(group=_LIMITS, validator=Number(gte=1), help="Prompt tokens of one request."),
    ] = DEFAULT_MAX_PROMPT_TOKENS
    request_timeout: Annotated[
        float,
        Parameter(
            group=_LIMITS,
            validator=Number(gte=0, lte=31_536_000),
            help="Seconds after which a request is ended, waiting included; 0: none.",
        ),
    ] = DEFAULT_REQUEST_TIMEOUT_S
    log_format: Annotated[LogFormat, Parameter(group=_LOGS, help="Lines of text, or one JSON object a line.")] = (
        "text"
    )
    access_log: Annotated[bool, Parameter(group=_LOGS, help="One line for each request, with no prompt text.")] = (
        True
    )
    otlp_endpoint: Annotated[
        str | None,
        Parameter(
            group=_LOGS,
            help="Send a trace of each request there, by OTLP over HTTP, as http://host:4318/v1/traces.",
        ),
    ] = None

    def access_policy(self) -> AccessPolicy:
        """Keys of all sources, origins and hosts. Raises ConfigError for what cannot be meant."""
        keys = read_keys(self.api_key, self.api_key_file, os.environ)
        return AccessPolicy(keys, self.cors_origin, self.allowed_host)

    def request_limits(self) -> RequestLimits:
        """What one request may take."""
        return RequestLimits(self.request_timeout or None, self.max_prompt_tokens)

    def tls_files(self) -> TlsFiles | None:
        """The certificate, if any, found to be usable."""
        password = os.environ.pop(PASSWORD_ENVIRONMENT, None)
        if self.ssl_certfile is None:
            if self.ssl_keyfile is not None:
                raise ConfigError("--ssl-keyfile needs --ssl-certfile")
            return None
        keyfile = None if self.ssl_keyfile is None else str(self.ssl_keyfile)
        files = TlsFiles(str(self.ssl_certfile), keyfile, password)
        files.context()
        return files
