"""Makes the JSON of a request. Fields beyond OpenAI's are sent to servers that are known to have them."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from remuda.clients.load.prompts import Prompt


@dataclass(frozen=True)
class BodyForm:
    """is_ignore_eos: send `ignore_eos`. has_running_usage: ask for the count of tokens in each event."""

    model: str
    is_chat: bool = False
    is_ignore_eos: bool = False
    has_running_usage: bool = False
    temperature: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def encode(self, prompt: Prompt) -> bytes:
        """The body; `extra` has the last word."""
        body: dict[str, Any] = {"model": self.model, "max_tokens": prompt.max_tokens, "stream": True}
        body["stream_options"] = {"include_usage": True}
        if self.has_running_usage:
            body["stream_options"]["continuous_usage_stats"] = True
        if self.is_ignore_eos:
            body["ignore_eos"] = True
        if self.temperature is not None:
            body["temperature"] = self.temperature
        content: Any = prompt.content
        if self.is_chat:
            body["messages"] = [{"role": "user", "content": content}] if isinstance(content, str) else content
        else:
            body["prompt"] = content
        return msgspec.json.encode({**body, **self.extra})
