"""The HTTP application of one API worker: routes, error bodies and limits. No torch here."""

from importlib.metadata import version

from fastapi import FastAPI
from starlette.types import ASGIApp

from remuda.server.access import AccessPolicy, with_access
from remuda.server.errors import install_handlers
from remuda.server.limits import BodyLimit
from remuda.server.openapi import serve_schema
from remuda.server.request_record import Recorder
from remuda.server.routes_chat import chat_routes
from remuda.server.routes_completions import completion_routes
from remuda.server.routes_docs import docs_routes
from remuda.server.routes_embeddings import embedding_routes
from remuda.server.routes_health import health_routes
from remuda.server.routes_info import info_routes
from remuda.server.routes_metrics import metrics_routes
from remuda.server.routes_models import model_routes
from remuda.server.routes_page import page_routes
from remuda.server.routes_responses import response_routes
from remuda.server.routes_tokenize import tokenize_routes
from remuda.server.state import ServerState

_ROUTES = (
    health_routes,
    metrics_routes,
    info_routes,
    model_routes,
    completion_routes,
    chat_routes,
    response_routes,
    embedding_routes,
    tokenize_routes,
)


def create_app(state: ServerState, policy: AccessPolicy | None = None) -> ASGIApp:
    """The ASGI application over `state`, for those whom `policy` lets in; without one, for everybody."""
    policy = policy or AccessPolicy()
    app = with_access(BodyLimit(create_api(state, policy), state.max_body_bytes), policy)
    return Recorder(app, state.record)


def create_api(state: ServerState, policy: AccessPolicy) -> FastAPI:
    """Routes and error bodies, without the limits around them. The schema tells of `policy`."""
    # It would trace by itself where some library of this process has set up OpenTelemetry.
    app = FastAPI(
        title="Remuda",
        version=version("remuda"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    for routes in _ROUTES:
        app.include_router(routes(state))
    app.include_router(docs_routes())
    app.include_router(page_routes())
    serve_schema(app, state.model_names, policy)
    install_handlers(app)
    return app
