"""What the server says of itself: `/openapi.json`, `/version`, `/info`."""

import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import httpx2
import pytest
import schemathesis
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from remuda.server.access import AccessPolicy
from tests.server.fakes import AppServer, FakeEngine

PATHS = {
    "/metrics": {"get"},
    "/health": {"get"},
    "/ready": {"get"},
    "/version": {"get"},
    "/info": {"get"},
    "/v1/models": {"get"},
    "/v1/models/{model_id}": {"get"},
    "/v1/completions": {"post"},
    "/v1/chat/completions": {"post"},
    "/v1/responses": {"post"},
    "/v1/responses/{response_id}": {"get", "delete"},
    "/v1/responses/{response_id}/cancel": {"post"},
    "/v1/responses/{response_id}/input_items": {"get"},
    "/v1/embeddings": {"post"},
    "/tokenize": {"post"},
    "/detokenize": {"post"},
}


@pytest.fixture
def schema(http: httpx2.Client) -> dict[str, Any]:
    found: dict[str, Any] = http.get("/openapi.json").json()
    return found


def operations(schema: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]


def test_every_route_is_told(schema: dict[str, Any]) -> None:
    assert {path: set(methods) for path, methods in schema["paths"].items()} == PATHS
    assert schema["info"]["version"] == version("remuda")


def test_errors_are_told_as_they_are(schema: dict[str, Any]) -> None:
    for _, path, operation in operations(schema):
        responses = operation["responses"]
        assert "422" not in responses
        assert {"200", "408", "413", "431", "500", "503"} <= set(responses)
        assert not {"401", "421"} & set(responses)
        if "requestBody" in operation:
            assert {"400", "404"} <= set(responses), path
        if "parameters" in operation:
            assert {"404", "414"} <= set(responses), path
        for status, response in responses.items():
            # /health and /ready say their status with a 503.
            if status >= "400" and not (status == "503" and path in ("/health", "/ready")):
                content = response["content"]["application/json"]
                assert content["schema"] == {"$ref": "#/components/schemas/Error"}


def test_a_server_without_keys_declares_none(schema: dict[str, Any]) -> None:
    assert "securitySchemes" not in schema["components"]
    assert not any("security" in operation for _, _, operation in operations(schema))
    assert "security" not in schema


@pytest.fixture
def guarded(engine: FakeEngine) -> Iterator[AppServer]:
    """A server with a key and a name of its own."""
    policy = AccessPolicy(api_keys=("sesame",), allowed_hosts=("127.0.0.1",))
    running = AppServer(engine, policy=policy)
    yield running
    running.stop()


def test_keys_and_hosts_are_told(guarded: AppServer) -> None:
    headers = {"authorization": "Bearer sesame"}
    told = httpx2.get(f"{guarded.url}/openapi.json", headers=headers).json()
    assert told["components"]["securitySchemes"]["bearer"].items() >= {"type": "http", "scheme": "bearer"}.items()
    assert told["security"] == [{"bearer": []}]
    for method, path, operation in operations(told):
        is_open = path in ("/health", "/ready")
        assert operation.get("security") == ([] if is_open else None)
        assert ({"401", "421"} & set(operation["responses"]) == set()) == is_open
        if is_open or method != "get" or "{" in path:
            continue
        for status, sent in ((401, {}), (421, {**headers, "host": "elsewhere"})):
            assert httpx2.get(guarded.url + path, headers=sent).status_code == status
            content = operation["responses"][str(status)]["content"]["application/json"]
            assert content["schema"] == {"$ref": "#/components/schemas/Error"}


def test_a_checker_with_a_key_and_without(guarded: AppServer) -> None:
    headers = {"authorization": "Bearer sesame"}
    schema = schemathesis.openapi.from_url(f"{guarded.url}/openapi.json", headers=headers)
    for path in ("/v1/models", "/version", "/health"):
        for sent, status in ((headers, 200), ({}, 200 if path == "/health" else 401)):
            checks = [status_code_conformance, response_schema_conformance]
            response = schema[path]["GET"].Case().call_and_validate(headers=sent, checks=checks)
            assert response.status_code == status


def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    names = set(re.findall(r"'#/components/schemas/(\w+)'", str(schema)))
    assert names == set(schema["components"]["schemas"])


def test_answers_have_the_keys_that_are_told(http: httpx2.Client, schema: dict[str, Any]) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": "Hi"},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
        "/v1/responses": {"input": "Hi"},
        "/v1/embeddings": {"input": "Hi"},
        "/tokenize": {"prompt": "Hi"},
        "/detokenize": {"tokens": [5]},
    }
    assert set(bodies) == {path for method, path, op in operations(schema) if "requestBody" in op}
    for path, body in bodies.items():
        answer = http.post(path, json={"model": "fake", **body})
        told = schema["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        told = schema["components"]["schemas"][told["$ref"].split("/")[-1]] if "$ref" in told else told
        assert set(told["required"]) <= answer.json().keys()


def test_version(http: httpx2.Client) -> None:
    assert http.get("/version").json() == {"version": version("remuda")}


def test_info_tells_what_a_sequence_costs(http: httpx2.Client, engine: FakeEngine, server: AppServer) -> None:
    info = http.get("/info").json()
    assert (info["model"], info["slot_bytes"], info["num_slots"]) == ("fake", 1000, 64)
    assert (info["num_layers"], info["hidden_size"], info["num_parameters"]) == (4, 32, 1)
    assert (info["max_prompt_tokens"], info["has_chat_template"]) == (1_000_000, True)
    server.state.is_draining = True
    assert http.get("/info").status_code == 503
