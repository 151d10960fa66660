"""`/health`, `/ready`, `/version`: for those who run the server, not for those who ask the model.

`/health` tells a supervisor whether to leave the process alone: 200 while it lives, also while the engine
loads, restarts or drains; 503 once the engine is given up, and then the process ends by itself. `/ready` tells
a load balancer whether to send requests here: 200 only while they would be served.
"""

from importlib.metadata import version

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from remuda.server.errors import RETRY_AFTER_S
from remuda.server.state import ServerState


def health_routes(state: ServerState) -> APIRouter:
    """The routes, over `state`."""
    router = APIRouter(tags=["health"])

    def body() -> dict[str, object]:
        return {"status": state.status, "num_requests": state.link.num_requests}

    @router.get("/health", responses={503: {"description": "The engine is given up; the process ends."}})
    async def health() -> JSONResponse:
        """Whether the process lives; with its status, and the number of prompts under way here."""
        return JSONResponse(body(), 503 if state.has_given_up else 200)

    @router.get("/ready", responses={503: {"description": "The engine is loading, down or draining."}})
    async def ready() -> JSONResponse:
        """Whether requests are served now."""
        if state.is_ready:
            return JSONResponse(body())
        return JSONResponse(body(), 503, headers={"retry-after": RETRY_AFTER_S})

    @router.get("/version")
    async def show_version() -> dict[str, str]:
        """The version of the server."""
        return {"version": version("remuda")}

    return router
