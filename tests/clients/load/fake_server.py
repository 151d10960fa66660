"""A server of completions that keeps to a script and writes down when it wrote what; a process of its own.

Usage: python -m tests.clients.load.fake_server [OWNER]; it prints its port. A request brings its script in the
field `script`. Times at /log are of time.perf_counter, which on Linux all processes share.
"""

import asyncio
import socket
import sys
import time
from typing import Any

import msgspec
from aiohttp import web

OWNER = sys.argv[1] if len(sys.argv) > 1 else "fake"
SCRIPT: dict[str, Any] = {
    "first": 0.2,  # Seconds to the first event.
    "gap": 0.05,  # Seconds between events.
    "per_event": 1,  # Tokens in an event.
    "usage": "last",  # "last": in the last event; "each": in every one; "none".
    "fault": None,
    "at": 2,  # Events before the fault.
    "slots": 10_000,  # Requests that run at a time; the others wait.
    "stall": None,  # [from, to]: nothing is written then, in seconds since the first request.
    "role": False,  # A first event without text, as chats have.
}


class Fake:
    """What it has written so far, and who runs."""

    def __init__(self) -> None:
        self.log: list[dict[str, Any]] = []
        self.bodies: list[dict[str, Any]] = []
        # What those who read the metrics showed as their key.
        self.metrics_keys: list[str | None] = []
        self.slots: asyncio.Semaphore | None = None
        self.began: float | None = None
        self.num_running = 0

    async def complete(self, request: web.Request) -> web.StreamResponse:
        received = time.perf_counter()
        body = msgspec.json.decode(await request.read())
        self.bodies.append({**body, "authorization": request.headers.get("Authorization")})
        script = {**SCRIPT, **body.get("script", {})}
        self.began = self.began or received
        self.slots = self.slots or asyncio.Semaphore(script["slots"])
        async with self.slots:
            self.num_running += 1
            try:
                return await self.answer(request, body, script, received)
            except ConnectionError:
                # The client has left.
                return web.Response()
            finally:
                self.num_running -= 1

    async def answer(
        self, request: web.Request, body: dict[str, Any], script: dict[str, Any], received: float
    ) -> web.StreamResponse:
        fault, writes = script["fault"], []
        self.log.append({"received": received, "writes": writes})
        began = self.began or received
        if isinstance(fault, int):
            return web.json_response({"error": {"message": "as scripted"}}, status=fault)
        if fault == "json":
            return web.json_response({"choices": []})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        due = time.perf_counter() + script["first"]
        num_tokens = 0
        if script["role"]:
            await response.write(event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}))
        for i in range(-(-body["max_tokens"] // script["per_event"])):
            if fault is not None and i == script["at"]:
                return await self.fail(request, response, fault)
            await self.wait_until(due, began, script["stall"])
            num_tokens = min(num_tokens + script["per_event"], body["max_tokens"])
            data: dict[str, Any] = {"choices": [choice(request.path, "word ")]}
            if script["usage"] == "each":
                data["usage"] = usage(body, num_tokens)
            writes.append(time.perf_counter())
            await response.write(event(data))
            due += script["gap"]
        await response.write(event({"choices": [{**choice(request.path, ""), "finish_reason": "length"}]}))
        if script["usage"] != "none":
            await response.write(event({"choices": [], "usage": usage(body, num_tokens)}))
        await response.write(b"data: [DONE]\n\n")
        return response

    async def wait_until(self, due: float, began: float, stall: list[float] | None) -> None:
        now = max(due, time.perf_counter()) - began
        if stall is not None and stall[0] <= now < stall[1]:
            due = began + stall[1]
        await asyncio.sleep(max(due - time.perf_counter(), 0))

    async def fail(self, request: web.Request, response: web.StreamResponse, fault: str) -> web.StreamResponse:
        if fault == "error event":
            await response.write(event({"error": {"message": "the engine died"}}))
        elif fault == "bad event":
            await response.write(b"data: {nonsense\n\n")
        elif fault == "hang":
            while request.transport is not None and not request.transport.is_closing():
                await asyncio.sleep(0.02)
        elif fault == "broken stream":
            assert request.transport is not None
            request.transport.abort()
        else:
            assert fault == "no finish"
        return response

    async def metrics(self, request: web.Request) -> web.Response:
        self.metrics_keys.append(request.headers.get("Authorization"))
        lines = [
            "# TYPE remuda:num_requests_running gauge",
            f"remuda:num_requests_running {self.num_running}",
            'remuda:state_slots_used{engine="0"} 1',
            'remuda:state_slots_used{engine="1"} 2',
            "remuda:state_pool_bytes 1e6",
            f"remuda:generation_tokens_total {sum(len(row['writes']) for row in self.log)}",
        ]
        return web.Response(text="\n".join(lines) + "\n")

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "fake-1", "owned_by": OWNER}]})

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def read_log(self, _: web.Request) -> web.Response:
        return web.json_response(self.take_log())

    def take_log(self) -> dict[str, Any]:
        """What was written and asked since the last call."""
        found = {"log": self.log, "bodies": self.bodies, "metrics_keys": self.metrics_keys}
        self.log, self.bodies, self.metrics_keys, self.began, self.slots = [], [], [], None, None
        return found


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


def choice(path: str, text: str) -> dict[str, Any]:
    return {"delta": {"content": text} if text else {}} if "chat" in path else {"text": text}


def usage(body: dict[str, Any], num_tokens: int) -> dict[str, int]:
    prompt = body.get("prompt", "a b c")
    num_prompt = len(prompt) if isinstance(prompt, list) else len(prompt.split())
    return {"prompt_tokens": num_prompt, "completion_tokens": num_tokens}


async def start(listener: socket.socket, fake: Fake) -> None:
    """Serve on `listener` from now on."""
    app = web.Application(client_max_size=2**28)
    app.router.add_post("/v1/completions", fake.complete)
    app.router.add_post("/v1/chat/completions", fake.complete)
    app.router.add_get("/v1/models", fake.models)
    app.router.add_get("/health", fake.health)
    app.router.add_get("/log", fake.read_log)
    app.router.add_get("/metrics", fake.metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener).start()


async def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    await start(listener, Fake())
    print(listener.getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
