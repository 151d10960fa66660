"""A server of raw bytes, which plays a script to each connection, and what scripts are made of."""

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterable
from typing import Any

# What one connection gets once its request is read: bytes to send, or RESET, or STALL until the peer leaves.
RESET, STALL = "reset", "stall"
Script = Iterable[bytes | str]


class RawServer:
    """Each connection gets the next script, and after the last one that again."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        # Head and body of each request.
        self.requests: list[bytes] = []
        self.num_connections = 0
        self.peer_left = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def stop(self) -> None:
        """Close the listener and end the thread."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            script = self.scripts[min(self.num_connections, len(self.scripts) - 1)]
            self.num_connections += 1
            with connection:
                # The peer may leave in the middle of any script.
                with contextlib.suppress(OSError):
                    self.requests.append(_read_request(connection))
                    self._play(connection, script)

    def _play(self, connection: socket.socket, script: Script) -> None:
        for step in script:
            if step == STALL:
                connection.settimeout(10)
                if connection.recv(1) == b"":
                    self.peer_left.set()
            elif step == RESET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            else:
                assert isinstance(step, bytes)
                connection.sendall(step)


def _read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0)
    while len(body) < length:
        body += _more(connection)
    return head + b"\r\n\r\n" + body


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionResetError
    return data


def answer(status: int, body: Any = None, **headers: str) -> bytes:
    """A whole answer, after which the connection closes. body: of JSON, or bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Reason", f"content-length: {len(data)}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "\r\n"]).encode() + data


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(value: Any) -> bytes:
    """An event of JSON, or of a text as it is, in a chunk of its own."""
    return chunk(f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode())


def says(text: str, *, finish_reason: str | None = None, index: int = 0) -> bytes:
    """An event of a chat and of a completion at once."""
    choice = {"index": index, "text": text, "delta": {"content": text}, "finish_reason": finish_reason}
    return event({"id": "x", "model": "m", "choices": [choice]})


DONE = event("[DONE]")
