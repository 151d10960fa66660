"""How uvicorn serves the app of one API worker: protocol, TLS, timeouts; and who hears of ended requests."""

import uvicorn

from remuda.server.access_log import log_access
from remuda.server.app import create_app
from remuda.server.listener import BACKLOG
from remuda.server.options import ServeOptions
from remuda.server.protocol import KEEP_ALIVE_S, bounded_protocol
from remuda.server.state import ServerState
from remuda.server.tracing import Tracing, start_tracing


def http_config(state: ServerState, options: ServeOptions, *, closing_s: int) -> uvicorn.Config:
    """The configuration; closing_s: what running requests have once the server is told to exit."""
    tls = options.tls
    return uvicorn.Config(
        create_app(state, options.access),
        http=bounded_protocol(options.max_connections, state.metrics.count_refusal),
        ssl_context_factory=None if tls is None else lambda config, default: tls.context(),
        timeout_keep_alive=KEEP_ALIVE_S,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=closing_s,
    )


def watch_requests(state: ServerState, options: ServeOptions) -> Tracing | None:
    """Log and trace requests as the options say; the tracing is to be closed at the end."""
    if options.has_access_log:
        state.record_sinks.append(log_access)
    if options.otlp_endpoint is None:
        return None
    tracing = start_tracing(options.otlp_endpoint, state.model_names[0])
    state.record_sinks.append(tracing.observe)
    return tracing
