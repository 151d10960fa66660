"""What `remuda serve` is told that concerns HTTP and not the engine."""

from dataclasses import dataclass

from remuda.server.state import DEFAULT_MAX_BODY_BYTES
from remuda.server.tool_parsers import DEFAULT_PARSER


@dataclass(frozen=True)
class ServeOptions:
    """grace_s: how long running requests may go on after SIGTERM. tool_call_parser: see TOOL_CALL_PARSERS."""

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    log_level: str = "info"
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    grace_s: float = 15.0
    tool_call_parser: str = DEFAULT_PARSER
