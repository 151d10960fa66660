"""`/v1/models`: the one model, under each of its names."""

from typing import Any

from fastapi import APIRouter

from remuda.server.state import ServerState


def model_routes(state: ServerState) -> APIRouter:
    """The routes, over `state`."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    def describe(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": state.created, "owned_by": "remuda"}

    @router.get("")
    async def list_models() -> dict[str, Any]:
        """Every name that requests may give as `model`."""
        return {"object": "list", "data": [describe(name) for name in state.model_names]}

    @router.get("/{model_id:path}", responses={404: {"description": "No model has this name."}})
    async def retrieve_model(model_id: str) -> dict[str, Any]:
        """One model; names with a slash are taken as they are."""
        state.check_model(model_id)
        return describe(model_id)

    return router
