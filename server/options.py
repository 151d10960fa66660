"""What `remuda serve` is told that concerns HTTP and not the engine."""

from dataclasses import dataclass

from remuda.server.response_store import DEFAULT_MAX_RESPONSES, DEFAULT_MAX_STORED_BYTES
from remuda.server.state import DEFAULT_MAX_BODY_BYTES


@dataclass(frozen=True)
class ServeOptions:
    """grace_s: how long running requests may go on after SIGTERM.

    max_stored_responses, max_stored_bytes: bounds of what `/v1/responses` keeps; 0 responses: nothing is kept.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    log_level: str = "info"
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    grace_s: float = 15.0
    max_stored_responses: int = DEFAULT_MAX_RESPONSES
    max_stored_bytes: int = DEFAULT_MAX_STORED_BYTES
