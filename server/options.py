"""What `remuda serve` is told that concerns HTTP and not the engine."""

from dataclasses import dataclass

from remuda.server.state import DEFAULT_MAX_BODY_BYTES


@dataclass(frozen=True)
class ServeOptions:
    """num_api_workers: processes that serve HTTP. drain_timeout_s: how long running requests may go on after
    SIGTERM.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    log_level: str = "info"
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    num_api_workers: int = 1
    drain_timeout_s: float = 15.0
