"""Priorities through the real server: of two who wait for the one slot that comes free, the lower goes first."""

import asyncio
from typing import Any

import httpx2
import pytest

from tests.server.conftest import ServerProcess

pytestmark = pytest.mark.e2e


async def until(client: httpx2.AsyncClient, num_requests: int) -> None:
    """Wait until so many requests are under way."""
    while (await client.get("/health")).json()["num_requests"] != num_requests:
        await asyncio.sleep(0.01)


async def stream(client: httpx2.AsyncClient, name: str, told: list[str], **fields: Any) -> None:
    """Stream a completion, and tell of its first text and its end."""
    body = {"model": "demo", "prompt": "Once", "ignore_eos": True, "stream": True, **fields}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {") and f"{name} begins" not in told:
                told.append(f"{name} begins")
    told.append(f"{name} ends")


async def run(url: str) -> list[str]:
    told: list[str] = []
    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        three = asyncio.create_task(stream(client, "three", [], n=3, max_tokens=1_000_000))
        one = asyncio.create_task(stream(client, "one", [], max_tokens=1_000_000))
        await until(client, 2)
        patient = asyncio.create_task(stream(client, "patient", told, max_tokens=4, priority=5))
        await until(client, 3)
        urgent = asyncio.create_task(stream(client, "urgent", told, max_tokens=4, priority=-5))
        await until(client, 4)
        one.cancel()
        await asyncio.wait_for(asyncio.gather(patient, urgent), 60)
        three.cancel()
        await until(client, 0)
    return told


def test_the_lower_priority_goes_first(demo: ServerProcess) -> None:
    told = asyncio.run(run(demo.url))
    # Each tells of itself on its own connection, so what lies between may come in either order.
    assert (told[0], told[-1]) == ("urgent begins", "patient ends")
