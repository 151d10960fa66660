"""The engine process: the core behind a ZeroMQ ROUTER socket. Started by a parent that holds its stdin open.

`python -m remuda.engine.process` reads one JSON line from stdin, {"address": …, "config": …}, and serves
until stdin reaches its end, which tells that the parent is gone.
"""

import gc
import logging
import os
import signal
import sys
from collections import defaultdict

import msgspec
import psutil
import zmq

from remuda.engine.config import EngineConfig
from remuda.engine.core import EngineCore
from remuda.engine.errors import EngineDeadError, InvalidRequestError, QueueFullError, RemudaError
from remuda.engine.grammar_queue import GrammarQueue
from remuda.engine.heap import trim_heap
from remuda.engine.log_format import LogFormat, configure_logging
from remuda.engine.logprob_pieces import pack
from remuda.engine.wire import (
    HELLO,
    AbortRequest,
    AddRequest,
    EngineFailed,
    EngineLoading,
    EngineReady,
    EngineStats,
    FromEngine,
    RequestRejected,
    SequenceOutput,
    StatsRequest,
    StepOutputs,
    ToEngine,
    WorkerGone,
)

logger = logging.getLogger(__name__)


class LaunchOrder(msgspec.Struct, frozen=True):
    """What the parent writes to stdin, as one line of JSON."""

    address: str
    config: EngineConfig
    log_level: str = "warning"
    log_format: LogFormat = "text"


class EngineServer:
    """Serves any number of API workers, each known by its ZeroMQ routing id."""

    def __init__(self, socket: "zmq.Socket[bytes]", parent_fd: int) -> None:
        self._socket = socket
        self._parent_fd = parent_fd
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(parent_fd, zmq.POLLIN)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._workers: set[bytes] = set()
        self._owners: dict[str, bytes] = {}
        self._memory = psutil.Process()
        self._num_steps = self._num_prompt_tokens = self._num_output_tokens = self._num_aborts = 0
        self._core: EngineCore | None = None
        self._grammars: GrammarQueue | None = None
        self._status: FromEngine = EngineLoading("starting", 0.0)

    def load(self, config: EngineConfig) -> bool:
        """Start the engine, telling the workers how it goes. False where it cannot start."""
        # Torch and the kernels are imported here, so that the first worker hears of the start at once.
        self._report(EngineLoading("importing torch", 0.0))
        from remuda.engine.start import start_engine

        try:
            self._core = start_engine(config, lambda stage, f: self._report(EngineLoading(stage, f)))
        except RemudaError as error:
            logger.debug("the start failed: %s", error)
            self._report(EngineFailed(type(error).__name__, str(error)))
            return False
        if self._core.grammars is not None:
            self._grammars = GrammarQueue(self._core.grammars)
            self._poller.register(self._grammars.fileno(), zmq.POLLIN)
        self._report(EngineReady(self._core.info))
        # What stands now stays: the collector need not go over it in the middle of a step.
        gc.collect()
        gc.freeze()
        # Of loading and warming up.
        trim_heap()
        return True

    def serve(self) -> None:
        """Run until the parent is gone. Raises what a step raises, but for a lack of memory."""
        from remuda.engine.step_memory import OUT_OF_MEMORY, settle

        core = self._core
        assert core is not None
        while self._drain(wait=not core.has_work):
            if core.has_work:
                try:
                    outputs = core.step()
                except OUT_OF_MEMORY as error:
                    logger.error("a step ran out of memory, and the requests in it fail: %s", error)
                    settle()
                    # The core owes an output to each of them.
                    outputs = core.step()
                self._send_outputs(outputs)

    def linger(self) -> None:
        """Answer hellos with the failure until the parent is gone."""
        while self._drain(wait=True):
            pass

    def _report(self, status: FromEngine) -> None:
        self._status = status
        if not self._drain(wait=False):
            raise SystemExit(0)
        for worker in self._workers:
            self._send(worker, status)

    def _drain(self, *, wait: bool) -> bool:
        """Take every message that has come; with `wait`, at least one. False once the parent is gone."""
        events = dict(self._poller.poll(None if wait else 0))
        if self._parent_fd in events and os.read(self._parent_fd, 4096) == b"":
            return False
        if self._grammars is not None and self._grammars.fileno() in events:
            for worker, request in self._grammars.take():
                self._add(worker, request)
        while True:
            try:
                worker, frame = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return True
            self._handle(worker, frame)

    def _handle(self, worker: bytes, frame: bytes) -> None:
        if frame == HELLO:
            self._workers.add(worker)
            self._send(worker, self._status)
            return
        if worker not in self._workers:
            # What a dead worker had sent, or meant for the engine before this one.
            return
        message = self._decoder.decode(frame)
        match message:
            case AddRequest():
                if self._grammars is not None and self._grammars.must_wait(message):
                    self._compile(worker, message, self._grammars)
                else:
                    self._add(worker, message)
            case AbortRequest():
                self._abort(message)
            case StatsRequest():
                self._send_stats(worker)
            case WorkerGone():
                self._forget_worker(message.worker.encode())

    def _compile(self, worker: bytes, request: AddRequest, grammars: GrammarQueue) -> None:
        """Add the request later, once its grammar is compiled."""
        assert self._core is not None
        limit = self._core.info.max_queue
        if len(grammars) < limit:
            grammars.add(worker, request)
        else:
            error = QueueFullError(f"{len(grammars)} grammars wait to be compiled, the limit is {limit}")
            self._reject(worker, request, error)

    def _add(self, worker: bytes, request: AddRequest) -> None:
        try:
            if self._core is None:
                raise EngineDeadError("the engine has not started")
            token_ids = request.prompt
            self._core.add(request.request_id, token_ids, request.params)
        except RemudaError as error:
            self._reject(worker, request, error)
        else:
            self._owners[request.request_id] = worker
            self._num_prompt_tokens += len(token_ids)

    def _reject(self, worker: bytes, request: AddRequest, error: RemudaError) -> None:
        param = error.param if isinstance(error, InvalidRequestError) else None
        self._send(worker, RequestRejected(request.request_id, type(error).__name__, str(error), param))

    def _abort(self, request: AbortRequest) -> None:
        # While the engine loads there is nothing to end: such an abort was meant for the engine before.
        if self._core is not None:
            # One sequence of it is ended by a stop string, which its worker finds.
            self._num_aborts += request.index is None and self._core.holds(request.request_id)
            if self._grammars is not None and request.index is None:
                self._grammars.drop(request.request_id)
            self._core.abort(request.request_id, request.index)
            self._forget_ended(request.request_id)

    def _send_stats(self, worker: bytes) -> None:
        core = self._core
        if core is None:
            return
        stats = EngineStats(
            num_running=core.num_running,
            num_waiting=core.num_waiting,
            num_free_slots=core.num_free_slots,
            num_steps=self._num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_output_tokens=self._num_output_tokens,
            num_aborts=self._num_aborts,
            resident_bytes=self._memory.memory_info().rss,
            device_bytes=core.device_bytes,
        )
        self._send(worker, stats)

    def _forget_worker(self, worker: bytes) -> None:
        self._workers.discard(worker)
        if self._grammars is not None:
            self._grammars.drop_worker(worker)
        for request_id in [name for name, owner in self._owners.items() if owner == worker]:
            self._abort(AbortRequest(request_id))

    def _send_outputs(self, outputs: list[SequenceOutput]) -> None:
        core = self._core
        assert core is not None
        by_worker: dict[bytes, list[SequenceOutput]] = defaultdict(list)
        num_tokens = 0
        for output in outputs:
            by_worker[self._owners[output.request_id]].append(output)
            num_tokens += len(output.token_ids)
            if output.prompt_logprobs is not None:
                output.prompt_logprob_pieces, output.prompt_logprobs = pack(output.prompt_logprobs), None
        self._num_steps += 1
        self._num_output_tokens += num_tokens
        for worker, its_outputs in by_worker.items():
            gauges = (core.num_running, core.num_waiting, core.num_free_slots)
            self._send(worker, StepOutputs(its_outputs, *gauges))
        for output in outputs:
            if output.finish_reason is not None:
                self._forget_ended(output.request_id)

    def _forget_ended(self, request_id: str) -> None:
        if self._core is not None and not self._core.holds(request_id):
            self._owners.pop(request_id, None)

    def _send(self, worker: bytes, message: FromEngine) -> None:
        self._socket.send_multipart([worker, self._encoder.encode(message)])


def main() -> int:
    """Serve one engine; the exit code is 1 where it could not start."""
    # The terminal's Ctrl-C goes to a whole group, a service manager's SIGTERM to every process of the service;
    # the parent decides when the engine ends, which is after the requests that it still runs.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    order = msgspec.json.decode(_read_line(sys.stdin.fileno()), type=LaunchOrder)
    configure_logging(order.log_level, order.log_format)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 1000
        socket.set_hwm(0)
        socket.bind(order.address)
        _close_to_others(order.address)
        server = EngineServer(socket, sys.stdin.fileno())
        if not server.load(order.config):
            server.linger()
            return 1
        server.serve()
    return 0


def _close_to_others(address: str) -> None:
    """Let no other user speak to a Unix socket, whatever the umask is; others are for tests."""
    if address.startswith("ipc://"):
        os.chmod(address.removeprefix("ipc://"), 0o600)


def _read_line(fd: int) -> bytes:
    """One line, unbuffered: nothing after it may be lost to a buffer that poll cannot see."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(fd, 1)
        if not byte:
            break
        line += byte
    return bytes(line)


if __name__ == "__main__":
    sys.exit(main())
