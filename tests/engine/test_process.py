"""The engine process from outside, over its socket: start, failure, service to several workers, and its end."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import zmq

from remuda.engine.config import EngineConfig, EngineInfo
from remuda.engine.grammar import Grammar
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.wire import (
    AbortRequest,
    AddRequest,
    EngineFailed,
    EngineLoading,
    EngineReady,
    EngineStats,
    FromEngine,
    RequestRejected,
    StatsRequest,
    StepOutputs,
    ToEngine,
    pack_ids,
)

pytestmark = pytest.mark.e2e

TINY = str(Path(__file__).parents[1] / "data" / "longhorn-tiny")
# Long enough for a loaded machine; only a broken engine waits so long.
PATIENCE_MS = 120_000
GREEDY = SamplingParams(temperature=0.0, max_tokens=5)


class Worker:
    """A DEALER that speaks the wire protocol and waits for what it expects."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", address: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(address)
        self.decoder = msgspec.msgpack.Decoder(FromEngine)

    def send(self, message: ToEngine) -> None:
        self.socket.send(msgspec.msgpack.encode(message))

    def receive(self) -> FromEngine:
        assert self.socket.poll(PATIENCE_MS), "the engine is silent"
        return self.decoder.decode(self.socket.recv())

    def hello(self) -> EngineReady | EngineFailed:
        self.socket.send(b"")
        while isinstance(message := self.receive(), EngineLoading):
            assert 0 <= message.fraction <= 1
        assert isinstance(message, EngineReady | EngineFailed)
        return message

    def tokens(self, request_id: str) -> list[int]:
        """The tokens of a request up to its end."""
        tokens: list[int] = []
        while True:
            message = self.receive()
            assert isinstance(message, StepOutputs)
            for output in message.outputs:
                assert output.request_id == request_id
                tokens += output.token_ids
                if output.finish_reason is not None:
                    return tokens


# Like the real one, but steps with a prompt of token 100 run out of memory, and those with 99 meet a bug.
SPOILED = """
import sys, torch
from remuda.engine import process, runner
launch = runner.HostRunner.launch
def spoiled(self, plan):
    ids = [int(chunk.request.prompt[0]) for chunk in plan.prefill]
    if 100 in ids:
        raise torch.OutOfMemoryError("no memory for this step")
    if 99 in ids:
        raise RuntimeError("the device has failed")
    return launch(self, plan)
runner.HostRunner.launch = spoiled
sys.exit(process.main())
"""


@contextmanager
def engine(
    address: str, command: tuple[str, ...] = ("-m", "remuda.engine.process"), **config: object
) -> Iterator["subprocess.Popen[bytes]"]:
    order = {"address": address, "config": {"backend": "cpu", "num_slots": 4, "model": TINY, **config}}
    with subprocess.Popen([sys.executable, *command], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(order) + b"\n")
            process.stdin.flush()
            yield process
        finally:
            process.stdin.close()
            process.wait(timeout=60)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/engine.sock"


@pytest.fixture
def context() -> "Iterator[zmq.Context[zmq.Socket[bytes]]]":
    with zmq.Context() as made:
        yield made


def test_two_workers_are_served_each_with_its_own(address: str, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    with engine(address) as process:
        first, second = Worker(context, address), Worker(context, address)
        for worker in (first, second):
            ready = worker.hello()
            assert isinstance(ready, EngineReady)
            assert isinstance(ready.info, EngineInfo)
            assert (ready.info.vocab_size, ready.info.num_slots, ready.info.backend) == (101, 4, "cpu")
        first.send(AddRequest("a", pack_ids([1, 2, 3]), GREEDY))
        second.send(AddRequest("b", pack_ids([1, 2, 3]), GREEDY))
        assert first.tokens("a") == second.tokens("b")

        first.send(AddRequest("bad", pack_ids([101]), GREEDY))
        rejected = first.receive()
        assert isinstance(rejected, RequestRejected)
        assert (rejected.kind, rejected.param) == ("InvalidRequestError", "prompt")

        first.send(AddRequest("long", pack_ids([1]), SamplingParams(max_tokens=10**6, temperature=0.0)))
        assert isinstance(first.receive(), StepOutputs)
        first.send(AbortRequest("long"))
        first.send(AbortRequest("never-heard-of"))
        second.send(AddRequest("c", pack_ids([1, 2, 3]), GREEDY))
        last = None
        while last is None or last.outputs[0].finish_reason is None:
            last = second.receive()
            assert isinstance(last, StepOutputs)
        assert (last.num_running, last.num_waiting, last.num_free_slots) == (0, 0, 4)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 0
    for worker in (first, second):
        worker.socket.close()


def test_a_step_without_memory_fails_alone(address: str, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    with engine(address, ("-c", SPOILED)) as process:
        worker = Worker(context, address)
        worker.hello()
        worker.send(AddRequest("before", pack_ids([1, 2, 3]), GREEDY))
        expected = worker.tokens("before")
        worker.send(AddRequest("victim", pack_ids([100]), GREEDY))
        message = worker.receive()
        assert isinstance(message, StepOutputs)
        (output,) = message.outputs
        assert (output.request_id, output.finish_reason) == ("victim", "error")
        assert output.error == "a step of the engine failed"
        assert message.num_free_slots == 4
        worker.send(AddRequest("after", pack_ids([1, 2, 3]), GREEDY))
        assert worker.tokens("after") == expected
        # Whatever else a step meets ends the process, which its parent sees.
        worker.send(AddRequest("worse", pack_ids([99]), GREEDY))
        assert process.wait(timeout=60) == 1
        worker.socket.close()


def test_it_tells_of_itself_when_asked(address: str, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    with engine(address):
        worker, other = Worker(context, address), Worker(context, address)
        worker.hello()
        other.hello()

        def stats() -> EngineStats:
            other.send(StatsRequest())
            found = other.receive()
            assert isinstance(found, EngineStats)
            return found

        before = stats()
        assert before.resident_bytes > 10**7
        counts = (before.num_running, before.num_waiting, before.num_free_slots, before.num_output_tokens)
        assert counts == (0, 0, 4, 0)
        worker.send(AddRequest("a", pack_ids([1, 2, 3]), GREEDY))
        worker.tokens("a")
        worker.send(AddRequest("long", pack_ids([1]), SamplingParams(max_tokens=10**6, n=3)))
        worker.send(AddRequest("waits", pack_ids([1, 2]), SamplingParams(n=2)))
        assert isinstance(worker.receive(), StepOutputs)
        after = stats()
        assert (after.num_running, after.num_waiting, after.num_free_slots) == (1, 1, 1)
        assert after.num_prompt_tokens == 6
        assert after.num_output_tokens >= 5 + 3
        assert after.num_steps >= 6
        # A stop string ends one sequence: that is no abort.
        worker.send(AbortRequest("long", 1))
        for request_id in ("long", "waits", "never-heard-of"):
            worker.send(AbortRequest(request_id))
        # The engine takes messages of different workers in no order: ask until the aborts have come.
        while (last := stats()).num_running + last.num_waiting > 0:
            pass
        assert last.num_aborts == 2
        assert (last.num_running, last.num_waiting, last.num_free_slots) == (0, 0, 4)
        worker.socket.close()
        other.socket.close()


def test_grammars_are_compiled_beside_the_loop(address: str, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    """Good ones and bad ones in turn, one of them known already, and one whose request is gone."""
    with engine(address, model="demo"):
        worker = Worker(context, address)
        worker.hello()
        for i, text in enumerate(["[0-9]{3}", "(?=a)", "[a-c]{2}", "(?=a)", "[0-9]{3}"]):
            params = SamplingParams(grammar=Grammar("regex", text, "structured_outputs"), max_tokens=9)
            worker.send(AddRequest(f"gone{i}", pack_ids([1]), params))
            worker.send(AbortRequest(f"gone{i}"))
            worker.send(AddRequest(f"r{i}", pack_ids([1]), params))
            if "?" in text:
                messages = [worker.receive()]
                if isinstance(messages[0], RequestRejected) and messages[0].request_id != f"r{i}":
                    messages.append(worker.receive())
                rejected = messages[-1]
                assert isinstance(rejected, RequestRejected)
                assert (rejected.kind, rejected.param) == ("InvalidRequestError", "structured_outputs")
                assert "look-around" in rejected.message
            else:
                assert worker.tokens(f"r{i}")
        worker.socket.close()


@pytest.mark.parametrize(
    ("config", "kind", "words"),
    [
        ({"model": "/does/not/exist"}, "CheckpointError", "/does/not/exist"),
        ({"dtype": "bfloat16"}, "ConfigError", "float32"),
        ({"device": "cuda"}, "ConfigError", "CUDA"),
        ({"backend": "gpu"}, "ConfigError", "cannot run on device cpu"),
        ({"max_batch_tokens": 4}, "ConfigError", "must exceed the number of slots, 4"),
        ({"num_slots": None, "state_memory": 100}, "ConfigError", "one slot takes"),
        ({"num_slots": 10**9}, "ConfigError", "are free"),
    ],
    ids=str,
)
def test_a_start_that_fails_says_why_to_whoever_asks(
    address: str,
    context: "zmq.Context[zmq.Socket[bytes]]",
    config: dict[str, object],
    kind: str,
    words: str,
) -> None:
    with engine(address, **config) as process:
        worker = Worker(context, address)
        failed = worker.hello()
        worker.socket.close()
        assert isinstance(failed, EngineFailed)
        assert failed.kind == kind
        assert words in failed.message
    assert process.returncode == 1


def test_the_engine_ends_with_its_parent_even_while_it_works(
    address: str, context: "zmq.Context[zmq.Socket[bytes]]"
) -> None:
    with engine(address) as process:
        worker = Worker(context, address)
        worker.hello()
        worker.send(AddRequest("endless", pack_ids([1]), SamplingParams(max_tokens=10**9, temperature=0.0)))
        assert isinstance(worker.receive(), StepOutputs)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 0
        worker.socket.close()


def test_engine_config_knows_every_key_of_the_order() -> None:
    decoded = msgspec.json.decode(msgspec.json.encode(EngineConfig(num_slots=3)), type=EngineConfig)
    assert decoded == EngineConfig(num_slots=3)
