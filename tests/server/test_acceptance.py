"""The demo model through the running server: its loss, its texts, and that nothing leaks."""

import asyncio
import json
import math
import random
from pathlib import Path
from typing import Any

import httpx2
import pytest
from safetensors.torch import load_file

from tests.server.conftest import ServerProcess
from tests.server.fakes import eventually

pytestmark = pytest.mark.e2e

DATA = Path(__file__).parents[1] / "data" / "longhorn-stories"
EXPECTED = json.loads((DATA / "expected.json").read_text())


def test_validation_loss_equals_that_of_the_authors_code(demo: ServerProcess) -> None:
    documents = [json.loads(line) for line in (DATA / "val.jsonl").read_text().splitlines()]
    total = 0.0
    with demo.openai() as client:
        for document in documents:
            answer: Any = client.completions.create(
                model="demo", prompt=document["text"], max_tokens=0, echo=True, logprobs=0, temperature=0
            )
            first, *rest = answer.choices[0].logprobs.token_logprobs
            assert first is None
            assert len(rest) == document["tokens"]
            nll = -math.fsum(rest)
            assert nll == pytest.approx(document["nll"], abs=1e-3)
            total += nll
    assert len(documents) == EXPECTED["val_documents"]
    assert total / EXPECTED["val_tokens"] == pytest.approx(EXPECTED["val_nll_per_token"], abs=1e-4)


def test_prompt_logprobs_give_the_same_loss(demo: ServerProcess) -> None:
    document = json.loads((DATA / "val.jsonl").read_text().splitlines()[0])
    with demo.openai() as client:
        answer: Any = client.completions.create(
            model="demo", prompt=document["text"], max_tokens=0, extra_body={"prompt_logprobs": 0}
        )
    entries = answer.choices[0].prompt_logprobs
    assert entries[0] is None
    nll = -math.fsum(next(iter(entry.values()))["logprob"] for entry in entries[1:])
    assert nll == pytest.approx(document["nll"], abs=1e-3)


def test_greedy_texts_equal_those_of_the_authors_code(demo: ServerProcess) -> None:
    tensors = load_file(DATA / "expected.safetensors")
    with demo.openai() as client:
        for i, case in enumerate(EXPECTED["greedy"]):
            extra = {"ignore_eos": True, "skip_special_tokens": False}
            for prompt in (case["prompt"], tensors[f"prompt{i}"].tolist()):
                answer = client.completions.create(
                    model="demo", prompt=prompt, max_tokens=120, temperature=0, extra_body=extra
                )
                assert answer.choices[0].text == case["greedy"]


def test_many_clients_of_whom_a_third_leave(demo: ServerProcess) -> None:
    rng = random.Random(1)
    words = EXPECTED["greedy"][0]["greedy"].split()
    prompts = [" ".join(rng.choices(words, k=rng.choice((1, 5, 30, 200)))) for _ in range(300)]
    lengths = [rng.choice((1, 4, 16)) for _ in prompts]
    leavers = set(rng.sample(range(len(prompts)), 90))

    async def one(client: httpx2.AsyncClient, i: int) -> str | None:
        body = {"model": "demo", "prompt": prompts[i], "max_tokens": lengths[i], "temperature": 0, "stream": True}
        if i in leavers:
            body["max_tokens"] = 5000
        text = ""
        async with client.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200
            patience = rng.randrange(6)
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return text
                if line.startswith("data: "):
                    text += json.loads(line[6:])["choices"][0]["text"]
                    patience -= 1
                    if i in leavers and patience <= 0:
                        return None
        raise AssertionError("a stream ended without [DONE]")

    async def everybody() -> list[str | None]:
        limits = httpx2.Limits(max_connections=40)
        async with httpx2.AsyncClient(base_url=demo.url, timeout=300, limits=limits) as client:
            return await asyncio.gather(*(one(client, i) for i in range(len(prompts))))

    texts = asyncio.run(everybody())
    with demo.http() as http:
        eventually(lambda: http.get("/health").json()["num_requests"] == 0)
    with demo.openai() as client:
        for i in range(0, len(prompts), 10):
            if i not in leavers:
                alone = client.completions.create(
                    model="demo", prompt=prompts[i], max_tokens=lengths[i], temperature=0
                )
                assert texts[i] == alone.choices[0].text
