"""The HTTP application of one API worker: routes, error bodies and limits. No torch here."""

from fastapi import FastAPI
from starlette.types import ASGIApp

from remuda.server.errors import install_handlers
from remuda.server.limits import BodyLimit, RequestId
from remuda.server.routes_chat import chat_routes
from remuda.server.routes_completions import completion_routes
from remuda.server.routes_health import health_routes
from remuda.server.routes_models import model_routes
from remuda.server.state import ServerState


def create_app(state: ServerState) -> ASGIApp:
    """The ASGI application over `state`."""
    return RequestId(BodyLimit(create_api(state), state.max_body_bytes))


def create_api(state: ServerState) -> FastAPI:
    """Routes and error bodies, without the limits around them."""
    app = FastAPI(title="Remuda", docs_url=None, redoc_url=None, redirect_slashes=False)
    for routes in (health_routes, model_routes, completion_routes, chat_routes):
        app.include_router(routes(state))
    install_handlers(app)
    return app
