"""`/health`: whether requests are served now."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from remuda.server.errors import RETRY_AFTER_S
from remuda.server.state import ServerState


def health_routes(state: ServerState) -> APIRouter:
    """The routes, over `state`."""
    router = APIRouter(tags=["health"])

    @router.get("/health", responses={503: {"description": "The engine is loading, down or draining."}})
    async def health() -> JSONResponse:
        """200 while the engine is ready, else 503; with the number of prompts under way here."""
        body = {"status": state.status, "num_requests": state.link.num_requests}
        if state.is_ready:
            return JSONResponse(body)
        return JSONResponse(body, 503, headers={"retry-after": RETRY_AFTER_S})

    return router
