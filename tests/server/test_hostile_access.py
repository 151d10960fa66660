"""Who gets in, by the numbers of docs/security.md: keys on every route, hosts, origins, and what errors tell."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
from fastapi.routing import APIRoute
from starlette.routing import Mount

from remuda.engine.errors import ConfigError
from remuda.server import api_keys
from remuda.server.access import AccessPolicy, with_access
from remuda.server.api_keys import CHAT_PAGE, OPEN_PATHS, ApiKeys, read_keys
from remuda.server.app import create_api
from tests.server.fakes import AppServer, FakeEngine
from tests.server.raw_http import read_answer, request

KEY, OTHER = "sk-remuda-0123456789", "another.key~with!signs"
BEARER = {"authorization": f"Bearer {KEY}"}
COMPLETION = {"model": "fake", "prompt": "Hi"}
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")


@pytest.fixture
def locked(engine: FakeEngine) -> Iterator[AppServer]:
    """A server with two keys."""
    running = AppServer(engine, policy=AccessPolicy(api_keys=(KEY, OTHER)))
    yield running
    running.stop()


@pytest.fixture
def locked_http(locked: AppServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=locked.url, timeout=10) as client:
        yield client


def paths_of(server: AppServer) -> set[str]:
    """Every path of the app, with something in the place of parameters; also below and beside each."""
    app = create_api(server.state, AccessPolicy())
    found = {"/openapi.json", "/docs", "/redoc", "/static/x", "/"}
    found |= set(app.openapi()["paths"])
    found |= {getattr(route, "path", "") for route in app.routes}
    filled = {path.replace("{", "").replace("}", "").replace(":path", "") or "/" for path in found}
    assert len([route for route in app.routes if isinstance(route, APIRoute | Mount)]) <= len(filled)
    return filled | {path + "/" for path in filled} | {"/" + path for path in filled} | {p + "/x" for p in filled}


def is_open(method: str, path: str) -> bool:
    """What docs/security.md says is served without a key, and nothing else."""
    return (method in ("GET", "HEAD") and path in ("/health", "/ready")) or (method, path) == ("GET", "/")


def test_hostile_02_every_route_asks_for_a_key(locked: AppServer, locked_http: httpx2.Client) -> None:
    paths = paths_of(locked)
    assert {"/metrics", "/v1/completions", "/v1/models", "/openapi.json"} <= paths
    statuses = {}
    for path in sorted(paths):
        for method in METHODS:
            with locked.raw() as connection:
                connection.sendall(request(method, path, "connection: close"))
                status, headers, _ = read_answer(connection)
            if not is_open(method, path):
                statuses[method, path] = status
                assert headers["www-authenticate"] == "Bearer"
    assert {key: status for key, status in statuses.items() if status != 401} == {}
    assert len(statuses) > 200


def test_hostile_02_open_routes_are_a_written_list(locked_http: httpx2.Client) -> None:
    assert {"/health", "/ready"} == OPEN_PATHS
    assert CHAT_PAGE == "/"
    assert locked_http.get("/health").status_code == 200
    assert locked_http.post("/health").status_code == 401
    assert locked_http.get("/health/").status_code == 401
    # Encoded or not, a path means what the router takes it for.
    assert locked_http.get("/%68ealth").status_code == 200
    assert locked_http.get("/health%2f..%2fmetrics").status_code == 401
    assert locked_http.get("/health;/metrics").status_code == 401
    assert locked_http.get("/HEALTH").status_code == 401


def test_hostile_02_the_chat_page_is_open_and_tells_nothing(
    locked: AppServer, locked_http: httpx2.Client, engine: FakeEngine
) -> None:
    page = locked_http.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    # The same with a key, without, and for another engine that serves another model behind other keys.
    assert locked_http.get("/", headers=BEARER).text == page.text
    other = AppServer(engine, policy=AccessPolicy(allowed_hosts=("127.0.0.1",)))
    try:
        assert httpx2.get(other.url).text == page.text
        with other.raw() as connection:
            connection.sendall(request("GET", "/", "connection: close"))
            assert read_answer(connection)[0] == 421
    finally:
        other.stop()
    assert KEY not in page.text
    for path in ("/?x", "/#/v1/models"):
        assert locked_http.get(path).text == page.text
    for path in ("//", "/.", "/%2e", "/index.html", "/chat/page.html", "/static/chat/page.html", "/;/metrics"):
        with locked.raw() as connection:
            connection.sendall(request("GET", path, "connection: close"))
            assert read_answer(connection)[0] == 401, path
    for method in ("HEAD", "POST", "OPTIONS"):
        with locked.raw() as connection:
            connection.sendall(request(method, "/", "connection: close"))
            assert read_answer(connection)[0] == 401, method


@pytest.mark.parametrize(
    ("line", "headers"),
    [
        ("GET /v1/models HTTP/1.1", ["host: localhost/health?"]),
        ("GET /v1/models HTTP/1.1", ["host: x/health#"]),
        ("GET http://x/health/../v1/models HTTP/1.1", ["host: x"]),
        ("GET http://user@/v1/models HTTP/1.1", ["host: x"]),
        ("GET /v1/models HTTP/1.1", ["host: x", "x-original-url: /health", "x-rewrite-url: /health"]),
        ("GET /v1/models HTTP/1.1", ["host: x", "x-forwarded-prefix: /health", "forwarded: for=127.0.0.1"]),
        ("GET /v1/models HTTP/1.1", ["host: x", "x-http-method-override: OPTIONS"]),
        ("GET //v1/models HTTP/1.1", ["host: x"]),
        ("GET /health/../v1/models HTTP/1.1", ["host: x"]),
        ("GET /%2e%2e/v1/models HTTP/1.1", ["host: x"]),
        ("GET /v1/models?/health HTTP/1.1", ["host: x"]),
        ("GET /v1/models#/health HTTP/1.1", ["host: x"]),
        ("GET /v1/models HTTP/1.0", []),
    ],
    ids=str,
)
def test_hostile_01_tricks_of_host_and_path(locked: AppServer, line: str, headers: list[str]) -> None:
    with locked.raw() as connection:
        connection.sendall("\r\n".join([line, *headers, "connection: close", "", ""]).encode())
        status, _, body = read_answer(connection)
    assert status in (400, 401)
    assert b'"data"' not in body


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("example.org", 200),
        ("EXAMPLE.org:8000", 200),
        ("api.example.net", 200),
        ("[::1]:8000", 200),
        ("evil.org", 421),
        ("example.org.evil.org", 421),
        ("evil-example.org", 421),
        ("example.net", 421),
        ("127.0.0.1", 421),
        ("", 421),
        ("example.org@evil.org", 421),
        ("[example.org", 421),
    ],
)
def test_hostile_01_allowed_hosts(engine: FakeEngine, host: str, status: int) -> None:
    policy = AccessPolicy(allowed_hosts=("example.org", "*.example.net", "[::1]"))
    guarded = AppServer(engine, policy=policy)
    try:
        for path, expected in (("/v1/models", status), ("/health", 200)):
            with guarded.raw() as connection:
                connection.sendall(f"GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
                assert read_answer(connection)[0] == expected
        for hosts in ("", "host: example.org\r\nhost: evil.org\r\n"):
            with guarded.raw() as connection:
                connection.sendall(f"GET /v1/models HTTP/1.1\r\n{hosts}\r\n".encode())
                assert read_answer(connection)[0] in (400, 421)
    finally:
        guarded.stop()


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {KEY}".encode(), 200),
        (f"bearer   {KEY} ".encode(), 200),
        (f"BEARER {OTHER}".encode(), 200),
        (f"Basic {KEY}".encode(), 401),
        (KEY.encode(), 401),
        (b"Bearer", 401),
        (b"Bearer ", 401),
        (f"Bearer {KEY[:-1]}".encode(), 401),
        (f"Bearer {KEY}x".encode(), 401),
        (f"Bearer {KEY} {KEY}".encode(), 401),
        (f"Bearer {KEY},{OTHER}".encode(), 401),
        ("Bearer ключ".encode(), 401),
        (b"Bearer \xff\xfe\x80", 401),
        (b"Bearer " + b"k" * 20_000, 401),
    ],
    ids=repr,
)
def test_hostile_03_keys(locked: AppServer, header: bytes, status: int) -> None:
    with locked.raw() as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: " + header + b"\r\n\r\n")
        found, _, body = read_answer(connection)
    assert found == status
    if status == 401:
        error = json.loads(body)["error"]
        assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")


def test_hostile_03_two_keys_in_one_request(locked: AppServer) -> None:
    with locked.raw() as connection:
        connection.sendall(
            request("GET", "/v1/models", f"authorization: Bearer {KEY}", "authorization: Bearer wrong")
        )
        assert read_answer(connection)[0] == 401


def test_hostile_03_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key is compared whole, as digests of one length, whichever matches and if none does."""
    compared = []

    def spy(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return left == right

    monkeypatch.setattr(api_keys.hmac, "compare_digest", spy)
    keys = ApiKeys(["first", "second", "third"])
    for given, is_known in ((b"first", True), (b"third", True), (b"", False), (b"x" * 9999, False)):
        compared.clear()
        assert keys.accept(given) == is_known
        assert compared == [(32, 32)] * 3


def test_the_official_client_with_and_without_its_key(locked: AppServer) -> None:
    with openai.OpenAI(base_url=f"{locked.url}/v1", api_key=KEY, max_retries=0) as client:
        assert client.completions.create(model="fake", prompt="Hi").choices[0].text == "Hello there"
        with pytest.raises(openai.AuthenticationError) as caught:
            client.with_options(api_key="wrong").models.list()
    assert caught.value.code == "invalid_api_key"


def test_keys_are_not_logged(locked: AppServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "remuda")
    caplog.set_level(logging.DEBUG, "uvicorn")
    with locked.raw() as connection:
        for path in ("/v1/models", f"/v1/models?api_key={KEY}", "/nowhere"):
            connection.sendall(request("GET", path, f"authorization: Bearer {KEY}"))
            read_answer(connection)
        connection.sendall(request("GET", "/v1/models", "authorization: Bearer sk-wrong-secret"))
        read_answer(connection)
    # uvicorn's own access log is off; pytest listens to it all the same.
    ours = [record for record in caplog.records if record.name != "uvicorn.access"]
    text = "\n".join(f"{record.getMessage()} {vars(record)}" for record in ours)
    assert "/v1/models" in text
    assert KEY not in text
    assert "secret" not in text
    assert KEY not in repr(AccessPolicy(api_keys=(KEY,)))


def test_reading_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n\n  two  \r\nthree\n")
    environment = {api_keys.ENVIRONMENT: "four, five\nsix,,one", "PATH": "/bin"}
    assert read_keys(("zero", "one"), file, environment) == ("zero", "one", "two", "three", "four", "five", "six")
    assert environment == {"PATH": "/bin"}
    assert read_keys((), None, {}) == ()


@pytest.mark.parametrize("value", ["", " ", ",", " ,\n"])
@pytest.mark.parametrize("given", [(), ("good",)])
def test_a_variable_without_a_key_is_no_open_server(value: str, given: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"REMUDA_API_KEYS is set and holds no key"):
        read_keys(given, None, {api_keys.ENVIRONMENT: value})


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "x" * 513, "tab\tkey"])
def test_keys_that_could_not_arrive(key: str) -> None:
    with pytest.raises(ConfigError, match="API key 2") as caught:
        read_keys(("good", key), None, {})
    assert "schl" not in str(caught.value)


def test_key_files_that_do_not_serve(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, reason in (("empty", "holds no key"), ("missing", "No such file"), ("binary", "cannot read")):
        with pytest.raises(ConfigError, match=reason):
            read_keys((), tmp_path / name, {})


def test_no_origin_is_allowed_by_default(http: httpx2.Client) -> None:
    preflight = {"origin": "https://example.org", "access-control-request-method": "POST"}
    for answer in (
        http.options("/v1/completions", headers=preflight),
        http.get("/v1/models", headers={"origin": "https://example.org"}),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_origins_that_are_allowed(engine: FakeEngine) -> None:
    policy = AccessPolicy(api_keys=(KEY,), cors_origins=("https://example.org",))
    running = AppServer(engine, policy=policy)
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    try:
        with httpx2.Client(base_url=running.url) as http:
            good, bad = {"origin": "https://example.org"}, {"origin": "https://evil.org"}
            allowed = http.options("/v1/completions", headers={**good, **preflight})
            assert allowed.status_code == 200
            assert allowed.headers["access-control-allow-origin"] == "https://example.org"
            assert "authorization" in allowed.headers["access-control-allow-headers"]
            assert http.options("/v1/completions", headers={**bad, **preflight}).status_code == 400
            # A preflight asks for nothing but leave; without one, OPTIONS needs a key as all else does.
            assert http.options("/v1/completions", headers=good).status_code == 401
            refused = http.get("/v1/models", headers=good)
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == "https://example.org"
            answer = http.post("/v1/completions", headers={**good, **BEARER}, json={**COMPLETION, "stream": True})
            assert answer.headers["access-control-allow-origin"] == "https://example.org"
            assert "access-control-allow-credentials" not in answer.headers
            stranger = http.get("/v1/models", headers={**bad, **BEARER})
            assert "access-control-allow-origin" not in stranger.headers
    finally:
        running.stop()


@pytest.mark.parametrize("host", ["", "http://x", "a*b", "x/y"])
def test_hosts_that_cannot_be_meant(host: str) -> None:
    with pytest.raises(ConfigError, match="allowed host"):
        AccessPolicy(allowed_hosts=(host,))


@pytest.mark.parametrize("origin", ["", "example.org", "ftp://x", "https://", "https://x/y"])
def test_origins_that_cannot_be_meant(origin: str) -> None:
    with pytest.raises(ConfigError, match="CORS origin"):
        AccessPolicy(cors_origins=(origin,))


@pytest.mark.anyio
async def test_other_kinds_of_connection_need_a_key_too() -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        pytest.fail("it was let in")

    sent = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message["type"])

    async def receive() -> dict[str, object]:
        return {"type": "websocket.connect"}

    guarded = with_access(app, AccessPolicy(api_keys=(KEY,)))
    scope = {"type": "websocket", "path": "/health", "headers": [], "method": "GET", "extensions": {}}
    await guarded(scope, receive, send)
    assert "websocket.accept" not in sent
