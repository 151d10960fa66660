"""`/metrics`: what it counts, over several workers too; and that the dashboard names nothing that is not there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx2
import openai
import pytest

from remuda.engine.wire import SequenceOutput
from remuda.server.metrics import forget_process, shared_metrics
from remuda.server.token_meter import GAP_BOUNDS, TokenMeter
from tests.server.conftest import ServerProcess
from tests.server.fakes import AppServer, FakeEngine, eventually, says

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "remuda.json"
COMPLETION = {"model": "fake", "prompt": "Hi"}


def sample(http: httpx2.Client, name: str) -> float | None:
    """The value of the sample whose line begins with `remuda:name`."""
    found = re.search(rf"^remuda:{re.escape(name)} (\S+)$", http.get("/metrics").text, re.M)
    return None if found is None else float(found[1])


def test_format(http: httpx2.Client) -> None:
    answer = http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    kinds = re.findall(r"^# TYPE (\S+) (\S+)$", answer.text, re.M)
    assert len({name for name, _ in kinds}) == len(kinds) > 20
    assert all(name.startswith("remuda:") for name, _ in kinds)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_one_request(server: AppServer, http: httpx2.Client, path: str, stream: bool) -> None:
    chat = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
    body = COMPLETION if path == "/v1/completions" else chat
    assert http.post(path, json={**body, "n": 2, "stream": stream}).status_code == 200
    assert eventually(lambda: len(server.records) == 1)
    assert sample(http, f'http_requests_total{{handler="{path}",status="200"}}') == 1
    assert sample(http, 'request_success_total{finished_reason="stop"}') == 2
    # "Hello there" and the end of sequence, twice.
    assert sample(http, "request_generation_tokens_sum") == 24
    assert 0 < sample(http, "inter_token_latency_seconds_count") <= 22
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_prompt_tokens"):
        assert sample(http, f"{name}_count") == 1
    first, whole = sample(http, "time_to_first_token_seconds_sum"), sample(http, "e2e_request_latency_seconds_sum")
    assert first is not None
    assert whole is not None
    assert 0 < first <= whole


def test_memory_of_the_server_itself(http: httpx2.Client) -> None:
    resident = sample(http, "server_resident_memory_bytes")
    assert resident is not None
    assert resident > 10 * 2**20
    assert sample(http, "engine_device_memory_bytes") == 8_000_000


def test_errors_by_status(server: AppServer, http: httpx2.Client) -> None:
    http.post("/v1/completions", json={"model": "x", "prompt": "Hi"})
    http.post("/v1/completions", json={"prompt": "Hi"})
    for i in range(5):
        http.get(f"/nowhere/{i}")
    assert eventually(lambda: len(server.records) == 7)
    assert sample(http, 'http_requests_total{handler="/v1/completions",status="404"}') == 1
    assert sample(http, 'http_requests_total{handler="/v1/completions",status="400"}') == 1
    # Unknown paths share one series, however many they are.
    assert sample(http, 'http_requests_total{handler="none",status="404"}') == 5


def test_a_disconnect_is_an_abort(server: AppServer, engine: FakeEngine, http: httpx2.Client) -> None:
    engine.script, engine.step_s = says("x" * 50_000), 0.002
    with http.stream("POST", "/v1/completions", json={**COMPLETION, "stream": True, "max_tokens": 9999}) as answer:
        next(answer.iter_lines())
    assert eventually(lambda: sample(http, 'request_aborts_total{reason="disconnect"}') == 1)
    assert sample(http, 'request_success_total{finished_reason="abort"}') == 1


def test_the_engines_own_numbers(http: httpx2.Client, engine: FakeEngine) -> None:
    expected = {
        "engine_up": 1,
        "num_requests_running": 1,
        "num_requests_waiting": 2,
        "state_slots": 64,
        "state_slots_free": 60,
        "state_slots_used": 4,
        "state_slot_bytes": 1000,
        "state_pool_bytes": 64_000,
        "prompt_tokens_total": 4,
        "generation_tokens_total": 5,
        "engine_resident_memory_bytes": 7_000_000,
    }
    assert {name: sample(http, name) for name in expected} == expected


def test_an_engine_that_is_busy_or_gone(
    server: AppServer, engine: FakeEngine, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remuda.server.routes_metrics._ENGINE_TIMEOUT_S", 0.05)
    stats, engine.stats = engine.stats, None
    assert sample(http, "num_requests_running") is None
    engine.stats = stats
    # The question asked before went unanswered; nobody answers it now.
    server.call(lambda: server.link._end_stats_wait())
    assert sample(http, "num_requests_running") == 1
    engine.stats = None
    assert sample(http, "num_requests_running") == 1
    engine.stats = stats
    server.call(lambda: server.link.disconnect(openai.OpenAIError()))  # type: ignore[arg-type]
    assert sample(http, "engine_up") == 0
    assert sample(http, "num_requests_running") is None
    server.call(lambda: server.link.connect(engine.address))


def test_gaps_are_counted_by_bucket() -> None:
    def outputs(count: int) -> list[SequenceOutput]:
        return [SequenceOutput("r", 0, [5], queued_s=0.25)] * count

    meter = TokenMeter(1)
    meter.note(outputs(1), 1, now=10.0)
    meter.note(outputs(1), 1, now=10.001)
    meter.note(outputs(2), 1, now=10.041)
    meter.note(outputs(1), 0, now=100.0)
    counts = {bound: count for bound, count in zip([*GAP_BOUNDS, None], meter.gap_counts, strict=True) if count}
    assert counts == {0.0025: 1, 0.025: 2, None: 1} or counts == {0.001: 1, 0.025: 2, None: 1}
    assert (meter.first_at, meter.queued_s) == (10.0, 0.25)
    assert meter.gap_sum == pytest.approx(90)


def test_outputs_of_several_tokens_and_of_none() -> None:
    meter = TokenMeter(1)
    meter.note([SequenceOutput("r", 0, [5])], 1, now=1.0)
    meter.note([SequenceOutput("r", 0, [5] * 4)], 1, now=1.16)
    meter.note([SequenceOutput("r", 0, [], finish_reason="error")], 0, now=9.0)
    assert (meter.gap_counts[GAP_BOUNDS.index(0.05)], sum(meter.gap_counts)) == (4, 4)
    assert meter.gap_sum == pytest.approx(0.16)


def test_what_comes_with_the_first_token_comes_at_once() -> None:
    meter = TokenMeter(2)
    meter.note([SequenceOutput("r", c, [5]) for c in (0, 1, 0, 1, 0)], 2, now=5.0)
    assert (meter.first_at, sum(meter.gap_counts), meter.gap_counts[0], meter.gap_sum) == (5.0, 3, 3, 0.0)


def test_gaps_of_several_choices_are_those_of_each() -> None:
    meter = TokenMeter(4)
    for i in range(3):
        meter.note([SequenceOutput("r", c, [5]) for c in range(4)], 4, now=float(i) * 0.06)
    assert meter.gap_counts[GAP_BOUNDS.index(0.075)] == 8
    assert meter.gap_sum == pytest.approx(8 * 0.06)


WORKER = """
import sys
from remuda.server.metrics import ServerMetrics
from remuda.server.request_record import RequestRecord
from remuda.server.token_meter import TokenMeter
from remuda.engine.wire import SequenceOutput
metrics = ServerMetrics()
meter = TokenMeter(1)
for i in range(4):
    meter.note([SequenceOutput("r", 0, [5])], 1, now=i * 0.02)
record = RequestRecord("id", "POST", "/v1/completions", "", None, status=200, route="/v1/completions")
record.finish_reasons, record.meter = ["stop"], meter
metrics.observe(record)
metrics.note_tasks(7)
sys.stdout.write(metrics.render().decode())
"""


def test_several_workers_are_added_up(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": ":".join(sys.path), **shared_metrics(tmp_path)}
    for number in (1, 2, 3):
        command = [sys.executable, "-c", WORKER]
        text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        for line in (
            f'remuda:http_requests_total{{handler="/v1/completions",status="200"}} {number}.0',
            f'remuda:request_success_total{{finished_reason="stop"}} {number}.0',
            f'remuda:inter_token_latency_seconds_bucket{{le="0.025"}} {3 * number}.0',
            f"remuda:inter_token_latency_seconds_count {3 * number}.0",
        ):
            assert line in text
        # Of tasks each has its own, until it is gone.
        (pid,) = re.findall(r'^remuda:asyncio_tasks\{pid="(\d+)"\} 7.0$', text, re.M)
        forget_process(environment, int(pid))
        forget_process(environment, int(pid))


SCRAPED = """
import sys
from remuda.server.engine_metrics import EngineSnapshot
from remuda.server.metrics import ServerMetrics
from remuda.server.restart_budget import Restarts
metrics = ServerMetrics()
for _ in range(2):
    text = metrics.render() + EngineSnapshot(None, None, Restarts(), is_ready=False).render(5)
sys.stdout.write(text.decode())
"""


def test_a_scrape_leaves_nothing_behind(tmp_path: Path) -> None:
    """The second names each metric once, as the first, and no file is there for what is asked at each."""
    environment = {"PYTHONPATH": ":".join(sys.path), **shared_metrics(tmp_path)}
    command = [sys.executable, "-c", SCRAPED]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    names = re.findall(r"^# TYPE (\S+)", text, re.M)
    assert len(set(names)) == len(names)
    assert "\nremuda:server_resident_memory_bytes 5.0\n" in text
    assert {path.name.rpartition("_")[0] for path in tmp_path.iterdir()} <= {
        "counter",
        "histogram",
        "gauge_liveall",
    }


def test_the_page_of_metrics_is_complete(http: httpx2.Client) -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    kinds = dict(re.findall(r"^# TYPE remuda:(\S+) (\S+)$", http.get("/metrics").text, re.M))
    listed = dict(re.findall(r"^\| `(\w+)`[^|]*\| (\w+) \|", page, re.M))
    assert listed == kinds


def test_the_dashboard_names_only_what_exists(http: httpx2.Client) -> None:
    text = http.get("/metrics").text
    existing = set(re.findall(r"^# TYPE (remuda:\S+)", text, re.M)) | set(re.findall(r"^(remuda:\w+)", text, re.M))
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [item["query"]["query"] for item in dashboard["templating"]["list"] if item["name"] == "job"]
    named = {name for expression in expressions for name in re.findall(r"remuda:\w+", expression)}
    assert named - existing == set()
    # And it leaves nothing out but what says what serves.
    series = {re.sub("_(bucket|sum|count)$", "", name) for name in named}
    kinds = set(re.findall(r"^# TYPE (remuda:\S+)", text, re.M))
    assert kinds - series == {"remuda:engine_info"}
    labels = {label for expression in expressions for label in re.findall(r"by \(([\w, ]+)\)", expression)}
    assert labels == {"le", "status", "finished_reason", "reason", "pid"}


@pytest.mark.e2e
def test_every_name_is_described_once_however_often_it_is_read(demo: ServerProcess) -> None:
    with demo.http() as http:
        for _ in range(3):
            names = re.findall(r"^# TYPE (\S+)", http.get("/metrics").text, re.M)
            assert len(names) == len(set(names))
