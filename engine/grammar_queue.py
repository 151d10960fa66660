"""Requests that wait for their grammar to be compiled, in a thread, so that nobody else waits for it."""

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from remuda.engine.errors import InvalidRequestError
from remuda.engine.grammar import Grammar
from remuda.engine.grammar_compiler import GrammarCompiler
from remuda.engine.wire import AddRequest


class GrammarQueue:
    """First come, first served: one grammar is compiled at a time.

    Its descriptor becomes readable when a request need wait no longer. What compiling has against a grammar is
    told by the compiler when the request is added.
    """

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
        self._waiting: dict[str, tuple[bytes, AddRequest, Future[None]]] = {}
        self._done: deque[str] = deque()
        self._reader, self._writer = os.pipe()

    def __len__(self) -> int:
        return len(self._waiting)

    def fileno(self) -> int:
        """For a poller."""
        return self._reader

    def must_wait(self, request: AddRequest) -> bool:
        """Whether the request asks for a grammar that is not known yet."""
        grammar = request.params.grammar
        return grammar is not None and not self._compiler.is_known(grammar)

    def add(self, worker: bytes, request: AddRequest) -> None:
        """Keep a worker's request until its grammar is compiled."""
        grammar = request.params.grammar
        assert grammar is not None
        compiled = self._pool.submit(self._compile, grammar)
        self._waiting[request.request_id] = (worker, request, compiled)
        compiled.add_done_callback(lambda _: self._on_done(request.request_id))

    def drop(self, request_id: str) -> None:
        """Forget a request, if it waits here, and its grammar, if that is not being compiled yet."""
        if (found := self._waiting.pop(request_id, None)) is not None:
            found[2].cancel()

    def drop_worker(self, worker: bytes) -> None:
        """Forget all requests of a worker that is gone."""
        for name in [name for name, waiting in self._waiting.items() if waiting[0] == worker]:
            self.drop(name)

    def take(self) -> list[tuple[bytes, AddRequest]]:
        """Those who need wait no longer, each with its worker, once the descriptor is readable."""
        os.read(self._reader, 4096)
        ready = []
        while self._done:
            found = self._waiting.pop(self._done.popleft(), None)
            if found is not None:
                ready.append(found[:2])
        return ready

    def _compile(self, grammar: Grammar) -> None:
        try:
            self._compiler.matcher(grammar)
        except InvalidRequestError:
            # It is cached, and will be raised again for the request.
            return

    def _on_done(self, request_id: str) -> None:
        self._done.append(request_id)
        os.write(self._writer, b"\0")
