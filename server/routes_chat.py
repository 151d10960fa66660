"""`POST /v1/chat/completions`: a conversation in, the assistant's next message out."""

import secrets
import time

from fastapi import APIRouter, Response

from remuda.server.chat_format import ChatFormat
from remuda.server.generation import Generation
from remuda.server.json_body import StrictRoute
from remuda.server.prompts import check_num_prompt_logprobs, encode_chat
from remuda.server.schemas import GENERATION_RESPONSES, ChatCompletionRequest
from remuda.server.sse import StreamResponse, WholeResponse
from remuda.server.state import ServerState
from remuda.server.tool_format import ToolChatFormat
from remuda.server.tool_parsers import CALL_FORMATS, DEFAULT_PARSER


def chat_routes(state: ServerState) -> APIRouter:
    """The routes, over `state`."""
    router = APIRouter(route_class=StrictRoute, tags=["chat"])

    @router.post("/v1/chat/completions", responses=GENERATION_RESPONSES)
    async def create_chat_completion(request: ChatCompletionRequest) -> Response:
        """Answer a conversation."""
        state.check_model(request.model)
        tools = request.tool_set()
        # Calls that are enforced are found whether or not the model's own are looked for.
        is_forced = tools is not None and tools.mode == "required"
        parser = DEFAULT_PARSER if is_forced and state.tool_call_parser == "none" else state.tool_call_parser
        # Where none are found, a text that is one would be an answer of another shape than was asked for.
        found = None if parser == "none" else tools
        params = request.to_params() if found is None else request.to_params(found, CALL_FORMATS[parser])
        template = state.require_chat_template()
        params.check_vocabulary(state.ready_engine().vocab_size)
        await state.grammars.check(params.grammar)
        options, offered = request.template_options(), () if tools is None else tools.offered
        prompt = await encode_chat(request.messages, template, state.tokenizer, options, offered)
        check_num_prompt_logprobs([prompt], params.prompt_logprobs, "prompt_logprobs")

        generation = Generation([prompt], params, state.tokenizer, keeps_token_ids=bool(request.return_token_ids))
        response_id = f"chatcmpl-{secrets.token_hex(12)}"
        described = (
            response_id, int(time.time()), request, params.n, state.tokenizer, state.system_fingerprint,
        )  # fmt: skip
        if found is None:
            response_format = ChatFormat(*described)
        else:
            response_format = ToolChatFormat(*described, tools=found, parser=parser)
        answer = StreamResponse if request.stream else WholeResponse
        return answer(state.link, response_id, generation, response_format)

    return router
