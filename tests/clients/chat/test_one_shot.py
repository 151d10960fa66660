"""The chat without a terminal: `-p` and pipes, in this process; stdout has the answer alone."""

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from remuda.engine.wire import AddRequest, RequestRejected, SequenceOutput
from remuda.server.access import AccessPolicy
from remuda.server.cli import run
from tests.clients.raw_server import RawServer, answer
from tests.server.conftest import ServerProcess
from tests.server.fakes import AppServer, FakeEngine, byte_tokenizer, eventually, says


def piped(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Standard input is a pipe with this text."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_the_command_line_loads_the_chat_when_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys, remuda.server.cli; sys.exit(any(name.startswith('remuda.clients') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert run(["--help"]) == 0
    assert "Chat with a served model in the terminal." in capsys.readouterr().out
    assert run(["chat", "--help"]) == 0
    assert "--prompt" in capsys.readouterr().out


def test_a_question(server: AppServer, engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.script = says("**Hi** \x1b[31mthere")
    line = ["chat", "--url", server.url, "-p", "hello", "--temperature", "0.5", "--top-k", "4", "--stop", "END"]
    assert run([*line, "--max-tokens", "50", "--seed", "3"]) == 0
    assert capsys.readouterr() == ("**Hi** ␛[31mthere\n", "")
    params = engine.requests[0].params
    assert (params.temperature, params.top_k, params.stop, params.seed) == (0.5, 4, ("END",), 3)
    assert params.max_tokens == 50


def test_a_pipe(
    server: AppServer, engine: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "two\nlines\n")
    assert run(["chat", "--url", server.url + "/v1", "--model", "org/alias"]) == 0
    assert capsys.readouterr() == ("Hello there\n", "")
    assert byte_tokenizer().decode(engine.requests[0].prompt, False) == "<bos><user>two\nlines<end><assistant>"


def test_without_a_chat_template(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    server = AppServer(engine, byte_tokenizer(template=None))
    try:
        assert run(["chat", "--url", server.url, "-p", "Once", "--system", "Upon"]) == 0
    finally:
        server.stop()
    out, err = capsys.readouterr()
    assert out == "Hello there\n"
    assert err == "remuda: this model has no chat template: it continues the text so far, by /v1/completions\n"
    assert byte_tokenizer().decode(engine.requests[0].prompt, False) == "<bos>Upon\nOnce"
    assert engine.requests[0].params.max_tokens == 256


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--url", "http://127.0.0.1:1", "-p", "x"], 1, "cannot connect to http://127.0.0.1:1: "),
        (["--url", "nonsense", "-p", "x"], 2, "url must be http://HOST:PORT"),
        (["-p", " "], 2, "the question is empty: there is no text in --prompt"),
        (["-p", "x", "--top-k", "1.5"], 2, "'1.5' is not a whole number"),
        (["-p", "x", "--temperature", "warm"], 2, "--temperature"),
        (["-p", "x", "--nonsense", "1"], 2, "--nonsense"),
        (["-p", "x", "--api-key", "two words"], 2, "api_key: a key is printable ASCII without spaces"),
    ],
)
def test_what_cannot_begin_is_one_line(
    arguments: list[str], exit_code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["chat", *arguments]) == exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("remuda: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--temperature", "nan"], 2, "temperature must be a finite number, not nan"),
        (["--temperature", "7"], 1, "temperature must be in [0, 2], not 7.0 (HTTP 400)"),
        (["--model", "other"], 1, "other"),
        (["--system", "x"], 1, "no system role"),
    ],
)
def test_refusals_are_one_line(
    server: AppServer, arguments: list[str], exit_code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["chat", "--url", server.url, "-p", "x", *arguments]) == exit_code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_an_empty_pipe(
    server: AppServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "\n")
    assert run(["chat", "--url", server.url]) == 2
    assert "there is no text in standard input" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "message"), [(None, "standard input is not text in utf-8"), ("\udcff", "as JSON")]
)
def test_a_question_that_is_no_text(
    server: AppServer,
    prompt: str | None,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="utf-8"))
    assert run(["chat", "--url", server.url, *([] if prompt is None else ["-p", prompt])]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_keys(engine: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    server = AppServer(engine, policy=AccessPolicy(("right",)))
    try:
        assert run(["chat", "--url", server.url, "-p", "x"]) == 1
        assert "(HTTP 401)" in capsys.readouterr().err
        assert run(["chat", "--url", server.url, "-p", "x", "--api-key", "right"]) == 0
        monkeypatch.setenv("REMUDA_API_KEY", "right")
        assert run(["chat", "--url", server.url, "-p", "x"]) == 0
        assert capsys.readouterr() == ("Hello there\n" * 2, "")
    finally:
        server.stop()


def test_a_full_queue(server: AppServer, engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.script = lambda request: RequestRejected(request.request_id, "QueueFullError", "the queue is full")
    assert run(["chat", "--url", server.url, "-p", "x"]) == 1
    assert capsys.readouterr() == ("", "remuda: the queue is full (HTTP 429)\n")
    # It was tried again as the server asked.
    assert len(engine.requests) == 3


def test_an_error_in_the_middle(server: AppServer, engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    def script(request: AddRequest) -> list[list[SequenceOutput]]:
        return [*says("Hello")(request)[:3], [SequenceOutput(request.request_id, 0, [], finish_reason="error")]]

    engine.script = script
    assert run(["chat", "--url", server.url, "-p", "x"]) == 1
    out, err = capsys.readouterr()
    assert out == "Hel\n"
    assert (err[:8], err.count("\n")) == ("remuda: ", 1)


def test_other_servers(raw: Callable[..., RawServer], capsys: pytest.CaptureFixture[str]) -> None:
    server = raw([answer(404, b"not here")], [answer(200, {"data": []})])
    assert run(["chat", "--url", server.url, "-p", "x"]) == 1
    assert "lists no model; name one with --model" in capsys.readouterr().err
    body = {"error": {"message": "you must provide a chat template\x1b[2J"}}
    server = raw(
        [answer(200, {"model_id": "tgi"})],
        [answer(400, body)],
        [answer(400, {"error": {"message": "no\x1b[2J\nroom"}})],
    )
    assert run(["chat", "--url", server.url, "-p", "x", "--model", "m"]) == 1
    _, err = capsys.readouterr()
    assert err.splitlines() == [
        "remuda: this model has no chat template: it continues the text so far, by /v1/completions",
        "remuda: no␛[2J room (HTTP 400)",
    ]
    assert b"POST /v1/completions" in server.requests[-1]


def test_ctrl_c_leaves_what_came(
    server: AppServer, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.script = says("word " * 1500)
    engine.step_s = 0.002

    def interrupt() -> None:
        eventually(lambda: bool(engine.requests))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert run(["chat", "--url", server.url, "-p", "x", "--max-tokens", "9000"]) == 130
    thread.join()
    out, err = capsys.readouterr()
    assert (out.replace("word", "").replace(" ", "").strip("word\n"), err) == ("", "")
    assert eventually(lambda: len(engine.aborts) == 1)


@pytest.mark.e2e
def test_in_a_pipe_with_the_demo_model(demo: ServerProcess) -> None:
    code = "from remuda.server.cli import main; main()"
    line = [sys.executable, "-c", code, "chat", "--url", demo.url, "--max-tokens", "40", "--temperature", "0"]
    found = subprocess.run(line, input="Tell me a story about a dog.", text=True, capture_output=True, timeout=120)
    assert (found.returncode, found.stderr) == (0, "")
    assert len(found.stdout.split()) > 10
    assert found.stdout.replace("\n", "").isprintable()
    again = subprocess.run(
        [*line, "-p", "Tell me a story about a dog."], text=True, capture_output=True, timeout=120
    )
    assert again.stdout == found.stdout


@pytest.mark.e2e
def test_who_reads_may_leave_early(demo: ServerProcess) -> None:
    code = "from remuda.server.cli import main; main()"
    line = [sys.executable, "-c", code, "chat", "--url", demo.url, "-p", "A story, please", "--max-tokens", "500"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
