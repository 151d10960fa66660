"""The chat in a pseudo-terminal: answers, commands, Ctrl-C, errors."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remuda.engine.wire import RequestRejected
from tests.clients.chat.pty_chat import PtyChat
from tests.clients.raw_server import END, STREAM_HEAD, RawServer, answer
from tests.clients.raw_server import says as event_says
from tests.server.conftest import ServerProcess
from tests.server.fakes import AppServer, FakeEngine, byte_tokenizer, eventually, says

CTRL_C, CTRL_D = "\x03", "\x04"


@pytest.fixture
def chat(server: AppServer, tmp_path: Path) -> Iterator[PtyChat]:
    """At its first prompt, over the scripted engine."""
    with PtyChat(server.url, tmp_path, "--max-tokens", "9000") as found:
        found.until("> ")
        yield found


def prompt_of(engine: FakeEngine, place: int = -1) -> str:
    """The prompt of a request, with its special tokens."""
    return byte_tokenizer().decode(engine.requests[place].prompt, skip_special_tokens=False)


def test_answers_with_a_status_line(chat: PtyChat, engine: FakeEngine) -> None:
    assert "fake at http://127.0.0.1" in chat.shown()
    assert "state 1 kB, however long" in chat.shown()
    engine.script = says("**Hello** there")
    shown = chat.ask("hi")
    assert "\nHello there\n" in shown
    assert "16 tokens · " in shown
    assert "context 22 · state 1 kB, constant" in shown
    engine.script = says("Again")
    chat.ask("more")
    assert prompt_of(engine) == "<bos><user>hi<end><assistant>**Hello** there<end><user>more<end><assistant>"
    chat.type(CTRL_D)
    assert chat.exit_code() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(chat: PtyChat, engine: FakeEngine) -> None:
    engine.script = says("word " * 1500)
    engine.step_s = 0.002
    chat.type("go on\n")
    chat.until("word word")
    chat.type(CTRL_C)
    assert "stopped" in chat.until("\n> ")
    assert eventually(lambda: len(engine.aborts) == 1)
    engine.script, engine.step_s = says("Fine"), 0
    chat.ask("and now")
    partial = prompt_of(engine).split("<assistant>")[1]
    assert partial.startswith("word word")
    assert len(partial) < 5000
    chat.type("/exit\n")
    assert chat.exit_code() == 0


def test_ctrl_c_before_the_first_token_takes_the_question_back(chat: PtyChat, engine: FakeEngine) -> None:
    engine.running.clear()
    chat.type("nothing comes\n")
    assert eventually(lambda: len(engine.requests) == 1)
    chat.until("waiting for the first token")
    chat.type(CTRL_C)
    chat.until("\n> ")
    engine.running.set()
    chat.ask("other")
    assert prompt_of(engine) == "<bos><user>other<end><assistant>"


def test_ctrl_c_twice_at_the_prompt_leaves(chat: PtyChat) -> None:
    def interrupt() -> None:
        chat.type("half a line")
        chat.until("half a line")
        # Between an echo and its next wait for a key, Python's readline would miss a signal.
        assert eventually(chat.is_waiting)
        chat.type(CTRL_C)

    interrupt()
    chat.until("Ctrl-C again, Ctrl-D or /exit leaves")
    chat.until("> ")
    assert "there is nothing to ask again" in chat.ask("/retry")
    interrupt()
    chat.until("leaves")
    chat.until("> ")
    interrupt()
    assert chat.exit_code() == 130


def test_reset_retry_params_stats(chat: PtyChat, engine: FakeEngine) -> None:
    chat.ask("one")
    chat.ask("/retry")
    assert prompt_of(engine) == "<bos><user>one<end><assistant>"
    assert len(engine.requests) == 2
    shown = chat.ask("/params temperature=0.5 max_tokens=3 seed=7")
    assert "temperature = 0.5" in shown
    assert "cut by max_tokens" in chat.ask("two")
    params = engine.requests[-1].params
    assert (params.temperature, params.max_tokens, params.seed) == (0.5, 3, 7)
    assert "error: /params cannot set stream" in chat.ask("/params stream=false")
    shown = chat.ask("/stats")
    assert "answers: 3, with 27 tokens" in shown
    assert "state of a conversation: 1,000 bytes" in shown
    assert "forgotten" in chat.ask("/reset")
    chat.ask("three")
    assert prompt_of(engine) == "<bos><user>three<end><assistant>"
    assert "error: there is no command /nonsense" in chat.ask("/nonsense")
    assert "/save FILE" in chat.ask("/help")


def test_save_and_load(chat: PtyChat, engine: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "my talk.json"
    chat.ask("one")
    assert "saved, 2 messages" in chat.ask(f"/save {path}")
    assert [message["content"] for message in json.loads(path.read_text())["messages"]] == ["one", "Hello there"]
    chat.ask("/reset")
    assert "loaded, 2 messages" in chat.ask(f"/load {path}")
    chat.ask("two")
    assert prompt_of(engine) == "<bos><user>one<end><assistant>Hello there<end><user>two<end><assistant>"
    assert "error: cannot read" in chat.ask("/load /no/such/file")
    for command in ("/save", "/load"):
        assert "error: there is no home directory for ~no-such-user/x" in chat.ask(f"{command} ~no-such-user/x")
    assert "File name too long" in " ".join(chat.ask(f"/save {tmp_path}/{'x' * 300}").split())
    assert "saved, 4 messages" in chat.ask(f"/save {path}")


def test_bytes_that_are_no_text(server: AppServer, engine: FakeEngine, tmp_path: Path) -> None:
    environment = {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8:strict"}
    with PtyChat(server.url, tmp_path, environment=environment) as chat:
        chat.until("> ")
        chat.ask("one")
        assert "error: what was typed is not text in utf-8" in chat.ask("a\udcff")
        chat.ask("two")
        assert prompt_of(engine) == "<bos><user>one<end><assistant>Hello there<end><user>two<end><assistant>"


def test_several_lines_and_history(chat: PtyChat, engine: FakeEngine, server: AppServer, tmp_path: Path) -> None:
    chat.type("one\\\n")
    chat.until("\n. ")
    chat.ask("two")
    assert "<user>one\ntwo<end>" in prompt_of(engine)
    chat.type('"""\n')
    chat.until("\n. ")
    chat.type("three\n")
    chat.until("\n. ")
    chat.ask('four"""')
    assert "<user>three\nfour<end>" in prompt_of(engine)
    chat.type(CTRL_D)
    assert chat.exit_code() == 0
    history = tmp_path / "remuda" / "chat_history"
    assert history.read_text().splitlines()[-1] == 'four"""'
    assert history.stat().st_mode & 0o777 == 0o600
    with PtyChat(server.url, tmp_path) as again:
        again.until("> ")
        again.type("\x1b[A\x1b[A")
        again.until("three")


def test_errors_are_a_line_and_the_conversation_stays(chat: PtyChat, engine: FakeEngine) -> None:
    chat.ask("one")
    engine.script = lambda request: RequestRejected(request.request_id, "InvalidRequestError", "no such thing")
    assert "error: no such thing (HTTP 400)" in chat.ask("two")
    engine.script = says("Yes")
    chat.ask("/retry")
    assert prompt_of(engine) == "<bos><user>one<end><assistant>Hello there<end><user>two<end><assistant>"
    assert "Traceback" not in chat.shown()


def test_sequences_of_the_model_do_not_reach_the_terminal(chat: PtyChat, engine: FakeEngine) -> None:
    engine.script = says("a\x1b]0;owned\x07b\x1b[2Jc &#27;[2J")
    shown = chat.ask("hi")
    assert "a␛]0;owned␇b␛[2Jc" in shown
    assert "\x1b]" not in chat.output
    assert "\x1b[2J" not in chat.output
    assert "\x07" not in chat.output


def test_a_broken_stream_keeps_what_came(raw: Callable[..., RawServer], tmp_path: Path) -> None:
    no_info = [answer(404, {"error": {"message": "unknown"}})]
    server = raw(no_info, [STREAM_HEAD, event_says("Half an")], [STREAM_HEAD, event_says("x"), END], [answer(401)])
    with PtyChat(server.url, tmp_path, "--model", "m") as chat:
        chat.until("> ")
        shown = chat.ask("hi")
        assert "Half an\n" in shown
        assert "error: http://127.0.0.1" in shown
        assert "the connection broke" in shown
        assert "error: the stream ended before the answer did" in chat.ask("more")
        assert b'"content":"Half an"' in server.requests[-1]
        assert b"continuous_usage_stats" not in server.requests[-1]
        assert "(HTTP 401)" in chat.ask("more")
        server.stop()
        assert "error: cannot connect to" in chat.ask("more")
        chat.type("/exit\n")
        assert chat.exit_code() == 0


def test_a_dumb_terminal_gets_plain_text(server: AppServer, engine: FakeEngine, tmp_path: Path) -> None:
    engine.script = says("**Hello**")
    with PtyChat(server.url, tmp_path, environment={"TERM": "dumb"}) as chat:
        chat.until("> ")
        assert "**Hello**\n" in chat.ask("hi")
        assert "\x1b[" not in chat.output.replace("\x1b[?2004h", "").replace("\x1b[?2004l", "")


@pytest.mark.parametrize("no_color", ["", "1"])
def test_one_question_is_drawn_with_colours_if_wanted(
    server: AppServer, engine: FakeEngine, tmp_path: Path, no_color: str
) -> None:
    engine.script = says("**Hello** `there`")
    with PtyChat(server.url, tmp_path, "-p", "hi", environment={"NO_COLOR": no_color}) as chat:
        assert chat.exit_code() == 0
    assert "Hello there\n" in chat.shown()
    styles = {code for codes in re.findall(r"\x1b\[([0-9;]+)m", chat.output) for code in codes.split(";")}
    # Bold is no colour.
    assert "1" in styles
    assert bool({code for code in styles if int(code) >= 30}) == (not no_color)


def test_a_model_without_a_chat_template_continues_the_text(engine: FakeEngine, tmp_path: Path) -> None:
    server = AppServer(engine, byte_tokenizer(template=None))
    engine.script = says(" upon")
    try:
        with PtyChat(server.url, tmp_path) as chat:
            chat.until("> ")
            assert "this model has no chat template" in " ".join(chat.shown().split())
            chat.ask("Once")
            chat.ask("a time")
            assert prompt_of(engine) == "<bos>Once upon\na time"
    finally:
        server.stop()


@pytest.mark.e2e
def test_with_the_demo_model(demo: ServerProcess, tmp_path: Path) -> None:
    with PtyChat(demo.url, tmp_path, "--max-tokens", "20", "--temperature", "0") as chat:
        chat.until("> ")
        first = chat.ask("Tell me a story about a dog.")
        assert "20 tokens · " in first
        assert "cut by max_tokens" in " ".join(first.split())
        chat.ask("/reset")
        assert "20 tokens · " in chat.ask("Tell me a story about a dog.")
        chat.type(CTRL_D)
        assert chat.exit_code() == 0
