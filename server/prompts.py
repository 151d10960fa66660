"""From the prompt of a request to token ids, once for every endpoint."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from remuda.engine.chat_template import ChatTemplate
from remuda.engine.errors import InvalidRequestError
from remuda.engine.tokenizer import TokenIdTokenizer, Tokenizer
from remuda.server.schemas import ChatMessage
from remuda.server.template_options import TemplateOptions
from remuda.server.tool_messages import check_arguments, check_call_id, parse_tool_calls, plain_messages
from remuda.server.tools import FunctionTool

Result = TypeVar("Result")
AnyTokenizer = Tokenizer | TokenIdTokenizer

# Choices of one HTTP request: prompts × n.
MAX_CHOICES_PER_REQUEST: Final = 1024
# Log-probabilities of prompt tokens in one HTTP request: tokens × (k + 1). Each is a few microseconds of the loop.
MAX_PROMPT_LOGPROBS: Final = 100_000
# Characters from which rendering and tokenizing leave the event loop (about 5 ms of work).
OFF_LOOP_CHARS: Final = 16_384
# Short conversations do not wait behind the tokenizing of megabytes.
_SHORT_PROMPTS: Final = ThreadPoolExecutor(4, "short-prompts")
# Message fields that carry nothing for a text model. The last is LiteLLM's, which sends its own notes back.
_HARMLESS_MESSAGE_FIELDS: Final = frozenset({"name", "refusal", "annotations", "provider_specific_fields"})
_PLAIN: Final = TemplateOptions()
_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


@dataclass(frozen=True)
class Prompt:
    """Token ids, with the text that they came from, if any, and whether a BOS was added to it."""

    token_ids: list[int]
    text: str | None = None
    has_added_bos: bool = False


def parse_prompts(prompt: object) -> list[str | list[int]]:
    """The prompts of a completion request: a string, ids, or a list of either. None is the empty text.

    Raises InvalidRequestError for anything else, and for empty lists.
    """
    if prompt is None or isinstance(prompt, str):
        return [prompt or ""]
    if not isinstance(prompt, list):
        raise _bad_prompt("must be a string, a list of token ids, or a list of either")
    if not prompt:
        raise _bad_prompt("is an empty list")
    if isinstance(prompt[0], int):
        return [_token_ids(prompt)]
    return [item if isinstance(item, str) else _token_ids(item) for item in prompt]


def check_num_choices(num_prompts: int, n: int) -> None:
    """Raise InvalidRequestError where a request asks for too many choices."""
    if num_prompts * n > MAX_CHOICES_PER_REQUEST:
        raise InvalidRequestError(
            f"{num_prompts} prompts × n {n} are more than the limit of {MAX_CHOICES_PER_REQUEST} choices",
            param="n" if n > 1 else "prompt",
        )


async def encode_prompts(
    prompts: list[str | list[int]], tokenizer: AnyTokenizer, vocab_size: int, *, add_bos: bool
) -> list[Prompt]:
    """Token ids of each prompt. InvalidRequestError for empty prompts and ids outside the vocabulary."""
    num_chars = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))

    def encode_all() -> list[Prompt]:
        return [
            _encode(prompt, tokenizer, add_bos=add_bos)
            if isinstance(prompt, str)
            else Prompt(_check_vocabulary(prompt, vocab_size))
            for prompt in prompts
        ]

    return await off_loop(encode_all) if num_chars > OFF_LOOP_CHARS else encode_all()


def check_num_prompt_logprobs(
    prompts: list[Prompt], num_top: int | None, param: str, *, num_times: int = 1
) -> None:
    """Raise InvalidRequestError where a request asks for too many log-probabilities of prompt tokens.

    num_top: how many of the likeliest at each token, besides its own; None: no log-probabilities.
    param: the field that asked for them. num_times: how often the answer has those of each prompt.
    """
    if num_top is None:
        return
    num_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    num_logprobs = num_tokens * (num_top + 1) * num_times
    if num_logprobs > MAX_PROMPT_LOGPROBS:
        times = "" if num_times == 1 else f" × {num_times} choices"
        raise InvalidRequestError(
            f"{param}: {num_tokens} prompt tokens × ({num_top} + 1){times} = {num_logprobs} log-probabilities "
            f"are more than the limit of {MAX_PROMPT_LOGPROBS}",
            param=param,
        )


async def encode_chat(
    messages: list[ChatMessage],
    template: ChatTemplate,
    tokenizer: AnyTokenizer,
    options: TemplateOptions = _PLAIN,
    tools: Sequence[FunctionTool] = (),
) -> Prompt:
    """Render the conversation by the checkpoint's template, which writes the BOS itself, and encode it.

    tools: those that the model is told of, by the template or, where it knows none, in a system message.
    """
    if not messages:
        raise InvalidRequestError("messages is empty", param="messages")

    def prepare() -> list[dict[str, Any]]:
        check_arguments((message.model_extra or {}).get("tool_calls") for message in messages)
        parsed = [_message(i, message) for i, message in enumerate(messages)]
        return parsed if template.knows_tools else plain_messages(parsed, tools)

    rendered = await off_loop(prepare) if _is_long(messages) else prepare()
    described = [tool.for_template() for tool in tools] if tools and template.knows_tools else None
    num_chars = sum(len(message["content"]) for message in rendered)

    def render(final_content: str) -> str:
        conversation = [*rendered[:-1], {**rendered[-1], "content": final_content}]
        return template.render(conversation, options.add_generation_prompt, options.variables, described)

    def encode() -> Prompt:
        text = options.prompt(render, rendered[-1]["content"])
        token_ids = tokenizer.encode(text, add_bos=False)
        if not token_ids:
            raise InvalidRequestError("the conversation renders to an empty prompt", param="messages")
        return Prompt(token_ids, text)

    # However short the messages are, a template may work on them for most of a second before its budget ends.
    return await off_loop(encode, None if num_chars > OFF_LOOP_CHARS else _SHORT_PROMPTS)


def _is_long(messages: list[ChatMessage]) -> bool:
    """What they hold has more than OFF_LOOP_CHARS characters and items together. Counts no further than that."""
    size, waiting = 0, list[object](messages)
    while waiting and size <= OFF_LOOP_CHARS:
        item = waiting.pop()
        size += len(item) if isinstance(item, str) else 1
        match item:
            case ChatMessage():
                waiting += (item.content, item.model_extra)
            case dict():
                waiting += item.values()
            case list():
                waiting += item
    return size > OFF_LOOP_CHARS


async def off_loop(work: Callable[[], Result], threads: Executor | None = None) -> Result:
    """Do `work` in a thread, of `threads` or the loop's own: for what would hold up every stream."""
    return await asyncio.get_running_loop().run_in_executor(threads, work)


def _encode(text: str, tokenizer: AnyTokenizer, *, add_bos: bool) -> Prompt:
    token_ids = tokenizer.encode(text, add_bos=add_bos and tokenizer.add_bos)
    bos = tokenizer.bos_token_id
    if not token_ids and text == "" and bos is not None:
        token_ids = [bos]
    if not token_ids:
        raise _bad_prompt("is empty, and this model has no beginning-of-sequence token to start from")
    has_added_bos = token_ids[0] == bos and not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))
    return Prompt(token_ids, text, has_added_bos)


def _token_ids(item: object) -> list[int]:
    if not isinstance(item, list):
        raise _bad_prompt("must be a string, a list of token ids, or a list of either")
    if not item:
        raise _bad_prompt("holds an empty list of token ids")
    if set(map(type, item)) != {int}:
        raise _bad_prompt("holds a list of token ids with something else in it")
    return item


def _check_vocabulary(token_ids: list[int], vocab_size: int) -> list[int]:
    for token in (min(token_ids), max(token_ids)):
        if not 0 <= token < vocab_size:
            shown = str(token) if abs(token) < 2**63 else "a larger number"
            raise _bad_prompt(f"token id {shown} is outside the vocabulary [0, {vocab_size})")
    return token_ids


def _message(index: int, message: ChatMessage) -> dict[str, Any]:
    place = f"messages.{index}"
    role = _ROLES.get(message.role)
    if role is None:
        known = ", ".join(_ROLES)
        raise InvalidRequestError(
            f"{place}.role: {message.role[:40]!r} is not supported, only {known}", param=f"{place}.role"
        )
    extra = {name: value for name, value in (message.model_extra or {}).items() if value not in (None, [])}
    of_tools: dict[str, Any] = {}
    if role == "tool":
        of_tools["tool_call_id"] = check_call_id(f"{place}.tool_call_id", extra.pop("tool_call_id", None))
    elif role == "assistant" and "tool_calls" in extra:
        of_tools["tool_calls"] = parse_tool_calls(f"{place}.tool_calls", extra.pop("tool_calls"))
    for name in extra:
        if name not in _HARMLESS_MESSAGE_FIELDS:
            field = f"{place}.{name[:100]}"
            raise InvalidRequestError(f"{field} is not supported", param=field)
    speaker = extra.get("name")
    named = {"name": speaker} if isinstance(speaker, str) else {}
    return {"role": role, "content": _content(f"{place}.content", message.content), **named, **of_tools}


def _content(place: str, content: object) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise InvalidRequestError(f"{place} must be a string or a list of text parts", param=place)
    texts = []
    for i, part in enumerate(content):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            message = f'{place}.{i} must be {{"type": "text", "text": …}}: other parts are not supported'
            raise InvalidRequestError(message, param=f"{place}.{i}")
        texts.append(text)
    return "".join(texts)


def _bad_prompt(reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"prompt {reason}", param="prompt")
