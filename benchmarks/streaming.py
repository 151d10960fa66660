"""What does HTTP cost? CPU of the API worker per streamed token, beside a bare uvicorn loop writing the same
bytes, and tokens a second beside the offline engine. Everything on one machine, clients included.

Usage: python benchmarks/streaming.py [--clients 32] [--tokens 400]
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

import psutil

from report import report

PROMPT = "Once upon a time"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_until_up(port: int, process: subprocess.Popen[bytes], path: str) -> None:
    while True:
        assert process.poll() is None, "the server ended before it was ready"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5):
                return
        except OSError:
            time.sleep(0.2)


async def stream(port: int, path: str, body: dict[str, Any]) -> tuple[int, int]:
    """POST and read to the end; returns the number of SSE events and of bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    events = size = 0
    while chunk := await reader.read(1 << 16):
        events += chunk.count(b"data: {")
        size += len(chunk)
    writer.close()
    return events, size


async def load(port: int, path: str, body: dict[str, Any], clients: int) -> tuple[float, int, int]:
    """Seconds, events and bytes of `clients` streams at once."""
    began = time.perf_counter()
    results = await asyncio.gather(*(stream(port, path, body) for _ in range(clients)))
    return time.perf_counter() - began, sum(r[0] for r in results), sum(r[1] for r in results)


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def measure_server(command: list[str], path: str, body: dict[str, Any], clients: int) -> dict[str, float]:
    """Run a server, load it twice, and take the second time."""
    port = free_port()
    with subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.DEVNULL) as process:
        try:
            wait_until_up(port, process, "/health")
            asyncio.run(load(port, path, body, clients))
            before = cpu_seconds(process.pid)
            seconds, events, size = asyncio.run(load(port, path, body, clients))
            used = cpu_seconds(process.pid) - before
        finally:
            process.terminate()
    return {"seconds": seconds, "events": events, "bytes": size, "cpu": used}


def offline_rate(clients: int, tokens: int) -> float:
    """Tokens a second of the same work through the offline engine, in a process of its own."""
    code = f"""
import os, time
from remuda.engine.cores import engine_environment
os.environ.update(engine_environment())
from remuda.engine import Engine, SamplingParams
engine = Engine("demo")
params = SamplingParams(max_tokens={tokens}, temperature=0.0, ignore_eos=True)
engine.generate(["{PROMPT}"] * {clients}, params)
began = time.perf_counter()
engine.generate(["{PROMPT}"] * {clients}, params)
print({clients * tokens} / (time.perf_counter() - began))
"""
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(result.stdout)


def bare_app(num_events: int, size: int, period: float) -> Callable[..., Awaitable[None]]:
    """The least that uvicorn can do: on every tick each stream sends one ready-made event of `size` bytes."""
    event = b"data: {" + b"x" * (size - 10) + b"}\n\n"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        loop = asyncio.get_running_loop()
        for _ in range(num_events if scope["path"] != "/health" else 0):
            tick: asyncio.Future[None] = loop.create_future()
            due = (loop.time() // period + 1) * period
            loop.call_at(due, tick.set_result, None)
            await tick
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def serve_bare(port: int, num_events: int, size: int, period: float) -> None:
    import uvicorn

    app = bare_app(num_events, size, period)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        log_level="warning",
        loop="uvloop",
        http="httptools",
        access_log=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--bare", nargs=2, type=float, metavar=("SIZE", "PERIOD"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        return serve_bare(args.port, args.tokens, int(args.bare[0]), args.bare[1])

    body = {
        "model": "demo",
        "prompt": PROMPT,
        "max_tokens": args.tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    remuda = os.path.join(os.path.dirname(sys.executable), "remuda")
    served = measure_server([remuda, "serve", "demo"], "/v1/completions", body, args.clients)
    total = args.clients * args.tokens
    size = int(served["bytes"] / served["events"])
    period = served["seconds"] / args.tokens
    command = [sys.executable, __file__, "--tokens", str(args.tokens), "--bare", str(size), str(period)]
    bare = measure_server(command, "/", body, args.clients)
    offline = offline_rate(args.clients, args.tokens)
    rows = [
        {
            "server": name,
            "streams": args.clients,
            "tokens/s": total / result["seconds"],
            "API worker CPU µs/token": 1e6 * result["cpu"] / total,
            "events": int(result["events"]),
            "bytes/event": size,
        }
        for name, result in (("remuda serve", served), ("bare uvicorn loop", bare))
    ]
    notes = [
        f"offline engine, the same {args.clients} × {args.tokens} tokens: {offline:,.0f} tokens/s",
        "limit: 60 µs of the API worker's CPU a token; the bare loop ticks at the pace of the served streams",
        "the clients run on the same cores",
    ]
    report("HTTP streaming of the demo model", rows, notes)


if __name__ == "__main__":
    main()
