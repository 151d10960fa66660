"""What can go wrong between the page and the server: each failure in words, with a way on."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from remuda.engine.wire import AddRequest, RequestRejected, SequenceOutput
from remuda.server.access import AccessPolicy
from remuda.server.static_page import StaticPage
from tests.browser.chat_page import ChatPage
from tests.browser.conftest import OpenPage
from tests.server.fakes import AppServer, FakeEngine, eventually, ids, says

pytestmark = pytest.mark.browser

KEY = "sk-remuda-0123456789"
AGAIN = '.assistant [data-action="retry"]'


def failure(chat: ChatPage) -> str:
    """What the last answer failed of."""
    chat.wait()
    return chat[".failure p"].inner_text()


@pytest.fixture
def locked(engine: FakeEngine) -> Iterator[AppServer]:
    """A server with a key."""
    running = AppServer(engine, policy=AccessPolicy(api_keys=(KEY,)))
    yield running
    running.stop()


def test_a_server_with_keys_asks_for_one(open_page: OpenPage, locked: AppServer, engine: FakeEngine) -> None:
    chat = open_page(locked.url, ready=False)
    chat.page.goto(locked.url)
    expect(chat["#key"]).to_be_visible()
    expect(chat["#key-reason"]).to_have_text("This server asks for an API key.")
    expect(chat["#key-value"]).to_be_focused()
    for wrong in ("", "two words", "schlüssel", "x" * 513):
        chat.page.fill("#key-value", wrong)
        chat.press("Enter")
        expect(chat["#key-error"]).to_have_text("A key has 1 to 512 ASCII characters and no spaces.")
    chat.page.fill("#key-value", "wrong")
    chat.click("#key button[type=submit]")
    expect(chat["#key-reason"]).to_have_text("The server does not know the key that was given. Give another.")
    chat.page.fill("#key-value", KEY)
    chat.press("Enter")
    expect(chat["#model option"]).to_have_count(2)
    expect(chat["#notice"]).to_be_hidden()
    chat.send("Hi")
    assert chat.texts("assistant") == ["Hello there"]
    assert chat.stored("sessionStorage")["remuda-chat-key"] == KEY
    assert KEY not in str(chat.stored("localStorage"))
    assert KEY not in chat.page.content()
    assert chat["#key-value"].input_value() == ""
    # A reload keeps it; another tab is another session.
    chat.page.reload()
    chat.send("Again")
    other = open_page(locked.url, ready=False)
    other.page.goto(locked.url)
    expect(other["#key"]).to_be_visible()
    other.click("#cancel-key")
    expect(other["#notice p"]).to_have_text("The server wants an API key that it knows.")
    other.click("#notice button")
    expect(other["#key"]).to_be_visible()


def test_the_key_can_be_forgotten(open_page: OpenPage, locked: AppServer) -> None:
    chat = open_page(locked.url, ready=False)
    chat.page.goto(locked.url)
    chat.page.fill("#key-value", KEY)
    chat.press("Enter")
    chat.send("Hi")
    chat.menu("open-key")
    chat.click("#forget-key")
    expect(chat["#key"]).to_be_visible()
    assert "remuda-chat-key" not in chat.stored("sessionStorage")
    chat.press("Escape")
    expect(chat["#key"]).to_be_hidden()


def test_a_key_where_the_browser_keeps_nothing(open_page: OpenPage, locked: AppServer) -> None:
    chat = open_page(locked.url, ready=False)
    chat.page.add_init_script(
        "Storage.prototype.setItem = () => { throw new DOMException('no', 'SecurityError'); }"
    )
    chat.page.goto(locked.url)
    chat.page.fill("#key-value", KEY)
    chat.press("Enter")
    chat.send("Hi")
    assert chat.texts("assistant") == ["Hello there"]


def test_a_key_that_the_server_no_longer_knows(open_page: OpenPage, locked: AppServer) -> None:
    chat = open_page(locked.url, ready=False)
    chat.page.goto(locked.url)
    chat.page.fill("#key-value", KEY)
    chat.press("Enter")
    expect(chat["#model option"]).to_have_count(2)
    chat.page.evaluate("sessionStorage.setItem('remuda-chat-key', 'old')")
    chat.begin("Hi")
    assert failure(chat) == "The server wants an API key that it knows."
    chat.page.fill("#key-value", KEY)
    chat.press("Enter")
    chat.click(AGAIN)
    chat.wait()
    assert chat.texts("assistant") == ["Hello there"]


def rejected(kind: str, message: str) -> Any:
    """A script by which the engine takes no request."""

    def script(request: AddRequest) -> RequestRejected:
        return RequestRejected(request.request_id, kind, message)

    return script


def test_a_busy_server(chat: ChatPage, engine: FakeEngine) -> None:
    engine.script = rejected("QueueFullError", "64 requests wait")
    chat.begin("Hi")
    assert failure(chat) == "The server is busy: 64 requests wait. Try again in 1 s."
    expect(chat["#announcer"]).to_contain_text("The server is busy")
    expect(chat[AGAIN]).to_have_text("Try again")
    engine.script = says("Now")
    chat.click(AGAIN)
    chat.wait()
    assert (chat.texts("user"), chat.texts("assistant")) == (["Hi"], ["Now"])
    expect(chat[".failure"]).to_have_count(0)


def test_a_server_that_is_not_ready(chat: ChatPage, server: AppServer) -> None:
    server.state.is_draining = True
    chat.begin("Hi")
    assert failure(chat).startswith("The server is not ready: ")
    assert "Try again in 1 s." in failure(chat)
    server.state.is_draining = False
    chat.click(AGAIN)
    chat.wait()
    assert chat.texts("assistant") == ["Hello there"]


def test_a_server_that_is_not_ready_yet(open_page: OpenPage, server: AppServer) -> None:
    """The page waits for it by itself."""
    server.state.is_draining = True
    chat = open_page(server.url, ready=False)
    chat.page.goto(server.url)
    expect(chat["#notice p"]).to_contain_text("The server is not ready: ")
    chat.page.fill("#prompt", "Hi")
    expect(chat["#send"]).to_be_disabled()
    server.state.is_draining = False
    expect(chat["#notice"]).to_be_hidden()
    chat.click("#send")
    chat.wait()
    assert chat.texts("assistant") == ["Hello there"]


def test_a_request_that_is_refused(chat: ChatPage) -> None:
    """The template of this model knows no system role."""
    chat.click("#open-settings")
    chat.page.fill("#setting-system", "Be brief.")
    chat.click("#settings button[type=submit]")
    chat.begin("Hi")
    assert failure(chat).startswith("The server refused the request: ")
    assert "no system role" in failure(chat)


def test_an_error_in_the_middle_of_an_answer(chat: ChatPage, engine: FakeEngine) -> None:
    def script(request: AddRequest) -> list[list[SequenceOutput]]:
        steps = [[SequenceOutput(request.request_id, 0, [token])] for token in ids("Half of")]
        error = "the state is not finite"
        return [*steps, [SequenceOutput(request.request_id, 0, [], finish_reason="error", error=error)]]

    engine.script = script
    chat.begin("Hi")
    assert failure(chat) == "The server ended the answer: the state is not finite"
    assert chat.texts("assistant") == ["Half of"]
    expect(chat['[data-action="copy"]']).to_be_visible()
    chat.page.reload()
    assert failure(chat) == "The server ended the answer: the state is not finite"
    engine.script = says("Whole")
    chat.click(AGAIN)
    chat.wait()
    assert chat.texts("assistant") == ["Whole"]


def test_a_server_that_cannot_be_reached(chat: ChatPage) -> None:
    chat.page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
    chat.begin("Hi")
    assert failure(chat) == "The server cannot be reached. Is it running, and is the network up?"
    chat.page.unroute("**/v1/chat/completions")
    chat.click(AGAIN)
    chat.wait()
    assert chat.texts("assistant") == ["Hello there"]


def test_no_server_when_the_page_asks_what_it_serves(open_page: OpenPage, server: AppServer) -> None:
    chat = open_page(server.url, ready=False)
    chat.page.route("**/info", lambda route: route.abort("connectionrefused"))
    chat.page.goto(server.url)
    expect(chat["#notice p"]).to_have_text("The server cannot be reached. Is it running, and is the network up?")
    chat.page.unroute("**/info")
    chat.click("#notice button")
    expect(chat["#notice"]).to_be_hidden()
    expect(chat["#model option"]).to_have_count(2)


HALF = 'data: {"choices": [{"index": 0, "delta": {"content": "Half"}, "finish_reason": null}]}\n\n'
STREAM = {"content-type": "text/event-stream"}


@pytest.mark.parametrize(
    "rest",
    ["", HALF.replace("null", '"stop"'), "data: {", "data: {}x\n\n"],
    ids=["no end", "a finish but no [DONE]", "half an event", "no JSON"],
)
def test_a_stream_without_its_end(chat: ChatPage, rest: str) -> None:
    def answer(route: Route) -> None:
        route.fulfill(status=200, headers=STREAM, body=HALF + rest)

    chat.page.route("**/v1/chat/completions", answer)
    chat.begin("Hi")
    assert failure(chat) == "The connection broke off before the answer was complete."
    assert chat.texts("assistant")[0].startswith("Half")


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (500, '{"error": {"message": "an internal error"}}', "The server failed: an internal error."),
        (502, "<h1>Bad gateway</h1>", "The server failed: status 502."),
        (404, "[]", "The server refused the request: status 404."),
    ],
)
def test_other_answers(chat: ChatPage, status: int, body: str, text: str) -> None:
    chat.page.route("**/v1/chat/completions", lambda route: route.fulfill(status=status, body=body))
    chat.begin("Hi")
    assert failure(chat) == text


INFO = (
    '{"model": "m", "num_parameters": 5, "num_layers": 2, "hidden_size": 8, "dtype": "float32", "slot_bytes": 9, '
)


@contextmanager
def breaking_server(is_broken: threading.Event) -> Iterator[str]:
    """Serves the page, and closes the connection of an answer in its middle, when it is told to."""
    answers = {
        "/": ("text/html", StaticPage("chat/page.html").text),
        "/info": ("application/json", INFO + '"has_chat_template": true}'),
        "/v1/models": ("application/json", '{"data": [{"id": "m"}]}'),
    }

    def serve(connection: socket.socket) -> None:
        path = connection.recv(65536).decode().split(" ")[1]
        head, body = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: ", ""
        if path in answers:
            kind, body = answers[path]
            head += f"{kind}\r\ncontent-length: {len(body.encode())}\r\n\r\n"
        else:
            head += "text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            body = f"{len(HALF):x}\r\n{HALF}\r\n"
        connection.sendall((head + body).encode())
        if path not in answers:
            is_broken.wait(10)
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,)).start()

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_connection_that_is_lost(open_page: OpenPage) -> None:
    is_broken = threading.Event()
    with breaking_server(is_broken) as url:
        chat = open_page(url)
        chat.begin("Hi")
        expect(chat[".assistant .text"]).to_have_text("Half")
        is_broken.set()
        assert failure(chat) == "The connection broke off before the answer was complete."
        assert chat.texts("assistant") == ["Half"]
        chat.page.close()


def test_a_failed_answer_is_no_part_of_the_next_request(chat: ChatPage, engine: FakeEngine) -> None:
    engine.script = rejected("QueueFullError", "full")
    chat.begin("Hi")
    failure(chat)
    engine.script = says("Now")
    with chat.page.expect_request("**/v1/chat/completions") as found:
        chat.send("More")
    assert found.value.post_data_json["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "user", "content": "More"},
    ]
    assert eventually(lambda: engine.num_active == 0)
