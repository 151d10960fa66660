"""What `remuda serve` is told that concerns HTTP and not the engine."""

from dataclasses import dataclass

from remuda.server.state import DEFAULT_MAX_BODY_BYTES


@dataclass(frozen=True)
class ServeOptions:
    """grace_s: how long running requests may go on after SIGTERM."""

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    log_level: str = "info"
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    grace_s: float = 15.0
