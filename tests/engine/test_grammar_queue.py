"""Requests that wait for a grammar: one at a time, in turn, and none compiled for nobody."""

import threading
from typing import Any

from remuda.engine.grammar import Grammar
from remuda.engine.grammar_queue import GrammarQueue
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.wire import AddRequest, pack_ids


class SlowCompiler:
    """Notes what it compiles, and does so once it may."""

    def __init__(self) -> None:
        self.compiled: list[str] = []
        self.may_go_on = threading.Event()

    def is_known(self, grammar: Grammar) -> bool:
        return grammar.text in self.compiled

    def matcher(self, grammar: Grammar) -> None:
        assert self.may_go_on.wait(10)
        self.compiled.append(grammar.text)


def request(name: str) -> AddRequest:
    return AddRequest(name, pack_ids([1]), SamplingParams(grammar=Grammar("regex", name, "guided_regex")))


def take(queue: GrammarQueue, num: int) -> list[tuple[bytes, AddRequest]]:
    ready: list[tuple[bytes, AddRequest]] = []
    while len(ready) < num:
        ready += queue.take()
    return ready


def test_whoever_has_left_costs_no_compilation() -> None:
    compiler: Any = SlowCompiler()
    queue = GrammarQueue(compiler)
    for name, worker in (("a", b"1"), ("b", b"1"), ("c", b"2"), ("d", b"2"), ("e", b"1")):
        queue.add(worker, request(name))
    queue.drop("b")
    queue.drop("never-heard-of")
    queue.drop_worker(b"2")
    assert len(queue) == 2
    compiler.may_go_on.set()
    assert [(worker, ready.request_id) for worker, ready in take(queue, 2)] == [(b"1", "a"), (b"1", "e")]
    assert compiler.compiled == ["a", "e"]
    assert not queue.must_wait(request("a"))
    queue._pool.shutdown()
