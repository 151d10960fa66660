"""HTTP by hand, for what no client library would send: bytes in, the whole answer out."""

import json
import socket
from typing import Any


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    """The bytes of one request; `headers` are whole lines."""
    length = [f"content-length: {len(body)}"] if body else []
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: x", *headers, *length, "", ""]).encode() + body


def read_to_end(connection: socket.socket) -> bytes:
    """Everything until the peer closes, or resets, the connection."""
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one answer with a length."""
    file = connection.makefile("rb")
    status = int(file.readline().split()[1])
    headers = {}
    while line := file.readline().strip():
        name, _, value = line.decode().partition(": ")
        headers[name.lower()] = value
    return status, headers, file.read(int(headers.get("content-length", "0")))


def split_answer(received: bytes) -> tuple[int, dict[str, Any]]:
    """Status and JSON body of an answer that was read to the end of its connection."""
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)
