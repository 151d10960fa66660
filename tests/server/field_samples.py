"""For each request field, a value that asks for something; and what else the request must have for it to count."""

from typing import Any, Final

# Stands for the id of a response that was made before.
A_STORED_ID: Final = object()

_SAMPLING: dict[str, Any] = {
    "model": "org/alias",
    "frequency_penalty": 0.5,
    "logit_bias": {"7": 1},
    "max_tokens": 2,
    "n": 2,
    "presence_penalty": 0.5,
    "seed": 7,
    "stop": "l",
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 0.5,
    "top_p": 0.5,
    "user": "u",
    "top_k": 3,
    "min_p": 0.5,
    "repetition_penalty": 1.5,
    "min_tokens": 2,
    "stop_token_ids": [7],
    "ignore_eos": True,
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "prompt_logprobs": 1,
    "return_token_ids": True,
    "priority": 3,
    "response_format": {"type": "json_object"},
    "structured_outputs": {"choice": ["a", "b"]},
    "guided_json": {"type": "object"},
    "guided_regex": "[0-9]{4}",
    "guided_choice": ["a", "b"],
    "guided_grammar": 'start: "a"',
}
_TOOL: dict[str, Any] = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
_CHAT_TOOLS: list[dict[str, Any]] = [{"type": "function", "function": _TOOL}]
_COMMON: dict[str, Any] = {
    "metadata": {"a": "b"},
    "moderation": {"model": "omni-moderation-latest"},
    "parallel_tool_calls": False,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "service_tier": "default",
    "store": True,
    "temperature": 0.5,
    "top_logprobs": 2,
    "top_p": 0.5,
    "user": "u",
}

SAMPLES: dict[str, dict[str, Any]] = {
    "/v1/completions": {
        **_SAMPLING,
        "prompt": "Ho",
        "best_of": 2,
        "echo": True,
        "logprobs": 1,
        "suffix": "end",
        "add_special_tokens": False,
    },
    "/v1/chat/completions": {
        **_SAMPLING,
        **_COMMON,
        "messages": [{"role": "user", "content": "Ho"}],
        "audio": {"format": "wav", "voice": "alloy"},
        "function_call": {"name": "f"},
        "functions": [_TOOL],
        "logprobs": True,
        "max_completion_tokens": 2,
        "modalities": ["text", "audio"],
        "prediction": {"type": "content", "content": "Hello"},
        "reasoning_effort": "high",
        "tool_choice": "required",
        "tools": _CHAT_TOOLS,
        "verbosity": "high",
        "web_search_options": {},
        "add_generation_prompt": False,
        "continue_final_message": True,
        "chat_template_kwargs": {"enable_thinking": True},
    },
    "/v1/responses": {
        **_SAMPLING,
        **_COMMON,
        "model": "org/alias",
        "input": "Ho",
        "access_programs": {"type": "x"},
        "background": True,
        "background_options": {"x": 1},
        "context_management": [{"type": "compaction"}],
        "conversation": "conv_1",
        "image": {"x": 1},
        "include": ["message.output_text.logprobs"],
        "instructions": "Be brief.",
        "max_output_tokens": 2,
        "max_tool_calls": 3,
        "previous_response_id": A_STORED_ID,
        "prompt": {"id": "pmpt_1"},
        "reasoning": {"effort": "high"},
        "store": False,
        "stream": True,
        "stream_options": {"include_obfuscation": False},
        "text": {"format": {"type": "json_object"}},
        "tool_choice": "required",
        "tools": [{"type": "function", "strict": False, **_TOOL}],
        "truncation": "auto",
    },
    "/v1/embeddings": {
        "model": "org/alias",
        "input": "Ho",
        "dimensions": 2,
        "encoding_format": "base64",
        "user": "u",
        "pooling": "mean",
        "normalize": False,
        "add_special_tokens": False,
    },
}
BASES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "fake", "prompt": "Hi"},
    "/v1/chat/completions": {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]},
    "/v1/responses": {"model": "fake", "input": "Hi"},
    "/v1/embeddings": {"model": "fake", "input": "Hi"},
}
_USER: dict[str, Any] = {"role": "user", "content": "Hi"}
_ASSISTANT: dict[str, Any] = {"role": "assistant", "content": "Hi"}
_CALL: dict[str, Any] = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
# For each field of a message, a message and a value for the field.
MESSAGE_SAMPLES: dict[str, tuple[dict[str, Any], Any]] = {
    "role": (_USER, "assistant"),
    "content": (_USER, [{"type": "text", "text": "Ho", "prompt_cache_breakpoint": {"mode": "explicit"}}]),
    "name": (_USER, "Ann"),
    "audio": (_ASSISTANT, {"id": "audio_1"}),
    "function_call": (_ASSISTANT, {"name": "f", "arguments": "{}"}),
    "refusal": (_ASSISTANT, "No."),
    "tool_calls": (_ASSISTANT, [_CALL]),
    "tool_call_id": ({"role": "tool", "content": "Hi", "tool_call_id": "call_0"}, "call_1"),
}
# Fields that mean nothing without others.
NEEDS: dict[tuple[str, str], dict[str, Any]] = {
    ("/v1/completions", "stream_options"): {"stream": True},
    ("/v1/chat/completions", "stream_options"): {"stream": True},
    ("/v1/chat/completions", "top_logprobs"): {"logprobs": True},
    ("/v1/chat/completions", "tool_choice"): {"tools": _CHAT_TOOLS},
    # Where calls are enforced, so is that there is but one.
    ("/v1/chat/completions", "parallel_tool_calls"): {"tools": _CHAT_TOOLS, "tool_choice": "required"},
    ("/v1/responses", "stream_options"): {"stream": True},
    ("/v1/responses", "tool_choice"): {"tools": [{"type": "function", "strict": False, **_TOOL}]},
    ("/v1/responses", "top_logprobs"): {"include": ["message.output_text.logprobs"]},
}
