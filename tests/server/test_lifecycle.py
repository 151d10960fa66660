"""The server process as a whole: crashes of the engine, signals, and that nothing is left behind."""

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest

from remuda.server.cli import run
from remuda.server.offline import EXIT_BROKEN_PIPE
from tests.server.conftest import ServerProcess, serving
from tests.server.fakes import eventually

pytestmark = pytest.mark.e2e

TINY = str(Path(__file__).parents[1] / "data" / "longhorn-tiny")
ENDLESS = {
    "model": "demo",
    "prompt": "Once",
    "max_tokens": 10_000_000,
    "stream": True,
    "extra_body": {"ignore_eos": True},
}


def read_until_it_ends(client: openai.OpenAI, ends: list[Any], started: threading.Event) -> None:
    """Read an endless stream; append what ended it."""
    try:
        for _ in client.completions.create(**ENDLESS):  # type: ignore[call-overload]
            started.set()
        ends.append(None)
    except (openai.APIError, httpx2.HTTPError) as error:
        ends.append(error)


def test_killed_engine_comes_back() -> None:
    with serving("demo", "--num-slots", "4") as server, server.openai() as client, server.http() as http:
        ends: list[Any] = []
        readers = []
        for _ in range(3):
            started = threading.Event()
            readers.append(threading.Thread(target=read_until_it_ends, args=(client, ends, started)))
            readers[-1].start()
            assert started.wait(60)
        first = server.engine
        first.kill()
        for reader in readers:
            reader.join(30)
        assert [str(end) for end in ends] == ["the engine process ended (SIGKILL)"] * 3
        assert eventually(lambda: http.get("/ready").status_code == 200, within_s=120)
        assert server.engine.pid != first.pid
        assert client.completions.create(model="demo", prompt="Once", max_tokens=2).usage is not None


def test_stopped_engine_is_found_out_and_replaced() -> None:
    with serving("demo", "--num-slots", "4") as server, server.openai() as client, server.http() as http:
        ends: list[Any] = []
        started = threading.Event()
        reader = threading.Thread(target=read_until_it_ends, args=(client, ends, started))
        reader.start()
        assert started.wait(60)
        first = server.engine
        first.suspend()
        reader.join(60)
        assert [str(end) for end in ends] == ["the engine process ended (hung)"]
        assert eventually(lambda: http.get("/health").json()["status"] == "ready", within_s=120)
        assert not first.is_running()
        assert client.completions.create(model="demo", prompt="Once", max_tokens=2).usage is not None


def test_sigterm_under_load_ends_everything() -> None:
    with serving("demo", "--num-slots", "4", "--drain-timeout", "0.3") as server, server.openai() as client:
        engine = server.engine
        ends: list[Any] = []
        started = threading.Event()
        reader = threading.Thread(target=read_until_it_ends, args=(client, ends, started))
        reader.start()
        assert started.wait(60)
        assert server.stop(signal.SIGTERM) == 0
        reader.join(30)
        assert [str(end) for end in ends] == ["the server is shutting down"]
        assert not psutil.pid_exists(engine.pid) or not engine.is_running()


def test_running_requests_may_finish_within_the_drain_timeout() -> None:
    with serving("demo", "--num-slots", "4", "--drain-timeout", "60") as server, server.openai() as client:
        stream = client.completions.create(
            model="demo", prompt="Once", max_tokens=100, stream=True, extra_body={"ignore_eos": True}
        )
        next(stream)
        server.process.send_signal(signal.SIGINT)
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
        assert server.stop() == 0


def test_draining_server_refuses_what_is_new() -> None:
    with serving("demo", "--num-slots", "4", "--drain-timeout", "60") as server, server.openai() as client:
        stream = client.completions.create(
            model="demo", prompt="Once", max_tokens=3000, stream=True, extra_body={"ignore_eos": True}
        )
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        with server.http() as http:
            assert eventually(lambda: http.get("/health").json()["status"] == "draining")
            refused = http.post("/v1/completions", json={"model": "demo", "prompt": "Once"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "draining" in refused.json()["error"]["message"]
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
        assert server.stop() == 0


def test_second_signal_ends_at_once() -> None:
    with serving("demo", "--num-slots", "4", "--drain-timeout", "600") as server, server.openai() as client:
        ends: list[Any] = []
        started = threading.Event()
        reader = threading.Thread(target=read_until_it_ends, args=(client, ends, started))
        reader.start()
        assert started.wait(60)
        server.process.send_signal(signal.SIGTERM)
        with server.http() as http:
            assert eventually(lambda: http.get("/health").json()["status"] == "draining")
        assert reader.is_alive()
        assert server.stop(signal.SIGTERM) == 0
        reader.join(30)
        assert len(ends) == 1
        assert isinstance(ends[0], openai.APIError | httpx2.HTTPError)


def test_nothing_outlives_a_killed_server() -> None:
    server = ServerProcess("demo", "--num-slots", "4", "--api-workers", "2")
    children = [server.engine, *server.workers]
    assert len(children) == 3
    server.stop(signal.SIGKILL)
    _, left = psutil.wait_procs(children, timeout=30)
    assert left == []


def test_sigterm_to_every_process_drains() -> None:
    """As a service manager sends it."""
    with serving("demo", "--num-slots", "4", "--drain-timeout", "60") as server, server.openai() as client:
        stream = client.completions.create(
            model="demo", prompt="Once", max_tokens=1000, stream=True, extra_body={"ignore_eos": True}
        )
        next(stream)
        for process in (*server.workers, server.engine, server.process):
            process.send_signal(signal.SIGTERM)
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
        assert server.stop() == 0


def test_port_in_use(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", "--port", str(port)]) == 2
    message = capfd.readouterr().err
    assert message.startswith(f"remuda: cannot listen on 127.0.0.1:{port}: ")
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "cpu", "--dtype", "bfloat16"], "bfloat16"),
        (["--num-slots", "1000000000"], "slots"),
    ],
)
def test_what_the_engine_refuses_is_exit_2(
    capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(["serve", "--port", "0", *arguments]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("remuda: ")
    assert message in last


def test_generate(capfd: pytest.CaptureFixture[str]) -> None:
    chat = ["--chat", "--prompt", "Hi! How are you today?", "--temperature", "0", "--max-tokens", "30"]
    assert run(["generate", "demo", *chat]) == 0
    assert capfd.readouterr().out.startswith("I'm doing well, thank you!")


def test_generate_into_a_pipe_that_closes() -> None:
    command = [sys.executable, "-c", "from remuda.server.cli import main; main()", "generate", "demo"]
    arguments = ["--prompt", "Once", "--max-tokens", "100000", "--ignore-eos"]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert len(process.stdout.read(5)) == 5
        process.stdout.close()
        message = process.stderr.read().decode()
        assert process.wait(60) == EXIT_BROKEN_PIPE
    assert "Traceback" not in message
    assert "BrokenPipe" not in message


def test_ids_of_the_padding_are_refused() -> None:
    """The checkpoint has 101 tokens in 104 rows; nobody may ask for the other three."""
    with serving(TINY, "--num-slots", "4") as server, server.http() as http:
        base = {"model": "longhorn-tiny", "prompt": [5], "max_tokens": 2, "ignore_eos": True}
        for fields, param in [({"logit_bias": {"102": 5}}, "logit_bias"), ({"prompt": [102]}, "prompt")]:
            refused = http.post("/v1/completions", json={**base, **fields})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
            assert "102" in refused.json()["error"]["message"]
            answer = http.post("/v1/completions", json=base)
            assert answer.status_code == 200
            assert answer.json()["usage"]["completion_tokens"] == 2
        last = http.post("/v1/completions", json={**base, "prompt": [100], "logit_bias": {"100": 5}})
        assert last.status_code == 200


def test_convert_and_serve_the_result(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from importlib import resources

    source = str(resources.files("remuda.demo"))
    assert run(["convert", source, str(tmp_path / "native")]) == 0
    assert "3,963,136 parameters" in capfd.readouterr().err
    with serving(str(tmp_path / "native"), "--num-slots", "4") as server, server.openai() as client:
        assert [model.id for model in client.models.list()] == ["native"]
        answer = client.completions.create(model="native", prompt="Once upon a time", max_tokens=2)
        assert answer.usage is not None
