"""What does HTTP cost? CPU of the API workers per streamed token, beside a bare uvicorn loop writing the same
bytes at the same pace, and tokens a second beside the offline engine. Everything on one machine, clients included.

Usage: python benchmarks/streaming.py [--clients 64] [--tokens 500] [--rounds 2]
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
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


def wait_until_up(port: int, process: subprocess.Popen[bytes]) -> None:
    while True:
        assert process.poll() is None, "the server ended before it was ready"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                # The bare loop has nothing to say.
                if b"loading" not in answer.read():
                    return
        except OSError:
            pass
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
    """Of the processes that serve HTTP: the API workers of a parent, or the process itself."""
    process = psutil.Process(pid)
    workers = [child for child in process.children() if "remuda.server.worker" in child.cmdline()]
    times = [found.cpu_times() for found in workers or [process]]
    return float(sum(time.user + time.system for time in times))


def running(command: list[str]) -> tuple[int, subprocess.Popen[bytes]]:
    """Start a server; returns its port and process once it answers that it is ready."""
    port = free_port()
    process = subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.DEVNULL)
    wait_until_up(port, process)
    return port, process


async def measure(port: int, pid: int, path: str, body: dict[str, Any], clients: int) -> dict[str, float]:
    """CPU of the processes that serve HTTP, and what came, for one load."""
    before = cpu_seconds(pid)
    seconds, events, size = await load(port, path, body, clients)
    return {"seconds": seconds, "events": events, "bytes": size, "cpu": cpu_seconds(pid) - before}


async def beside_engine(port: int, body: dict[str, Any], clients: int, work: Awaitable[Any]) -> Any:
    """Do `work` while the engine at `port` decodes as many sequences, for one client that streams nothing."""
    busy = {**body, "stream": False, "n": clients, "max_tokens": 100_000}
    request = asyncio.create_task(stream(port, "/v1/completions", busy))
    await asyncio.sleep(1)
    try:
        return await work
    finally:
        request.cancel()
        await asyncio.wait([request])
        await asyncio.sleep(1)


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
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=2)
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
    results: dict[str, list[dict[str, float]]] = {}
    for workers in (1, 2):
        port, process = running([remuda, "serve", "demo", "--api-workers", str(workers)])
        name = f"remuda, {workers} API worker{'s' * (workers > 1)}"
        with process:
            asyncio.run(load(port, "/v1/completions", body, args.clients))
            served = results[name] = []
            served.append(asyncio.run(measure(port, process.pid, "/v1/completions", body, args.clients)))
            if workers == 1:
                size = round(served[0]["bytes"] / served[0]["events"])
                period = served[0]["seconds"] / args.tokens
                command = [
                    sys.executable,
                    __file__,
                    "--tokens",
                    str(args.tokens),
                    "--bare",
                    str(size),
                    str(period),
                ]
                bare_port, bare = running(command)
                with bare:
                    asyncio.run(load(bare_port, "/", body, args.clients))
                    for _ in range(args.rounds):
                        served.append(
                            asyncio.run(measure(port, process.pid, "/v1/completions", body, args.clients))
                        )
                        work = measure(bare_port, bare.pid, "/", body, args.clients)
                        found = asyncio.run(beside_engine(port, body, args.clients, work))
                        results.setdefault("bare loop, engine as busy", []).append(found)
                    alone = asyncio.run(measure(bare_port, bare.pid, "/", body, args.clients))
                    results["bare loop, machine idle"] = [alone]
                    bare.terminate()
            process.terminate()
    offline = offline_rate(args.clients, args.tokens)
    total = args.clients * args.tokens
    cpu = {name: 1e6 * statistics.median(run["cpu"] for run in runs) / total for name, runs in results.items()}
    rows = [
        {
            "server": name,
            "streams": args.clients,
            "tokens/s": total / statistics.median(run["seconds"] for run in runs),
            "CPU µs/token": cpu[name],
            "× bare, busy": cpu[name] / cpu["bare loop, engine as busy"],
            "events": int(runs[-1]["events"]),
            "bytes/event": round(runs[-1]["bytes"] / runs[-1]["events"]),
        }
        for name, runs in results.items()
    ]
    notes = [
        f"offline engine, the same {args.clients} × {args.tokens} tokens: {offline:,.0f} tokens/s",
        "CPU of the processes that serve HTTP, requests' own included, median of runs in turn",
        "limit: 1.3 × the bare loop's, which writes the same bytes at the same pace, while the engine decodes as",
        "many sequences for a request that is not streamed: who shares caches with it pays more for the same work",
        "the clients run on the same cores",
    ]
    report("HTTP streaming of the demo model", rows, notes)


if __name__ == "__main__":
    main()
