"""schemathesis sends what our own OpenAPI schema allows and forbids: no 5xx, no hang, no answer beside the schema.

REMUDA_FUZZ_CASES: how many requests in all; `make fuzz` sends 5,000.
"""

import math
import os
from collections import Counter
from typing import Any, Final

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.conftest import ServerProcess
from tests.server.fakes import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NUM_CASES: Final = int(os.environ.get("REMUDA_FUZZ_CASES", "200"))
# An answer that takes longer counts as a hang: no request is let to ask for more than MAX_TOKENS.
TIMEOUT_S: Final = 60
MAX_TOKENS: Final = 4
CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
CANARY: Final[dict[str, Any]] = {"model": "demo", "prompt": "Once", "max_tokens": 8, "temperature": 0}
LENGTH_FIELDS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def test_whatever_the_schema_allows_and_forbids(demo: ServerProcess) -> None:
    schema = schemathesis.openapi.from_url(f"{demo.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    # Most of them to those who read a body.
    weights = [8 if operation.body else 1 if has_input(operation) else 0 for operation in operations]
    statuses: Counter[str] = Counter()
    with demo.http() as http:
        before = http.post("/v1/completions", json=CANARY).json()["choices"]
        for operation, weight in zip(operations, weights, strict=True):
            send_cases(operation, 1 + math.ceil(NUM_CASES * weight / sum(weights)), statuses)
        check_unharmed(demo, http, before)
    print(f"{sum(statuses.values())} requests: {dict(sorted(statuses.items()))}")
    assert sum(statuses.values()) >= NUM_CASES
    assert statuses["POST /v1/completions 200"] > 0


def send_cases(operation: Any, num_cases: int, statuses: Counter[str]) -> None:
    """Half of the requests are what the schema allows, the others what it forbids."""
    cases = operation.as_strategy(generation_mode=GenerationMode.POSITIVE).map(name_model)
    if has_input(operation):
        cases |= operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

    @settings(
        max_examples=num_cases,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def send(case: Any) -> None:
        shorten(case.body)
        response = case.call(timeout=TIMEOUT_S)
        statuses[f"{operation.method.upper()} {operation.path} {response.status_code}"] += 1
        case.validate_response(response, checks=CHECKS)

    send()


def has_input(operation: Any) -> bool:
    """Where an operation takes nothing, nothing can be wrong with it."""
    return bool(operation.body or list(operation.iter_parameters()))


def name_model(case: Any) -> Any:
    """Ask for the model that is there, where the request asks for some model."""
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = CANARY["model"]
    return case


def shorten(body: Any) -> None:
    """Keep an answer short, and leave alone what is no number of tokens."""
    if not isinstance(body, dict):
        return
    named = [name for name in LENGTH_FIELDS if type(body.get(name)) is int]
    for name in named:
        body[name] = min(body[name], MAX_TOKENS)
    if "messages" in body and not named:
        body["max_tokens"] = MAX_TOKENS


def check_unharmed(demo: ServerProcess, http: httpx2.Client, before: Any) -> None:
    """The next good request is answered as before, and nothing is left under way."""
    assert http.post("/v1/completions", json=CANARY).json()["choices"] == before
    assert eventually(lambda: http.get("/health").json()["num_requests"] == 0)
    assert "Traceback" not in demo.log
