"""`/info`: what is served here and what a sequence of it costs, for clients that show or measure it."""

from importlib.metadata import version

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from remuda.server.state import ServerState


class ServerInfo(BaseModel):
    """The engine that serves, with every "auto" resolved."""

    model_config = ConfigDict(protected_namespaces=())

    version: str
    model: str = Field(description="The name that requests may give as `model`; `/v1/models` has the others.")
    model_type: str
    num_parameters: int
    num_layers: int
    hidden_size: int
    vocab_size: int
    device: str
    backend: str
    dtype: str
    state_dtype: str
    num_slots: int = Field(description="Sequences that can run at a time.")
    slot_bytes: int = Field(description="Bytes of one sequence's state, however long its context is.")
    max_queue: int
    max_prompt_tokens: int
    has_chat_template: bool


def info_routes(state: ServerState) -> APIRouter:
    """The route, over `state`."""
    router = APIRouter(tags=["models"])

    @router.get("/info")
    async def show_info() -> ServerInfo:
        """The model and the size of its states; 503 while no engine serves."""
        engine = state.ready_engine()
        return ServerInfo(
            version=version("remuda"),
            model=state.model_names[0],
            model_type=engine.model_type,
            num_parameters=engine.num_parameters,
            num_layers=engine.num_layers,
            hidden_size=engine.hidden_size,
            vocab_size=engine.vocab_size,
            device=engine.device,
            backend=engine.backend,
            dtype=engine.dtype,
            state_dtype=engine.state_dtype,
            num_slots=engine.num_slots,
            slot_bytes=engine.slot_bytes,
            max_queue=engine.max_queue,
            max_prompt_tokens=state.link.limits.max_prompt_tokens,
            has_chat_template=state.chat_template is not None,
        )

    return router
