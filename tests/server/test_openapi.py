"""What the server says of itself: `/openapi.json`, the page at `/docs`, `/version`."""

import base64
import hashlib
import re
from importlib.metadata import version
from typing import Any

import httpx2
import pytest

PATHS = {
    "/metrics": {"get"},
    "/health": {"get"},
    "/ready": {"get"},
    "/version": {"get"},
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
        assert {"200", "413", "500"} <= set(responses)
        if "requestBody" in operation:
            assert {"400", "404", "408"} <= set(responses), path
        if "parameters" in operation:
            assert "404" in responses, path
        for status, response in responses.items():
            # /health and /ready say their status with a 503.
            if status >= "400" and not (status == "503" and path in ("/health", "/ready")):
                content = response["content"]["application/json"]
                assert content["schema"] == {"$ref": "#/components/schemas/Error"}


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


def test_the_page_needs_nothing_else(http: httpx2.Client) -> None:
    answer = http.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = answer.text
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?(https?:)?//", page)
    assert "https://" not in page
    assert "http://" not in page
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    for kind in ("script", "style"):
        (text,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_version(http: httpx2.Client) -> None:
    assert http.get("/version").json() == {"version": version("remuda")}
