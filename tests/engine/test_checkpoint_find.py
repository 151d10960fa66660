"""Where a model's name leads: demo, directories, files, and a hub played by a local HTTP server."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from remuda.engine.checkpoint.find import find_checkpoint
from remuda.engine.errors import CheckpointError
from tests.engine.checkpoint_files import DATA, authors_config, write_pretrained

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_demo_is_the_packaged_checkpoint() -> None:
    location = find_checkpoint("demo")
    assert (location.kind, location.name) == ("native", "demo")
    assert (location.path / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        (DATA / "longhorn-tiny", "pretrained", "longhorn-tiny"),
        (DATA / "longhorn-train-ckpt/ckpt.pt", "training", "ckpt"),
    ],
)
def test_local_paths(path: Path, kind: str, name: str) -> None:
    location = find_checkpoint(str(path))
    assert (location.kind, location.path, location.name) == (kind, path, name)
    assert location.directory == (path.parent if path.is_file() else path)


def test_relative_and_home_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pretrained(tmp_path / "model", authors_config())
    monkeypatch.chdir(tmp_path / "model")
    assert find_checkpoint(".").name == "model"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_checkpoint("~/model").kind == "pretrained"


@pytest.mark.parametrize(
    "name",
    [
        *("nothing", "./nothing", "/no/such/dir", "~/nothing", "a/b/c", "ckpt.pt", "out/ckpt.pt", "../x/y"),
        *("owner/na..me", "-x/y", "local/name", "tests\\data", "owner/", "a b/c", "x" * 5000, "a\0b", ""),
    ],
)
def test_a_missing_path_is_an_error_and_never_a_download(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "local").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(CheckpointError, match="no such model"):
        find_checkpoint(name)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ('{"model_type": "llama", "hidden_size": 8}', "'llama' model; Remuda serves 'longhorn'"),
        ('{"model_type": "mamba", "hidden_size": 8}', "'mamba' model"),
        ("{}", "names no model_type"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"model_type": "\\ud800"}', "not valid JSON"),
        ("[1]", "not a JSON object"),
        (None, "holds no config.json"),
    ],
)
def test_directories_that_are_no_checkpoint(config: str | None, match: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=match):
        find_checkpoint(str(tmp_path))


def test_a_directory_of_training_checkpoints_names_one(tmp_path: Path) -> None:
    (tmp_path / "ckpt.pt").touch()
    with pytest.raises(CheckpointError, match=r"name the file, as in .*ckpt\.pt"):
        find_checkpoint(str(tmp_path))


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(CheckpointError, match=r"not a \.pt file"):
        find_checkpoint(str(tmp_path / "model.gguf"))


def test_an_oversized_config_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(CheckpointError, match="the limit is"):
        find_checkpoint(str(tmp_path))


def test_offline_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OfflineModeIsEnabled("offline mode is enabled\nand more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be fetched from the hub: offline mode is enabled$"):
        find_checkpoint("owner/name")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A stand-in for the hub. Yields its URL, the directory of owner/name, and the files it sent."""
    repository = tmp_path / "repository"
    repository.mkdir()
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            resolve = f"/owner/name/resolve/{COMMIT}/"
            files = sorted(file for file in repository.iterdir() if file.is_file())
            if path.startswith("/api/models/owner/gated"):
                self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            elif path.startswith("/api/models/owner/name/tree/"):
                entries = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                    for file in files
                ]
                self.answer(200, json.dumps(entries).encode())
            elif path.startswith("/api/models/owner/name"):
                siblings = [{"rfilename": file.name} for file in files]
                body = {"id": "owner/name", "modelId": "owner/name", "sha": COMMIT, "siblings": siblings}
                self.answer(200, json.dumps(body).encode())
            elif path.startswith(resolve) and (repository / path.removeprefix(resolve)).is_file():
                if self.command == "GET":
                    requested.append(path.removeprefix(resolve))
                content = (repository / path.removeprefix(resolve)).read_bytes()
                self.answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{path[-60:]}"'})
            else:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", repository, requested
    server.shutdown()
    thread.join()
    server.server_close()


def find_in_subprocess(model: str, url: str, home: Path) -> str:
    """What `find_checkpoint` returns or raises in a process whose hub is at `url`."""
    code = (
        "import sys\n"
        "from remuda.engine.checkpoint.find import find_checkpoint\n"
        "from remuda.engine.errors import CheckpointError\n"
        "calls = []\n"
        "try: print(find_checkpoint(sys.argv[1], progress=calls.append), calls)\n"
        "except CheckpointError as error: print('CheckpointError:', error)\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
    command = [sys.executable, "-c", code, model]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.e2e
def test_hub_repository(hub: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    url, repository, requested = hub
    write_pretrained(repository, authors_config())
    (repository / "tokenizer.json").write_text("{}")
    (repository / "training_args.bin").write_bytes(b"not wanted")
    (repository / "flax_model.msgpack").write_bytes(b"not wanted")
    output = find_in_subprocess("owner/name", url, tmp_path / "home")
    assert "kind='pretrained'" in output
    assert "name='owner/name'" in output
    assert "[0.0, 1.0]" in output
    assert sorted(requested) == ["config.json", "pytorch_model.bin", "tokenizer.json"]


@pytest.mark.e2e
def test_hub_prefers_safetensors(hub: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    url, repository, requested = hub
    write_pretrained(repository, authors_config())
    (repository / "model.safetensors").write_bytes(b"any")
    assert "kind='pretrained'" in find_in_subprocess("owner/name", url, tmp_path / "home")
    assert sorted(requested) == ["config.json", "model.safetensors"]


@pytest.mark.e2e
def test_hub_refusals(hub: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    url, _, _ = hub
    missing = find_in_subprocess("owner/missing", url, tmp_path / "home")
    assert missing == "CheckpointError: owner/missing: no such repository on the hub, or it is private\n"
    gated = find_in_subprocess("owner/gated", url, tmp_path / "home")
    assert "asks for a login" in gated
    down = find_in_subprocess("owner/name", "http://127.0.0.1:1", tmp_path / "home")
    assert down.startswith("CheckpointError: owner/name: cannot be fetched from the hub: ")
    assert down.count("\n") == 1
