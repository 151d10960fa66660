"""uvicorn's HTTP protocol with bounds of its own: on slow and silent peers, on request heads, on connections.

What it refuses it answers before the application sees anything, with an OpenAI error body, and closes.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from remuda.server.plain_http import PlainHttpProtocol
from remuda.server.refusals import OnRefusal, note_refusal, refusal_answer, too_many_connections
from remuda.server.request_record import RECORD, REFUSED, new_request_id

# A peer that reads nothing while data waits for it.
STALL_TIMEOUT_S: Final = 30.0
# From the connection, or from the first byte of a later request, to the end of its head.
HEAD_TIMEOUT_S: Final = 10.0
# Without a byte of the body; and for the whole of it, which the application bounds too where it reads it.
BODY_STALL_S: Final = 10.0
BODY_TIMEOUT_S: Final = 40.0
# Between two requests. More than the 5 s after which common clients give an idle connection up by themselves.
KEEP_ALIVE_S: Final = 12

MAX_URL_BYTES: Final = 8 * 1024
MAX_HEADERS: Final = 100
MAX_HEAD_BYTES: Final = 32 * 1024
# Requests that may wait on one connection behind the one that is answered.
MAX_PIPELINED: Final = 16
# A body may come in so many pieces; in more, if they have this many bytes on average. Each costs as much as a
# large one.
MAX_SMALL_PIECES: Final = 4096
MIN_PIECE_BYTES: Final = 16

# What may wait here for one peer, besides what the kernel holds (see listener.py).
_MAX_UNSENT_BYTES: Final = 16 * 1024


class _Refusal(Exception):
    """Leaves the parser's callback; what to answer is in the protocol's `_refusal`."""


class StallGuardProtocol(PlainHttpProtocol):
    """One connection. `bounded_protocol` makes a subclass that knows its server's limit."""

    max_connections: int | None = None
    on_refusal: OnRefusal | None = None

    _stall_timer: asyncio.TimerHandle | None = None
    _arrival_timer: asyncio.TimerHandle | None = None
    # When the head or the body must have come, and by when the next byte of it.
    _deadline = 0.0
    _next_by = 0.0
    _is_in_body = False
    _num_headers = 0
    _num_head_bytes = 0
    _num_pieces = 0
    _num_body_bytes = 0
    # Bytes since the parser last had something for us: it holds on to a header until its end.
    _num_unparsed = 0
    _refusal: tuple[int, str] | None = None
    # The request whose answer is under way; `cycle` is the newest, which may wait behind it.
    _answered: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A peer has connected; the head of its first request is due."""
        transport.set_write_buffer_limits(_MAX_UNSENT_BYTES)
        super().connection_made(transport)
        if self.max_connections is not None and len(self.connections) > self.max_connections:
            self._refuse(503, too_many_connections(self.max_connections))
            return
        self._expect(HEAD_TIMEOUT_S, HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._cancel_stall_timer()
        self._expect_nothing()
        self._end_answer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request: of its head, of its body, or of what lies around both."""
        self._num_unparsed += len(data)
        if self._arrival_timer is None and not self._is_in_body:
            self._expect(HEAD_TIMEOUT_S, HEAD_TIMEOUT_S)
        super().data_received(data)
        if self._num_unparsed > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431, f"the head is larger than the limit of {MAX_HEAD_BYTES} bytes")

    def send_400_response(self, msg: str) -> None:
        """The parser has given up; the reason may be ours."""
        self._refuse(*(self._refusal or (400, "this is not a valid HTTP/1.1 request")))

    def on_message_begin(self) -> None:
        """A request begins, perhaps in the bytes that ended the last one."""
        self._num_headers = self._num_head_bytes = self._num_pieces = self._num_body_bytes = 0
        if self._arrival_timer is None:
            self._num_unparsed = 1
            self._expect(HEAD_TIMEOUT_S, HEAD_TIMEOUT_S)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the URL."""
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self._give_up(414, f"the URL is longer than the limit of {MAX_URL_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or after a body in chunks one trailer."""
        self._num_headers += 1
        self._num_head_bytes += len(name) + len(value)
        if self._num_headers > MAX_HEADERS:
            self._give_up(431, f"there are more headers than the limit of {MAX_HEADERS}")
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self._give_up(431, f"the headers are larger than the limit of {MAX_HEAD_BYTES} bytes")
        # A trailer is none of the head's: it could contradict what the head has said.
        if not self._is_in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head has come."""
        self._num_unparsed = 0
        self._is_in_body = not self.parser.should_upgrade()
        self._expect(BODY_TIMEOUT_S, BODY_STALL_S)
        if len(self.pipeline) >= MAX_PIPELINED:
            self._give_up(429, f"more than {MAX_PIPELINED} requests wait on this connection")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._num_unparsed = 0
        self._next_by = self.loop.time() + BODY_STALL_S
        self._num_pieces += 1
        self._num_body_bytes += len(body)
        if self._num_pieces > MAX_SMALL_PIECES and self._num_body_bytes < MIN_PIECE_BYTES * self._num_pieces:
            self._give_up(413, f"the body comes in more than {MAX_SMALL_PIECES} pieces, most of them tiny")
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The whole request has come."""
        self._num_unparsed = 0
        self._is_in_body = False
        self._expect_nothing()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The transport's buffer is full: the peer has until the timeout to read on."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(STALL_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._cancel_stall_timer()
        super().resume_writing()

    def _cancel_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _expect(self, within_s: float, stall_s: float) -> None:
        now = self.loop.time()
        self._deadline, self._next_by = now + within_s, now + stall_s
        self._expect_nothing()
        self._arrival_timer = self.loop.call_at(self._next_by, self._on_arrival_timer)

    def _expect_nothing(self) -> None:
        if self._arrival_timer is not None:
            self._arrival_timer.cancel()
            self._arrival_timer = None

    def _on_arrival_timer(self) -> None:
        self._arrival_timer = None
        now, due = self.loop.time(), min(self._deadline, self._next_by)
        if self.flow.read_paused or (not self._is_in_body and self._is_answering):
            # It is we who do not read, or an earlier request of the connection has its answer under way.
            self._expect(HEAD_TIMEOUT_S, HEAD_TIMEOUT_S)
        elif now < due:
            self._arrival_timer = self.loop.call_at(due, self._on_arrival_timer)
        elif self._num_unparsed == 0 if not self._is_in_body else not self._is_answering:
            # Not a byte of a request has come, or it has its answer: there is nothing to say. Nor is TLS to wait
            # for the silent peer to say goodbye.
            self.transport.abort()
        else:
            what = "body" if self._is_in_body else "head"
            self._refuse(408, f"the {what} of the request did not arrive in time")

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def _is_answering(self) -> bool:
        return self._answered is not None and not self._answered.response_complete

    def _end_answer(self) -> None:
        """Tell whoever answers that nobody listens; uvicorn tells only the newest request."""
        if self._answered is not None:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def _give_up(self, status: int, message: str) -> None:
        self._refusal = (status, message)
        raise _Refusal

    def _refuse(self, status: int, message: str) -> None:
        """Answer and close; only close where an answer is under way, into which this would break."""
        self._expect_nothing()
        has_begun = self._is_answering and self._answered is not None and self._answered.response_started
        request_id, is_recorded = new_request_id(), False
        if self._is_answering and self._answered is not None and not has_begun:
            # The application, which waits for the body, has a record of it: it is counted and logged there.
            scope: Any = self._answered.scope
            is_recorded = True
            request_id = scope[RECORD].request_id if RECORD in scope else request_id
            scope[REFUSED] = (status, request_id)
        if not has_begun and not self.transport.is_closing():
            self.transport.write(refusal_answer(status, message, request_id))
        self.transport.close()
        self._end_answer()
        if is_recorded:
            return
        note_refusal(status, message, request_id, self.client, self.on_refusal)


def bounded_protocol(max_connections: int | None, on_refusal: OnRefusal | None = None) -> type[StallGuardProtocol]:
    """The protocol of a server that holds so many connections; `on_refusal` is told the status of each refusal."""
    listener = None if on_refusal is None else staticmethod(on_refusal)
    members: dict[str, Any] = {"max_connections": max_connections, "on_refusal": listener}
    return type("BoundedProtocol", (StallGuardProtocol,), members)
