"""What `remuda serve` is told that concerns HTTP and not the engine."""

from dataclasses import dataclass, field

from remuda.engine.log_format import LogFormat
from remuda.server.access import AccessPolicy
from remuda.server.request_limits import RequestLimits
from remuda.server.response_store import DEFAULT_MAX_RESPONSES, DEFAULT_MAX_STORED_BYTES
from remuda.server.state import DEFAULT_MAX_BODY_BYTES
from remuda.server.tls import TlsFiles
from remuda.server.tool_parsers import DEFAULT_PARSER

DEFAULT_MAX_CONNECTIONS = 4096


@dataclass(frozen=True)
class ServeOptions:
    """num_api_workers: processes that serve HTTP. drain_timeout_s: how long running requests may go on after
    SIGTERM. max_connections: of one API worker. has_access_log: one line for each request. otlp_endpoint: where
    traces go, by OTLP over HTTP. max_stored_responses, max_stored_bytes: bounds of what `/v1/responses` keeps; 0
    responses: nothing is kept. tool_call_parser: see TOOL_CALL_PARSERS.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    log_level: str = "info"
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    num_api_workers: int = 1
    drain_timeout_s: float = 15.0
    access: AccessPolicy = field(default_factory=AccessPolicy)
    limits: RequestLimits = field(default_factory=RequestLimits)
    tls: TlsFiles | None = None
    max_connections: int = DEFAULT_MAX_CONNECTIONS
    log_format: LogFormat = "text"
    has_access_log: bool = True
    otlp_endpoint: str | None = None
    max_stored_responses: int = DEFAULT_MAX_RESPONSES
    max_stored_bytes: int = DEFAULT_MAX_STORED_BYTES
    tool_call_parser: str = DEFAULT_PARSER
