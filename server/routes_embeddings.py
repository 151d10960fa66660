"""`POST /v1/embeddings`: texts or token ids in, the model's pooled hidden states out.

As vLLM does by default for such models, the vector is the hidden state of the last token after the last norm,
of length 1. `pooling: "mean"` takes the mean over all tokens, and `normalize: false` leaves the length as it is.
"""

import base64
import math
import secrets
from array import array
from typing import Any, Final, Literal

import msgspec
from fastapi import APIRouter, Response
from pydantic import BaseModel, Field, SkipValidation
from starlette.types import Send

from remuda.engine.errors import InvalidRequestError, UnhealthyStateError
from remuda.engine.sampling_params import Pooling, SamplingParams
from remuda.server.first_error import ClosedModel
from remuda.server.generation import Generation
from remuda.server.json_body import StrictRoute
from remuda.server.param_names import renamed
from remuda.server.prompts import MAX_CHOICES_PER_REQUEST, encode_prompts, off_loop, parse_prompts
from remuda.server.request_handle import RequestHandle
from remuda.server.schemas import GENERATION_RESPONSES
from remuda.server.sse import IDLE_S, GenerationResponse, send_json
from remuda.server.state import ServerState

# Bytes of vectors from which an answer is written off the event loop (about 5 ms of work).
_OFF_LOOP_BYTES: Final = 65_536


class EmbeddingRequest(ClosedModel):
    """`POST /v1/embeddings`."""

    model: str
    # Taken apart by prompts.parse_prompts.
    input: SkipValidation[str | list[str] | list[int] | list[list[int]]] = Field(json_schema_extra={"minItems": 1})
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: None = Field(None, description="Not supported: the vectors cannot be shortened.")
    user: str | None = None
    pooling: Pooling | None = Field(None, description="`last`, the default, or `mean`.")
    normalize: bool | None = Field(None, description="Whether vectors have length 1; by default they do.")
    add_special_tokens: bool | None = Field(None, description="Begin texts with the BOS token.")


class Embedding(BaseModel):
    """One vector: numbers, or in base64 the bytes of little-endian 32-bit floats."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(BaseModel):
    """The vectors, in the order of the inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


def embedding_routes(state: ServerState) -> APIRouter:
    """The routes, over `state`."""
    router = APIRouter(route_class=StrictRoute, tags=["embeddings"])

    @router.post("/v1/embeddings", responses={200: {"model": EmbeddingAnswer}, **GENERATION_RESPONSES})
    async def create_embeddings(request: EmbeddingRequest) -> Response:
        """Embed one text or many."""
        state.check_model(request.model)
        if request.input is None:
            raise InvalidRequestError("input is required", param="input")
        vocab_size = state.ready_engine().vocab_size
        with renamed("prompt", "input"):
            parsed = parse_prompts(request.input)
            if len(parsed) > MAX_CHOICES_PER_REQUEST:
                message = f"input: {len(parsed)} texts are more than the limit of {MAX_CHOICES_PER_REQUEST}"
                raise InvalidRequestError(message, param="input")
            add_bos = request.add_special_tokens is not False
            prompts = await encode_prompts(parsed, state.tokenizer, vocab_size, add_bos=add_bos)

        params = SamplingParams(max_tokens=0, pooling=request.pooling or "last")
        generation = Generation(prompts, params, state.tokenizer)
        return _EmbeddingResponse(state, f"embd-{secrets.token_hex(12)}", generation, request)

    return router


class _EmbeddingResponse(GenerationResponse):
    """One JSON body, once every prompt is read."""

    prompt_field = "input"

    def __init__(
        self, state: ServerState, request_id: str, generation: Generation, request: EmbeddingRequest
    ) -> None:
        super().__init__(state.link, request_id, generation)
        self._request = request

    async def _answer(self, handle: RequestHandle, send: Send, send_body: Send) -> None:
        vectors: dict[int, bytes] = {}
        while not self._generation.is_finished:
            outputs = await handle.take(IDLE_S)
            for output in outputs:
                if output.embedding is not None:
                    vectors[output.index] = output.embedding
                    # It is whole: without tokens to come, the engine calls it cut by length.
                    output.finish_reason = "stop"
            for choice, _ in self._generation.feed(outputs, handle):
                if choice.index not in vectors:
                    raise UnhealthyStateError("the engine gave no vector for an input")
        if sum(map(len, vectors.values())) > _OFF_LOOP_BYTES:
            body = await off_loop(lambda: self._body(vectors))
        else:
            body = self._body(vectors)
        await send_json([body], send, send_body)

    def _body(self, vectors: dict[int, bytes]) -> bytes:
        request, usage = self._request, self._generation.usage()
        data = [
            {"object": "embedding", "index": index, "embedding": _encode(vector, request)}
            for index, vector in sorted(vectors.items())
        ]
        counts = {name: usage[name] for name in ("prompt_tokens", "total_tokens")}
        return msgspec.json.encode({"object": "list", "data": data, "model": request.model, "usage": counts})


def _encode(vector: bytes, request: EmbeddingRequest) -> Any:
    """vector: little-endian float32 values."""
    values = array("f", vector)
    if request.normalize is not False:
        length = math.sqrt(math.fsum(value * value for value in values))
        values = array("f", [value / length for value in values]) if length > 0 else values
    if request.encoding_format == "base64":
        return base64.b64encode(values.tobytes()).decode()
    return values.tolist()
