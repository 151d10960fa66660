"""`POST /v1/completions`: text or token ids in, their continuation out."""

import secrets
import time

from fastapi import APIRouter, Request, Response

from remuda.server.completion_format import CompletionFormat
from remuda.server.generation import Generation
from remuda.server.json_body import StrictRoute
from remuda.server.prompts import (
    check_num_choices,
    check_num_prompt_logprobs,
    encode_prompts,
    parse_prompts,
)
from remuda.server.schemas import GENERATION_RESPONSES, CompletionRequest
from remuda.server.sse import StreamResponse, WholeResponse
from remuda.server.state import ServerState


def completion_routes(state: ServerState) -> APIRouter:
    """The routes, over `state`."""
    router = APIRouter(route_class=StrictRoute, tags=["completions"])

    @router.post("/v1/completions", responses=GENERATION_RESPONSES)
    async def create_completion(request: CompletionRequest, http: Request) -> Response:
        """Continue one prompt or many."""
        state.check_model(request.model)
        params = request.to_params()
        parsed = parse_prompts(request.prompt)
        check_num_choices(len(parsed), params.n)
        vocab_size = state.ready_engine().vocab_size
        params.check_vocabulary(vocab_size)
        params = await state.grammars.checked(params, http.is_disconnected)
        add_bos = request.add_special_tokens is not False
        # The answer is written by `request`, which need not hold the prompt for as long.
        request.prompt = None
        prompts = await encode_prompts(parsed, state.tokenizer, vocab_size, add_bos=add_bos)
        asked_by = "logprobs" if request.prompt_logprobs is None else "prompt_logprobs"
        check_num_prompt_logprobs(prompts, params.prompt_logprobs, asked_by, num_times=params.n)

        generation = Generation(
            prompts,
            params,
            state.tokenizer,
            echo=bool(request.echo),
            keeps_token_ids=bool(request.return_token_ids),
        )
        response_id = f"cmpl-{secrets.token_hex(12)}"
        response_format = CompletionFormat(
            response_id,
            int(time.time()),
            request,
            len(generation.choices),
            state.tokenizer,
            state.system_fingerprint,
        )
        answer = StreamResponse if request.stream else WholeResponse
        return answer(state.link, response_id, generation, response_format)

    return router
