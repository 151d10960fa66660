"""What the routes of one API worker share."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

from remuda.engine.chat_template import ChatTemplate
from remuda.engine.config import EngineInfo
from remuda.engine.errors import InvalidRequestError
from remuda.engine.grammar import TokenBytes, token_bytes
from remuda.server.errors import ApiError, ServerUnavailableError
from remuda.server.grammar_check import GrammarChecker
from remuda.server.link import EngineLink, EngineStatus
from remuda.server.metrics import ServerMetrics
from remuda.server.prompts import AnyTokenizer
from remuda.server.request_record import RequestRecord
from remuda.server.response_store import MemoryResponseStore, ResponseStore
from remuda.server.restart_budget import Restarts
from remuda.server.tool_parsers import DEFAULT_PARSER
from remuda.server.tools import ToolSet

DEFAULT_MAX_BODY_BYTES = 8 * 2**20
_VERSION: Final = version("remuda")


@dataclass
class ServerState:
    """model_names: what requests may call the model; the first is its own name. created: unix seconds.

    tool_call_parser: one of TOOL_CALL_PARSERS. grammars: checks what requests ask for. has_given_up: the engine
    will not be started again, and the process is about to end. record_sinks: called with the record of each
    request that has ended, besides `metrics`. num_background_runs: responses that run without a connection.
    parent_pid: the process that runs the server, where this is one of its workers.
    """

    link: EngineLink
    tokenizer: AnyTokenizer
    chat_template: ChatTemplate | None
    model_names: tuple[str, ...]
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    tool_call_parser: str = DEFAULT_PARSER
    is_draining: bool = False
    has_given_up: bool = False
    restarts: Restarts = Restarts()  # noqa: RUF009
    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    record_sinks: list[Callable[[RequestRecord], None]] = field(default_factory=list)
    created: int = field(default_factory=lambda: int(time.time()))
    num_background_runs: Callable[[], int] = lambda: 0
    parent_pid: int | None = None
    response_store: ResponseStore = field(default_factory=MemoryResponseStore)

    def __post_init__(self) -> None:
        self.grammars = GrammarChecker(self._load_tokens)

    def _load_tokens(self) -> TokenBytes | None:
        return token_bytes(self.tokenizer, self.ready_engine().vocab_size)

    @property
    def status(self) -> str:
        """`ready`, `loading`, `down`, `draining` or `failed`."""
        if self.has_given_up:
            return "failed"
        return "draining" if self.is_draining else self.link.status.value

    @property
    def is_ready(self) -> bool:
        """New requests are served."""
        return self.link.status is EngineStatus.READY and not self.is_draining

    def ready_engine(self) -> EngineInfo:
        """The engine that serves. Raises ServerUnavailableError while there is none."""
        info = self.link.info
        if not self.is_ready or info is None:
            raise ServerUnavailableError(f"the server is not ready ({self.status}); try again soon")
        return info

    @property
    def system_fingerprint(self) -> str:
        """Changes with whatever may change the text of a seeded request: weights, version, arithmetic."""
        info = self.ready_engine()
        parts = (info.weights_fingerprint, _VERSION, info.device, info.backend, info.dtype, info.state_dtype)
        return f"fp_{hashlib.blake2b(' '.join(parts).encode(), digest_size=6).hexdigest()}"

    def call_parser(self, tools: ToolSet | None) -> str | None:
        """A key of CALL_FORMATS, None where no calls are looked for. Those that are enforced always are."""
        if tools is None:
            return None
        if self.tool_call_parser != "none":
            return self.tool_call_parser
        return DEFAULT_PARSER if tools.mode == "required" else None

    def record(self, record: RequestRecord) -> None:
        """Count a request that has ended, and tell whoever else wants to know."""
        self.metrics.observe(record)
        for sink in self.record_sinks:
            sink(record)

    def check_model(self, name: str) -> None:
        """Raise ApiError (404) where the model is not served under this name."""
        if name not in self.model_names:
            served = ", ".join(self.model_names)
            message = f"the model {name[:200]!r} does not exist here; served: {served}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def require_chat_template(self) -> ChatTemplate:
        """The checkpoint's template. Raises InvalidRequestError where it has none."""
        if self.chat_template is None:
            message = "this model has no chat template; use /v1/completions"
            raise InvalidRequestError(message, param="messages", code="no_chat_template")
        return self.chat_template
