"""The `llm` command line against the server at REMUDA_URL."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROMPT = "Hi! How are you today?"


@pytest.fixture(scope="module", autouse=True)
def models() -> None:
    """Tell llm of the server, as its documentation says for OpenAI-compatible ones."""
    directory = Path(os.environ["LLM_USER_PATH"])
    directory.mkdir(parents=True, exist_ok=True)
    place = {"model_name": "demo", "api_base": os.environ["REMUDA_URL"]}
    entries = [
        {"model_id": "remuda", **place, "supports_schema": True, "supports_tools": True},
        {"model_id": "remuda-completion", **place, "completion": True},
        {"model_id": "remuda-responses", **place, "responses": True},
    ]
    # JSON is YAML.
    (directory / "extra-openai-models.yaml").write_text(json.dumps(entries))


def llm(*arguments: str) -> str:
    command = [sys.executable, "-m", "llm", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def ask(*arguments: str, prompt: str = PROMPT, model: str = "remuda") -> str:
    return llm("prompt", prompt, "-m", model, "-o", "temperature", "0", "-o", "max_tokens", "32", *arguments)


def test_a_chat_streamed_and_whole() -> None:
    assert ask() == ask("--no-stream") != ""


def test_a_completion_streamed_and_whole() -> None:
    fields = {"prompt": "Once upon a time", "model": "remuda-completion"}
    assert ask(**fields) == ask("--no-stream", **fields) != ""


def test_a_response_streamed_and_whole() -> None:
    assert ask(model="remuda-responses") == ask("--no-stream", model="remuda-responses") != ""


def test_a_conversation_goes_on() -> None:
    ask("--system", "Be kind.")
    assert llm("prompt", "And now?", "--continue", "-o", "max_tokens", "16")
    (last,) = json.loads(llm("logs", "list", "-n", "1", "--json"))
    assert last["output_tokens"] > 0


def test_a_schema() -> None:
    mood = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
    schema = {**mood, "additionalProperties": False}
    assert json.loads(ask("--schema", json.dumps(schema)))["mood"] in ("good", "bad")


def test_tools_are_offered() -> None:
    """Whether one is called is left to the model; what comes back is read by `llm` either way."""
    code = "def weather(city: str) -> str:\n    return 'sunny'"
    assert ask("--functions", code) == ask("--functions", code, "--no-stream") != ""


def test_embeddings() -> None:
    """`llm` knows OpenAI's names alone; its environment says where OpenAI is."""
    vectors = [json.loads(llm("embed", "-m", "3-small", "-c", text)) for text in ("Hi", "Bye")]
    assert vectors[0] != vectors[1]
    assert len(vectors[0]) == len(vectors[1]) > 1
