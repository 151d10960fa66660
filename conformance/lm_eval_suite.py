"""lm-eval's `local-completions`: a text's perplexity over HTTP is that of the offline engine."""

import json
import math
import os
from pathlib import Path

import lm_eval
import pytest

ROOT = Path(__file__).parents[1]
TEXTS = ROOT / "tests" / "data" / "longhorn-stories" / "val.jsonl"


def test_perplexity_is_the_engines() -> None:
    task = {
        "task": "stories",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(TEXTS)}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    }
    arguments = {
        "model": "demo",
        "base_url": f"{os.environ['REMUDA_URL']}/completions",
        "tokenizer": str(ROOT / "demo"),
        "tokenizer_backend": "huggingface",
        "num_concurrent": 4,
        "max_length": 8192,
    }
    found = lm_eval.simple_evaluate("local-completions", arguments, tasks=[task], bootstrap_iters=0)
    perplexity = found["results"]["stories"]["byte_perplexity,none"]
    num_bytes = sum(len(json.loads(line)["text"].encode()) for line in TEXTS.read_text().splitlines())
    expected = math.exp(float(os.environ["REMUDA_NLL"]) / num_bytes)
    print(f"byte perplexity by lm-eval {perplexity:.7f}, by the engine {expected:.7f}")
    assert perplexity == pytest.approx(expected, rel=1e-6)
