"""Stand-ins: a byte tokenizer, a scripted engine behind the real wire, and the app in a thread of this process."""

import asyncio
import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import tokenizers
import uvicorn
import uvloop
import zmq
from tokenizers import decoders, models, pre_tokenizers

from remuda.engine.chat_template import ChatTemplate
from remuda.engine.checkpoint.tokenizer_settings import TokenizerSettings
from remuda.engine.logprob_pieces import pack
from remuda.engine.tokenizer import Tokenizer
from remuda.engine.wire import (
    AbortRequest,
    AddRequest,
    EngineReady,
    EngineStats,
    FromEngine,
    RequestRejected,
    SequenceOutput,
    StatsRequest,
    StepOutputs,
    ToEngine,
    TokenLogprobs,
)
from remuda.server.access import AccessPolicy
from remuda.server.access_log import log_access
from remuda.server.http_config import http_config
from remuda.server.link import EngineLink, EngineStatus
from remuda.server.listener import bind
from remuda.server.options import DEFAULT_MAX_CONNECTIONS, ServeOptions
from remuda.server.request_limits import RequestLimits
from remuda.server.request_record import RequestRecord
from remuda.server.state import ServerState
from remuda.server.tls import TlsFiles
from remuda.server.tls_gate import ServerLoop
from tests.server.fake_info import BOS, END, INFO, SPECIALS

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer(*, bos: bool = True, template: str | None = TEMPLATE) -> Tokenizer:
    """One token per byte, ids 4 to 259, behind four special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet, len(SPECIALS))}, []))
    backend = tokenizers.Tokenizer(
        models.BPE({**dict(zip(SPECIALS, range(4), strict=True)), **backend.get_vocab()}, [])
    )
    backend.add_special_tokens(SPECIALS)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    settings = TokenizerSettings(
        bos_token=SPECIALS[BOS] if bos else None,
        eos_token=SPECIALS[END],
        add_bos_token=bos,
        chat_template=template,
    )
    return Tokenizer(backend, settings)


TOKENIZER = byte_tokenizer()


def ids(text: str) -> list[int]:
    """Token ids of `text`."""
    return TOKENIZER.encode(text)


STATS = EngineStats(
    num_running=1,
    num_waiting=2,
    num_free_slots=60,
    num_steps=3,
    num_prompt_tokens=4,
    num_output_tokens=5,
    num_aborts=6,
    resident_bytes=7_000_000,
    device_bytes=8_000_000,
)

# What the engine sends for one request: in each step a list of outputs, or a rejection.
Script = Callable[[AddRequest], "list[list[SequenceOutput]] | RequestRejected"]


def says(text: str) -> Script:
    """A script in which every sequence says `text`, one token a step, then ends; cut by max_tokens.

    The hidden state of a prompt of N tokens is 3, 4, N.
    """

    def script(request: AddRequest) -> list[list[SequenceOutput]]:
        params = request.params
        tokens = [*ids(text), END][: params.max_tokens]
        steps = []
        for i, token in enumerate(tokens):
            stop_token = token if token == END else None
            last = i == len(tokens) - 1
            reason = ("stop" if stop_token is not None else "length") if last else None
            logprobs = None if params.logprobs is None else [fake_logprobs(token, params.logprobs)]
            steps.append(
                [
                    SequenceOutput(request.request_id, s, [token], logprobs, None, reason, stop_token)
                    for s in range(params.n)
                ]
            )
        if params.pooling is not None:
            vector = np.array([3, 4, len(request.prompt)], dtype="<f4").tobytes()
            return [[SequenceOutput(request.request_id, 0, [], finish_reason="length", embedding=vector)]]
        if not steps:
            steps = [[SequenceOutput(request.request_id, s, [], finish_reason="length") for s in range(params.n)]]
        if params.prompt_logprobs is not None:
            steps[0][0].prompt_logprobs = [
                None,
                *(fake_logprobs(token, params.prompt_logprobs) for token in request.prompt[1:]),
            ]
        return steps

    return script


def fake_logprobs(token: int, num_top: int) -> TokenLogprobs:
    """The token itself at -0.5, and above it `num_top` others."""
    top = [((token + 1 + i - 4) % 256 + 4, -0.1 * (i + 1)) for i in range(num_top)]
    return TokenLogprobs(token, -0.5, top)


class FakeEngine:
    """A ROUTER in a thread that plays a script to each request, one step after another."""

    def __init__(self, script: Script | None = None) -> None:
        self.script: Script = script or says("Hello there")
        self.step_s = 0.0
        self.requests: list[AddRequest] = []
        self.aborts: list[AbortRequest] = []
        self.hellos = 0
        self.stats: EngineStats | None = STATS
        self.status: FromEngine | None = EngineReady(INFO)
        # While it is cleared, no step is sent.
        self.running = threading.Event()
        self.running.set()
        self._directory = tempfile.TemporaryDirectory(prefix="remuda-test-")
        self.address = f"ipc://{Path(self._directory.name) / 'engine.sock'}"
        self._active: dict[str, tuple[bytes, Iterator[list[SequenceOutput]]]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()
        self._directory.cleanup()

    @property
    def num_active(self) -> int:
        """Requests that still have steps to come."""
        return len(self._active)

    def _run(self) -> None:
        decoder, encode = msgspec.msgpack.Decoder(ToEngine), msgspec.msgpack.encode
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
            router.linger = 0
            router.set_hwm(0)
            router.bind(self.address)
            while not self._stopping.is_set():
                idle = not self._active or not self.running.is_set()
                while router.poll(5 if idle else 0):
                    idle = False
                    worker, frame = router.recv_multipart()
                    if frame == b"":
                        self.hellos += 1
                        if self.status is not None:
                            router.send_multipart([worker, encode(self.status)])
                        continue
                    self._handle(router, worker, decoder.decode(frame))
                if self.running.is_set():
                    self._step(router)
                    time.sleep(self.step_s)

    def _handle(self, router: "zmq.Socket[bytes]", worker: bytes, message: ToEngine) -> None:
        if isinstance(message, AbortRequest):
            self.aborts.append(message)
            if message.index is None:
                self._active.pop(message.request_id, None)
            return
        if isinstance(message, StatsRequest):
            if self.stats is not None:
                router.send_multipart([worker, msgspec.msgpack.encode(self.stats)])
            return
        self.requests.append(message)
        steps = self.script(message)
        if isinstance(steps, RequestRejected):
            router.send_multipart([worker, msgspec.msgpack.encode(steps)])
        else:
            self._active[message.request_id] = (worker, iter(steps))

    def _step(self, router: "zmq.Socket[bytes]") -> None:
        by_worker: dict[bytes, list[SequenceOutput]] = {}
        for request_id, (worker, steps) in list(self._active.items()):
            step = next(steps, None)
            if step is None:
                del self._active[request_id]
            else:
                by_worker.setdefault(worker, []).extend(step)
        for worker, outputs in by_worker.items():
            for output in outputs:
                if output.prompt_logprobs is not None:
                    output.prompt_logprob_pieces, output.prompt_logprobs = pack(output.prompt_logprobs), None
            router.send_multipart([worker, msgspec.msgpack.encode(StepOutputs(outputs))])


class AppServer:
    """The app over a FakeEngine, under uvicorn and uvloop in a thread, on a free port of the loopback."""

    def __init__(
        self,
        engine: FakeEngine,
        tokenizer: object = TOKENIZER,
        max_body_bytes: int = 100_000,
        *,
        policy: AccessPolicy | None = None,
        limits: RequestLimits | None = None,
        max_connections: int = DEFAULT_MAX_CONNECTIONS,
        tls: TlsFiles | None = None,
    ) -> None:
        self.engine = engine
        self._tls = tls
        self._policy = policy
        self._limits = limits
        self._max_connections = max_connections
        self.tokenizer = tokenizer
        self._max_body_bytes = max_body_bytes
        # Of each request that has ended.
        self.records: list[RequestRecord] = []
        self._listener = bind("127.0.0.1", 0)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http{'' if tls is None else 's'}://127.0.0.1:{self.port}"
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._main(), loop_factory=ServerLoop))
        self._thread.start()
        assert self._up.wait(10)

    async def _main(self) -> None:
        self.link = EngineLink(self._limits)
        template = None
        if self.tokenizer.chat_template is not None:
            template = ChatTemplate(
                self.tokenizer.chat_template, self.tokenizer.bos_token, self.tokenizer.eos_token
            )
        self.state = ServerState(self.link, self.tokenizer, template, ("fake", "org/alias"), self._max_body_bytes)
        self.state.record_sinks += [log_access, self.records.append]
        self.loop = asyncio.get_running_loop()
        self.link.connect(self.engine.address)
        while self.engine.status is not None and self.link.status is EngineStatus.LOADING:
            await asyncio.sleep(0.005)
        access = self._policy or AccessPolicy()
        options = ServeOptions(access=access, max_connections=self._max_connections, tls=self._tls)
        config = http_config(self.state, options, closing_s=5)
        self._server = uvicorn.Server(config)
        self._server.install_signal_handlers = lambda: None
        self._up.set()
        await self._server.serve(sockets=[self._listener])
        await self.state.grammars.close()
        self.link.close()

    def call(self, function: Callable[[], object]) -> None:
        """Run `function` in the server's event loop, and wait for it."""
        done = threading.Event()

        def run() -> None:
            function()
            done.set()

        self.loop.call_soon_threadsafe(run)
        assert done.wait(10)

    def stop(self) -> None:
        """Stop serving; requests under way may finish."""
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()

    @contextlib.contextmanager
    def raw(self) -> Iterator[socket.socket]:
        """A TCP connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            yield connection


def eventually(condition: Callable[[], bool], within_s: float = 10) -> bool:
    """Whether `condition` becomes true; asserts on it say what, not how fast."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.005)
    return condition()
