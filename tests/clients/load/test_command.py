"""The command: files, exit codes, one line for a bad value, what Ctrl-C leaves, and keys that stand nowhere."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from remuda.clients.load.flag_options import without_keys
from remuda.clients.load.progress import Progress
from remuda.clients.report.results_file import write_result
from remuda.server.cli import run as run_cli
from tests.clients.load.conftest import FakeServer
from tests.clients.report import sample_results

SCRIPT = '{"script": {"first": 0.02, "gap": 0.01}}'


def load(fake: FakeServer, *arguments: str, script: str = SCRIPT, **environment: str) -> "subprocess.Popen[str]":
    """`remuda load` as a process."""
    command = [sys.executable, "-c", "from remuda.server.cli import main; main()", "load", "--url", fake.url]
    given = [*command, "--no-ceiling", "--output-tokens", "8", "--extra-body", script, *arguments]
    return subprocess.Popen(
        given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def test_files(fake: FakeServer, tmp_path: Path) -> None:
    process = load(fake, "--concurrency", "2", "--num-requests", "4", "--out", str(tmp_path / "new"))
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    result = json.loads((tmp_path / "new" / "load.json").read_text())
    assert (result["schema"], len(result["requests"])) == ("remuda.load/1", 4)
    assert result["stages"][0]["concurrency"] == 2
    assert result["settings"]["num_requests"] == 4
    assert result["command"][0] == "load"
    assert (tmp_path / "new" / "load.csv").stat().st_size > 0
    assert (tmp_path / "new" / "load.html").read_text().startswith("<!doctype html>")
    assert "concurrency=2" in out
    assert "concurrency=2: 4 requests, 0 failed" in errors


def test_the_key_stands_in_no_file(fake: FakeServer, tmp_path: Path) -> None:
    arguments = ("--num-requests", "2", "--api_key=sk-one", "--out", str(tmp_path))
    process = load(fake, *arguments, REMUDA_API_KEY="sk-two")
    written = "".join(process.communicate(timeout=60))
    assert process.returncode == 0, written
    assert {body["authorization"] for body in fake.log()["bodies"]} == {"Bearer sk-one"}
    for path in tmp_path.iterdir():
        written += path.read_text()
    assert "sk-one" not in written
    assert "sk-two" not in written


def test_each_run_has_prompts_of_its_own_unless_it_is_repeated(fake: FakeServer, tmp_path: Path) -> None:
    path, seeds, prompts = tmp_path / "a.json", [], []
    for place in range(3):
        again = ["--seed", str(seeds[0])] if place == 2 else []
        # A warm-up would bring a prompt more.
        process = load(fake, "--num-requests", "1", "--warmup", "0", "--json", str(path), *again)
        assert process.communicate(timeout=60)
        seeds.append(json.loads(path.read_text())["settings"]["seed"])
        prompts += [body["prompt"] for body in fake.log()["bodies"]]
    assert seeds[0] != seeds[1]
    assert prompts[0] != prompts[1]
    assert (seeds[2], prompts[2]) == (seeds[0], prompts[0])


def test_the_key_of_the_environment(fake: FakeServer) -> None:
    process = load(fake, "--num-requests", "1", REMUDA_API_KEY="sk-two")
    process.communicate(timeout=60)
    assert {body["authorization"] for body in fake.log()["bodies"]} == {"Bearer sk-two"}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--api-key", "sk-one"], ["--api-key", "***"]),
        (["--api-key=sk-one"], ["--api-key=***"]),
        (["--api_key", "sk-one"], ["--api_key", "***"]),
        (["--api_key=sk-one"], ["--api_key=***"]),
        (["--api-key=sk-one="], ["--api-key=***"]),
        (["--api-key", "--api-key"], ["--api-key", "***"]),
        (["--metrics-url", "http://me:word@host:1/m"], ["--metrics-url", "http://***@host:1/m"]),
        (["--metrics-url=https://word@host/m@n"], ["--metrics-url=https://***@host/m@n"]),
        (["--metrics-url", "http://host/m@n"], ["--metrics-url", "http://host/m@n"]),
    ],
)
def test_without_keys(given: list[str], shown: list[str]) -> None:
    assert without_keys(["load", *given, "--rate", "3"]) == ("load", *shown, "--rate", "3")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_writes_what_there_is(fake: FakeServer, tmp_path: Path, number: int) -> None:
    path = tmp_path / "a.json"
    process = load(fake, "--concurrency", "2", "--duration", "60", "--json", str(path))
    deadline = time.monotonic() + 60
    # Each look takes what came since the last one: two at a time, so of ten most have ended.
    num_sent = 0
    while num_sent < 10:
        assert time.monotonic() < deadline
        time.sleep(0.2)
        num_sent += len(fake.log()["bodies"])
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    result = json.loads(path.read_text())
    assert any("interrupted" in note for note in result["notes"])
    (stage,) = result["stages"]
    assert stage["num_requests"] > 0
    assert stage["num_failed"] == 0
    assert stage["duration"] < 60


def test_a_terminal_obeys_no_server(capfd: pytest.CaptureFixture[str]) -> None:
    Progress(Console(stderr=True, force_terminal=True)).say("load test of [b]\x1b]0;owned\x07\x9b2J")
    assert run_cli(["load", "--url", "http://127.0.0.1:1/\x1b[2J"]) == 1
    said, complaint = capfd.readouterr().err.splitlines()
    assert (
        said
        == "load test of [b]\N{REPLACEMENT CHARACTER}]0;owned\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}2J"
    )
    assert complaint.startswith("remuda: cannot reach http://127.0.0.1:1/\N{REPLACEMENT CHARACTER}[2J: ")


def test_all_requests_failed_is_exit_1(fake: FakeServer) -> None:
    process = load(fake, "--num-requests", "2", script='{"script": {"fault": 500}}')
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "first failure of kind 500: " in errors


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--rate", "x"], 2, "--rate: 'x' is not a rate above 0"),
        (["--concurrency", "0"], 2, "'0' is not a count of at least 1"),
        (["--concurrency", "2", "--rate", "3"], 2, "--concurrency and --rate do not go together"),
        (["--rate", "1:5"], 2, "needs --duration"),
        (["--max-in-flight", "2"], 2, "--max-in-flight goes with --rate"),
        (["--lengths", "1k"], 2, "go with --long-context"),
        (["--long-context", "--lengths", "2M"], 2, "2000000 is above 1000000"),
        (["--slo", "speed=3"], 2, "each of ttft, itl, e2e once"),
        (["--prompt-tokens", "uniform:9:1"], 2, "LEAST is above MOST"),
        (["--extra-body", "[1]"], 2, "--extra-body is not a JSON object"),
        (["--extra-body", "{"], 2, "--extra-body is not JSON"),
        (["--warmup", "-1"], 2, "--warmup must be 0 or more, not -1"),
        (["--url", "ftp://a"], 2, "is not http://HOST:PORT"),
        (["--url", "http://me:secret@a"], 2, "is not http://HOST:PORT"),
        (["--metrics-url", "http://[a/metrics"], 2, "--metrics-url"),
        (["--metrics-url", "a/metrics"], 2, "--metrics-url 'a/metrics' is not http://HOST:PORT"),
        (["--api-key", "sk-one\r"], 2, "a key is printable ASCII without spaces"),
        (["--json", "/nonexistent/a.json"], 2, "cannot write /nonexistent/a.json"),
        (["--compare", "a.json"], 2, "two results or more"),
        (["--compare", "a.json", "b.json"], 2, "a.json"),
        (["--nope"], 2, "--nope"),
        (["--url", "http://127.0.0.1:1"], 1, "cannot reach http://127.0.0.1:1"),
    ],
)
def test_bad_values(
    arguments: list[str], exit_code: int, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_cli(["load", *arguments]) == exit_code
    errors = capsys.readouterr().err.strip()
    assert words in errors
    assert errors.startswith("remuda: ")
    assert len(errors.splitlines()) == 1


def test_a_comparison_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    write_result(sample_results.single(), path)
    html = tmp_path / "none" / "compared.html"
    assert run_cli(["load", "--compare", str(path), str(path), "--html", str(html)]) == 1
    assert capsys.readouterr().err == f"remuda: cannot write {html}: No such file or directory\n"
