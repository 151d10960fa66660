"""`/metrics`: Prometheus' text format, of all API workers and of the engine."""

import asyncio
from typing import Final

from fastapi import APIRouter, Response

from remuda.server.engine_metrics import EngineSnapshot
from remuda.server.host_memory import server_resident_bytes
from remuda.server.state import ServerState

# The engine answers between two steps; where one takes longer, its last word is given.
_ENGINE_TIMEOUT_S: Final = 2.0
_MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def metrics_routes(state: ServerState) -> APIRouter:
    """The routes, over `state`."""
    router = APIRouter(tags=["metrics"])

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """What a Prometheus server scrapes."""
        stats = await state.link.ask_stats(_ENGINE_TIMEOUT_S)
        snapshot = EngineSnapshot(state.link.info, stats, state.restarts, is_ready=state.is_ready)
        # Reading of other workers is I/O.
        body, resident = await asyncio.get_running_loop().run_in_executor(None, read)
        return Response(body + snapshot.render(resident), media_type=_MEDIA_TYPE)

    def read() -> tuple[bytes, int]:
        return state.metrics.render(), server_resident_bytes(state.parent_pid)

    return router
