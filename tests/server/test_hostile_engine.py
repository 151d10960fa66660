"""A real engine behind a real server: no request kills it, every slot comes back, nobody else speaks to it."""

import contextlib
import itertools
import json
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.server.conftest import ServerProcess, serving
from tests.server.fakes import eventually
from tests.server.raw_http import read_answer, request

pytestmark = pytest.mark.e2e

CANARY = {"model": "demo", "prompt": "Once upon a time", "max_tokens": 16, "seed": 7, "temperature": 0.8}
ENDLESS = {"model": "demo", "prompt": "Once", "max_tokens": 10_000_000, "ignore_eos": True}
# The promise is a second; a machine that is busy with other things gets more.
BACK_WITHIN_S = 5
# Until the buffers are full, and then the timeout of a stalled reader.
STALLED_WITHIN_S = 60
TASKS_NOTED_EACH_S = 1
NUM_SLOTS = 4


@pytest.fixture(scope="module")
def http(demo: ServerProcess) -> Iterator[httpx2.Client]:
    with demo.http() as client:
        yield client


@pytest.fixture(autouse=True)
def _as_before(http: httpx2.Client, demo: ServerProcess) -> Iterator[None]:
    """Each test leaves the engine alive, its slots free, its queue empty, and the canary's text the same."""
    engine, before = demo.engine.pid, canary(http)
    yield
    assert eventually(lambda: in_use(http) == (0, 0), BACK_WITHIN_S)
    assert canary(http) == before
    assert demo.engine.pid == engine


def canary(http: httpx2.Client) -> str:
    return str(http.post("/v1/completions", json=CANARY).json()["choices"][0]["text"])


def in_use(http: httpx2.Client) -> tuple[int, int]:
    """Slots held, and requests waiting."""
    text = http.get("/metrics").text
    names = ("state_slots_used", "num_requests_waiting")
    used, waiting = (re.search(rf"^remuda:{name} (\S+)$", text, re.M) for name in names)
    assert used is not None
    assert waiting is not None
    return int(float(used[1])), int(float(waiting[1]))


FEATURES: dict[str, list[Any]] = {
    "temperature": [0, 0.9],
    "n": [1, 3],
    "logprobs": [None, 2],
    "repetition_penalty": [None, 1.3],
    "top_k": [None, 1],
    "max_tokens": [0, 1, 4],
    "logit_bias": [None, "end first"],
    "stop": [None, ["e"]],
}


def test_hostile_21_the_product_of_sampling_features(http: httpx2.Client, demo: ServerProcess) -> None:
    """Each combination is answered, the end of sequence as the first token among them."""
    end = end_of_sequence(http)
    endings = set()
    for number, values in enumerate(itertools.product(*FEATURES.values())):
        fields = {name: value for name, value in zip(FEATURES, values, strict=True) if value is not None}
        if fields.pop("logit_bias", None):
            fields["logit_bias"] = {str(end): 100}
        # What is left is dealt out in turn: the product of all would take minutes.
        fields |= {"echo": number % 2 == 0, "stream": number % 3 == 0, "seed": number, "min_p": (number % 5) / 10}
        answer = http.post("/v1/completions", json={"model": "demo", "prompt": "Once upon", **fields})
        assert answer.status_code == 200, fields
        if not fields["stream"]:
            assert [choice["index"] for choice in answer.json()["choices"]] == list(range(fields["n"]))
            endings |= {choice["finish_reason"] for choice in answer.json()["choices"]}
        else:
            assert answer.text.endswith("data: [DONE]\n\n"), fields
    assert endings == {"stop", "length"}


def end_of_sequence(http: httpx2.Client) -> int:
    """The id with which the demo model ends a text: with it alone allowed, a request stops at once."""
    for token in range(8):
        body = {
            "model": "demo",
            "prompt": "Once",
            "max_tokens": 2,
            "temperature": 0,
            "logit_bias": {str(token): 100},
        }
        if http.post("/v1/completions", json=body).json()["choices"][0]["finish_reason"] == "stop":
            return token
    raise AssertionError("no id ends a text")


def start(demo: ServerProcess, body: dict[str, Any]) -> socket.socket:
    host, _, port = demo.url.partition("://")[2].rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    data = json.dumps(body).encode()
    connection.sendall(request("POST", "/v1/completions", "content-type: application/json", body=data))
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_hostile_23_slot_of_a_decoding_request(demo: ServerProcess, http: httpx2.Client, stream: bool) -> None:
    with start(demo, {**ENDLESS, "n": 3, "stream": stream}):
        assert eventually(lambda: in_use(http) == (3, 0), BACK_WITHIN_S)
    assert eventually(lambda: in_use(http) == (0, 0), BACK_WITHIN_S)


@pytest.mark.parametrize("stream", [False, True])
def test_hostile_23_slot_of_a_request_in_prefill(demo: ServerProcess, http: httpx2.Client, stream: bool) -> None:
    with start(demo, {**ENDLESS, "prompt": [50] * 900_000, "stream": stream}):
        assert eventually(lambda: in_use(http)[0] == 1, 30)
    assert eventually(lambda: in_use(http) == (0, 0), BACK_WITHIN_S)


@pytest.mark.parametrize("stream", [False, True])
def test_hostile_23_place_of_a_request_in_the_queue(
    demo: ServerProcess, http: httpx2.Client, stream: bool
) -> None:
    with start(demo, {**ENDLESS, "n": NUM_SLOTS}):
        assert eventually(lambda: in_use(http) == (NUM_SLOTS, 0), BACK_WITHIN_S)
        with start(demo, {**ENDLESS, "stream": stream}):
            assert eventually(lambda: in_use(http) == (NUM_SLOTS, 1), BACK_WITHIN_S)
        assert eventually(lambda: in_use(http) == (NUM_SLOTS, 0), BACK_WITHIN_S)


@pytest.mark.parametrize("stream", [False, True])
def test_hostile_23_slots_around_the_last_token(demo: ServerProcess, http: httpx2.Client, stream: bool) -> None:
    """Closed when the answer has begun to come, and so at or about its last token."""
    for max_tokens in range(1, 20):
        with start(demo, {**ENDLESS, "max_tokens": max_tokens, "stream": stream}) as connection:
            connection.recv(1)
    assert eventually(lambda: in_use(http) == (0, 0), BACK_WITHIN_S)


def test_hostile_23_slots_of_choices_that_end_apart(demo: ServerProcess, http: httpx2.Client) -> None:
    """Stop strings end some of the choices; the connection then closes on the others."""
    with start(demo, {**ENDLESS, "n": 4, "stop": ["a"], "stream": True, "temperature": 2}) as connection:
        connection.recv(1)
    assert eventually(lambda: in_use(http) == (0, 0), BACK_WITHIN_S)


def num_tasks(http: httpx2.Client) -> int:
    """Of the API worker's event loop, as it was last noted, when nobody asked."""
    time.sleep(1.5 * TASKS_NOTED_EACH_S)
    found = re.search(r'^remuda:asyncio_tasks\{pid="\d+"\} (\S+)$', http.get("/metrics").text, re.M)
    assert found is not None
    return int(float(found[1]))


def test_hostile_23_no_task_is_left(demo: ServerProcess, http: httpx2.Client) -> None:
    """Each of a dozen requests has tasks of its own, whether it waits, or streams, or is to be answered whole."""
    before = num_tasks(http)
    with contextlib.ExitStack() as stack:
        for i in range(12):
            stack.enter_context(start(demo, {**ENDLESS, "stream": i % 2 == 0}))
        assert eventually(lambda: num_tasks(http) >= before + 12, 20)
    assert eventually(lambda: num_tasks(http) <= before, 20)


def memory(server: ServerProcess) -> int:
    """Bytes of all processes that serve HTTP."""
    return sum(process.memory_info().rss for process in server.http_processes)


def test_hostile_22_a_slow_reader(demo: ServerProcess, http: httpx2.Client) -> None:
    """It reads nothing of four endless streams, with logprobs to make them fat; its slots come back anyway."""
    before = memory(demo)
    body = {**ENDLESS, "n": 4, "stream": True, "logprobs": 20}
    host, _, port = demo.url.partition("://")[2].rpartition(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        data = json.dumps(body).encode()
        connection.sendall(request("POST", "/v1/completions", "content-type: application/json", body=data))
        assert eventually(lambda: in_use(http) == (4, 0), BACK_WITHIN_S)
        assert eventually(lambda: in_use(http) == (0, 0), STALLED_WITHIN_S)
        assert memory(demo) - before < 50 * 2**20


def test_hostile_18_the_engines_socket_is_its_owners(demo: ServerProcess) -> None:
    paths = {Path(c.laddr) for c in psutil.Process(demo.engine.pid).net_connections("unix") if c.laddr}
    sockets = [path for path in paths if path.name.startswith("engine-")]
    assert sockets
    for path in sockets:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700


def test_hostile_25_health_tells_the_truth_of_a_dead_engine() -> None:
    """Its own server: this one's engine is killed."""
    with serving("demo", "--num-slots", "1") as server, server.http() as http:
        assert http.get("/v1/models").status_code == 200
        engine = server.engine
        engine.kill()
        psutil.wait_procs([engine], timeout=10)
        assert eventually(lambda: http.get("/ready").status_code == 503, within_s=2)
        # The server lives, and a supervisor is to leave it alone.
        assert http.get("/health").status_code == 200
        refused = http.post("/v1/completions", json=CANARY)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert eventually(lambda: http.get("/ready").status_code == 200, within_s=120)
        assert http.post("/v1/completions", json=CANARY).status_code == 200
        assert re.search(r"^remuda:engine_restarts_total 1.0$", http.get("/metrics").text, re.M)


def test_a_queue_that_is_full_is_a_429() -> None:
    with serving("demo", "--num-slots", "1", "--max-queue", "2") as server, server.http() as http:
        held = [start(server, ENDLESS) for _ in range(3)]
        assert eventually(lambda: in_use(http) == (1, 2))
        with start(server, ENDLESS) as connection:
            status, headers, body = read_answer(connection)
        assert (status, headers["retry-after"]) == (429, "1")
        assert json.loads(body)["error"]["code"] == "queue_full"
        for connection in held:
            connection.close()
        assert eventually(lambda: in_use(http) == (0, 0))
