"""Do the figures of `remuda load` agree with those of guidellm, on the same server under the same load?

Both in turns, closed loop, prompts and outputs of the same lengths; guidellm in an environment of its own, made of
conformance/requirements-load.txt under build/ (3 GB, as it needs torch). Usage:
python benchmarks/load_agreement.py [--rounds 5] [--concurrency 4] [--requests 40]
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from remuda.engine.checkpoint.model_config import parse_native
from remuda.engine.checkpoint.names import expected_shapes
from report import report

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "load-agreement"
BOUND = 0.05
KINDS = ("scripted", "large", "demo")
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 64
MEASURES = ("TTFT ms, median", "ITL ms, median", "e2e ms, median", "output tokens/s", "requests/s")
Figures = dict[str, float]


def install() -> Path:
    """guidellm's program, in an environment made when it is not there."""
    program = WORK / "venv" / "bin" / "guidellm"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(WORK / "venv")], check=True)
        pip = [str(program.with_name("python")), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "-r", str(ROOT / "conformance" / "requirements-load.txt")], check=True)
    return program


def write_large(directory: Path) -> Path:
    """A checkpoint of the 130M shape with random weights and the demo's tokenizer: its steps take long."""
    directory.mkdir()
    for file in (ROOT / "demo").glob("*.json"):
        (directory / file.name).write_bytes(file.read_bytes())
    path = directory / "config.json"
    shape = {"hidden_size": 768, "intermediate_size": 1536, "num_hidden_layers": 24, "time_step_rank": 48}
    config = json.loads(path.read_text()) | shape
    path.write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    shapes = expected_shapes(parse_native(config, str(path)))
    weights = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}
    save_file(weights, directory / "model.safetensors")
    return directory


def serve(kind: str, directory: Path) -> tuple[subprocess.Popen[str], str, str]:
    """A server, its URL and its model: a scripted one, the demo model's, or that of `write_large` on one core."""
    if kind == "scripted":
        command = [sys.executable, "-m", "tests.clients.load.fake_server", "remuda"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, f"http://127.0.0.1:{int(process.stdout.readline())}", "fake-1"
    model = ["demo"] if kind == "demo" else [str(write_large(directory / "large")), "--num-threads", "1"]
    command = [sys.executable, "-c", "from remuda.server.cli import main; main()", "serve", *model, "--port", "0"]
    process = subprocess.Popen([*command, "--no-access-log"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"ready at (http://\S+)", line):
            return process, found[1], kind
    raise SystemExit("the server did not start")


def by_guidellm(program: Path, url: str, model: str, arguments: argparse.Namespace, directory: Path) -> Figures:
    """Its own figures. A request's ITL is its mean gap; the median weighs each by its tokens, all alike here."""
    path = directory / "guidellm.json"
    tokenizer = directory / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    for file in (ROOT / "demo").glob("tokenizer*.json"):
        (tokenizer / file.name).write_bytes(file.read_bytes())
    command = [
        *(str(program), "run", "--disable-console"),
        *("--backend", f"kind=openai_http,target={url},model={model},request_format=/v1/completions,http2=false"),
        *("--profile", f"kind=concurrent,streams={arguments.concurrency}"),
        *("--constraint", f"kind=max_requests,count={arguments.requests}"),
        *("--tokenizer", f"kind=huggingface_auto,model={tokenizer}"),
        *("--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={OUTPUT_TOKENS}"),
        *("--output", f"kind=json,path={path}"),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (found,) = json.loads(path.read_text())["benchmarks"]
    metrics = {
        name: value["successful"] for name, value in found["metrics"].items() if value and "successful" in value
    }
    assert metrics["output_token_count"]["count"] == arguments.requests
    assert metrics["output_token_count"]["mean"] == OUTPUT_TOKENS
    return {
        MEASURES[0]: metrics["time_to_first_token_ms"]["median"],
        MEASURES[1]: metrics["inter_token_latency_ms"]["median"],
        MEASURES[2]: metrics["request_latency"]["median"] * 1e3,
        MEASURES[3]: metrics["output_tokens_per_second"]["mean"],
        MEASURES[4]: metrics["requests_per_second"]["mean"],
    }


def by_remuda(url: str, arguments: argparse.Namespace, directory: Path) -> Figures:
    """Of its JSON. ITL as guidellm's: the median of the requests' means."""
    path = directory / "remuda.json"
    command = [
        *(
            sys.executable,
            "-c",
            "from remuda.server.cli import main; main()",
            "load",
            "--url",
            url,
            "--json",
            path,
        ),
        *("--concurrency", str(arguments.concurrency), "--num-requests", str(arguments.requests)),
        # guidellm's prompts have the BOS in front.
        *("--prompt-tokens", str(PROMPT_TOKENS + 1), "--output-tokens", str(OUTPUT_TOKENS), "--warmup", "0"),
        "--no-ceiling",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(path.read_text())
    (stage,), rows = found["stages"], found["requests"]
    assert stage["num_failed"] == 0
    assert stage["output_tokens"] == arguments.requests * OUTPUT_TOKENS
    return {
        MEASURES[0]: stage["ttft"]["percentiles"]["50"] * 1e3,
        MEASURES[1]: statistics.median(row["itl"] for row in rows) * 1e3,
        MEASURES[2]: stage["e2e"]["percentiles"]["50"] * 1e3,
        MEASURES[3]: stage["output_tokens_per_s"],
        MEASURES[4]: stage["requests_per_s"],
    }


def measure(kind: str, program: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table, from `--rounds` runs of each tool on one server."""
    theirs: list[Figures] = []
    ours: list[Figures] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        process, url, model = serve(kind, directory)
        try:
            by_remuda(url, arguments, directory)
            for _ in range(arguments.rounds):
                ours.append(by_remuda(url, arguments, directory))
                theirs.append(by_guidellm(program, url, model, arguments, directory))
        finally:
            process.terminate()
            process.communicate()
    return [{"server": kind, **compare(name, ours, theirs)} for name in MEASURES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--servers", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--guidellm", type=Path, help="its program, where it is installed")
    arguments = parser.parse_args()
    program = arguments.guidellm or install()
    rows = [row for kind in arguments.servers for row in measure(kind, program, arguments)]
    notes = [
        f"closed loop of {arguments.concurrency}, {arguments.requests} requests a run, {PROMPT_TOKENS + 1} tokens "
        f"in, {OUTPUT_TOKENS} out; medians of {arguments.rounds} runs of each, in turns",
        "scripted: first token after 200 ms, then one every 50 ms; large: 130M shape, random weights, one thread",
        "noise: the largest distance of a run from its median, of the tool that has more of it",
    ]
    report("remuda load beside guidellm", rows, notes)
    sys.exit(any(row["agree"] == "NO" for row in rows))


def compare(measure: str, ours: list[Figures], theirs: list[Figures]) -> dict[str, Any]:
    """A row of the table."""
    left, right = ([run[measure] for run in runs] for runs in (ours, theirs))
    difference = statistics.median(left) / statistics.median(right) - 1
    noise = max(abs(value / statistics.median(runs) - 1) for runs in (left, right) for value in runs)
    return {
        "measure": measure,
        "remuda load": statistics.median(left),
        "guidellm": statistics.median(right),
        "difference %": 100 * difference,
        "noise %": 100 * noise,
        "agree": "yes" if abs(difference) <= BOUND else "NO",
    }


if __name__ == "__main__":
    main()
