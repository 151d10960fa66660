"""The command line's own errors: one line on stderr, exit code 2, and nothing on stdout."""

import os
import re
from pathlib import Path

import msgspec
import pytest

from remuda.engine.config import EngineConfig
from remuda.server import serve
from remuda.server.access import AccessPolicy
from remuda.server.cli import run
from remuda.server.options import ServeOptions
from remuda.server.request_limits import RequestLimits
from remuda.server.tls import TlsFiles

TLS = Path(__file__).parents[1] / "data" / "tls"


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ServeOptions, EngineConfig]]:
    """What `serve` would have started."""
    found: list[tuple[ServeOptions, EngineConfig]] = []
    monkeypatch.setattr(serve, "run_server", lambda options, config: found.append((options, config)) or 0)
    return found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("serve --port 99999", 'Invalid value "99999" for --port. Must be <= 65535.'),
        ("serve --port -1", "--port"),
        ("serve --port abc", "'abc' is not a whole number"),
        ("serve --port", "--port requires an argument"),
        ("serve --dtype int4", 'Choose from: "auto", "float32", "bfloat16", "float16"'),
        ("serve --state-dtype int8", "--state-dtype"),
        ("serve --device tpu", "--device"),
        ("serve --backend fast", "--backend"),
        ("serve --log-level loud", "--log-level"),
        ("serve --num-slots -3", "num_slots must be at least 1, not -3"),
        ("serve --num-slots 0", "num_slots must be at least 1, not 0"),
        ("serve --num-slots 1.5", "'1.5' is not a whole number"),
        ("serve --prefill-chunk 1.5", "--prefill-chunk"),
        ("serve --num-threads 1.5", "--num-threads"),
        ("serve --seed 1.5", "--seed"),
        ("serve --port 80.5", "--port"),
        ("generate demo --prompt x --top-k 1.5", "--top-k"),
        ("serve --state-memory lots", "'lots' is not a size"),
        ("serve --num-slots 4 --state-memory 1GiB", "not both"),
        ("serve --max-batch-tokens 0", "max_batch_tokens must be at least 1"),
        ("serve --max-queue 0", "max_queue must be at least 1"),
        ("serve --gpu-memory-utilization 0", "--gpu-memory-utilization"),
        ("serve --gpu-memory-utilization 1.5", 'Invalid value "1.5"'),
        ("serve --gpu-memory-utilization nan", "--gpu-memory-utilization"),
        ("serve --deterministic --state-dtype bfloat16", "deterministic needs state_dtype float32, not bfloat16"),
        ("serve --max-body-mb nan", "--max-body-mb"),
        ("serve --max-body-mb 0", "--max-body-mb"),
        ("serve --drain-timeout -1", "--drain-timeout"),
        ("serve --api-workers 0", "--api-workers"),
        ("serve --api-workers 1.5", "'1.5' is not a whole number"),
        ("serve --max-stored-responses -1", "--max-stored-responses"),
        ("serve --max-stored-responses 1.5", "--max-stored-responses"),
        ("serve --max-stored-mb 0", "--max-stored-mb"),
        ("serve --api-key schlüssel", "API key 1 is not 1 to 512 ASCII characters without spaces"),
        ("serve --api-key-file /nonexistent", "cannot read the API keys of /nonexistent"),
        ("serve --cors-origin example.org", "CORS origin 'example.org' must be"),
        ("serve --allowed-host http://x", "allowed host 'http://x' must be a name"),
        ("serve --ssl-certfile /nonexistent", "cannot use /nonexistent for TLS: "),
        ("serve --ssl-keyfile key.pem", "--ssl-keyfile needs --ssl-certfile"),
        ("serve --max-connections 0", "--max-connections"),
        ("serve --max-prompt-tokens 0", "--max-prompt-tokens"),
        ("serve --request-timeout -1", "--request-timeout"),
        ("serve --request-timeout nan", "--request-timeout"),
        ("serve --log-format xml", "--log-format"),
        ("serve --tool-call-parser yaml", "--tool-call-parser"),
        ("serve --bogus", "Unknown option: --bogus"),
        ("serve a b", "Unused Tokens: ['b']"),
        ("serve /nonexistent", "no such model: '/nonexistent'"),
        ("serve --host 999.1.1.1", "cannot listen on '999.1.1.1'"),
        ("bogus", 'Unknown command "bogus"'),
        ("generate demo", "--prompt"),
        ("generate demo --prompt x --temperature 9", "temperature must be in [0, 2], not 9.0"),
        ("generate demo --prompt x --max-tokens -1", "max_tokens must be in"),
        ("generate /nonexistent --prompt x", "no such model"),
        ("convert /nonexistent", "DST"),
        ("convert /nonexistent /tmp/x --dtype int8", "--dtype"),
        ("convert /nonexistent /nonexistent/x", "no such model"),
    ],
)
def test_wrong_values_are_one_line(capsys: pytest.CaptureFixture[str], line: str, message: str) -> None:
    assert run(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("remuda: ")
    assert err.count("\n") == 1
    assert message in err


def test_directory_without_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["serve", "--port", "0", str(tmp_path)]) == 2
    assert "holds no config.json" in capsys.readouterr().err


def test_defaults(launched: list[tuple[ServeOptions, EngineConfig]]) -> None:
    assert run(["serve"]) == 0
    assert launched == [(ServeOptions(), EngineConfig())]


def test_every_flag_arrives(launched: list[tuple[ServeOptions, EngineConfig]]) -> None:
    line = (
        "serve some/model --host 0.0.0.0 --port 9 --served-model-name a --served-model-name b --max-body-mb 0.5 "
        "--drain-timeout 3 --api-workers 4 --max-stored-responses 7 --max-stored-mb 0.5 "
        "--tool-call-parser none --log-level debug --device cpu --backend reference --dtype float32 "
        "--state-dtype bfloat16 --tokenizer t.json --seed -7 --num-threads 2 --state-memory 2GiB "
        "--max-batch-tokens 300 --prefill-chunk 64 --max-queue 5 --gpu-memory-utilization 0.5"
    )
    assert run(line.split()) == 0
    ((options, config),) = launched
    assert options == ServeOptions(
        host="0.0.0.0",
        port=9,
        served_model_names=("a", "b"),
        log_level="debug",
        max_body_bytes=2**19,
        num_api_workers=4,
        drain_timeout_s=3,
        max_stored_responses=7,
        max_stored_bytes=2**19,
        tool_call_parser="none",
    )
    assert config == EngineConfig(
        model="some/model",
        tokenizer="t.json",
        device="cpu",
        backend="reference",
        dtype="float32",
        state_dtype="bfloat16",
        state_memory=2 * 2**30,
        max_batch_tokens=300,
        prefill_chunk=64,
        max_queue=5,
        seed=-7,
        num_threads=2,
        gpu_memory_utilization=0.5,
    )


def test_every_flag_of_safety_arrives(
    launched: list[tuple[ServeOptions, EngineConfig]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("three\nfour\n")
    monkeypatch.setenv("REMUDA_API_KEYS", "five")
    monkeypatch.setenv("REMUDA_SSL_KEYFILE_PASSWORD", "correct-horse")
    line = (
        f"serve --api-key one --api-key two --api-key-file {tmp_path}/keys --cors-origin https://a.org "
        f"--cors-origin * --allowed-host a.org --allowed-host *.b.org --ssl-certfile {TLS}/cert.pem "
        f"--ssl-keyfile {TLS}/key-encrypted.pem --max-connections 7 --max-prompt-tokens 8 --request-timeout 0 "
        "--log-format json --no-access-log --otlp-endpoint http://localhost:4318/v1/traces"
    )
    assert run(line.split()) == 0
    ((options, _),) = launched
    assert options == ServeOptions(
        access=AccessPolicy(
            api_keys=("one", "two", "three", "four", "five"),
            cors_origins=("https://a.org", "*"),
            allowed_hosts=("a.org", "*.b.org"),
        ),
        limits=RequestLimits(request_timeout_s=None, max_prompt_tokens=8),
        tls=TlsFiles(f"{TLS}/cert.pem", f"{TLS}/key-encrypted.pem", "correct-horse"),
        max_connections=7,
        log_format="json",
        has_access_log=False,
        otlp_endpoint="http://localhost:4318/v1/traces",
    )
    # They travel to other processes as they are.
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(options), type=ServeOptions) == options
    # Neither stands where child processes would inherit it, or a log would show it.
    assert not {"REMUDA_API_KEYS", "REMUDA_SSL_KEYFILE_PASSWORD"} & set(os.environ)
    assert not any(secret in repr(options) for secret in ("'one'", "five", "correct-horse"))


def test_deterministic_mode_arrives(launched: list[tuple[ServeOptions, EngineConfig]]) -> None:
    assert run(["serve", "--deterministic"]) == 0
    assert launched == [(ServeOptions(), EngineConfig(deterministic=True))]


@pytest.mark.parametrize("command", ["", "serve", "convert", "generate"])
def test_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert run([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage: remuda" in text
    assert all(len(line) <= int(os.environ["COLUMNS"]) for line in text.splitlines())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", capsys.readouterr().out)
