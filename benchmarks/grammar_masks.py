"""What does a grammar cost for each token? Masks over a vocabulary of 50,000 pieces, on one core.

The vocabulary is made of Python's own library: all bytes, then the most frequent words with what begins them.
Usage: python benchmarks/grammar_masks.py [--vocab 50000] [--tokens 400]
"""

import argparse
import json
import os
import random
import re
import statistics
import sysconfig
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llguidance
import numpy as np
import torch
from llguidance.numpy import fill_next_token_bitmask_par

from remuda.engine.grammar import Grammar
from remuda.engine.grammar_compiler import GrammarCompiler
from remuda.engine.guide import Guide, banned, masks
from report import report

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}},
        "address": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["city", "zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "tags", "address"],
    "additionalProperties": False,
}
GRAMMARS = {
    "any JSON object": Grammar("json_schema", '{"type": "object"}'),
    "schema": Grammar("json_schema", json.dumps(PERSON)),
    "regex": Grammar("regex", r"([A-Z][a-z]+ ){3,}[0-9]{4}(-[0-9]{2}){2}"),
    "choice of 100": Grammar("lark", "start: " + " | ".join(f'"label number {i}"' for i in range(100))),
    "Lark arithmetic": Grammar("grammar", 'start: e\ne: t (("+" | "-") t)*\nt: /[0-9]+/ | "(" e ")"'),
}


NUM_GUIDED = 64


def vocabulary(size: int) -> list[bytes]:
    """Token 0 is the end."""
    counts: Counter[str] = Counter()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for piece in re.findall(r" ?\w+| ?[^\w\s]+|\s+", path.read_text(encoding="utf-8", errors="ignore")):
            for end in range(2, min(len(piece), 16) + 1):
                counts[piece[:end]] += 1
    pieces = [piece.encode() for piece, _ in counts.most_common(2 * size)]
    unique = list(dict.fromkeys([b"", *(bytes([i]) for i in range(256)), *pieces]))[:size]
    assert len(unique) == size, f"the library has only {len(unique)} pieces"
    return unique


def timed(times: list[float], run: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    result = run()
    times.append((time.perf_counter() - began) * 1e6)
    return result


def measure(compiler: GrammarCompiler, tokens: list[bytes], name: str, num_tokens: int) -> dict[str, Any]:
    """Random texts of a grammar, `num_tokens` tokens in all."""
    size, rng, grammar = len(tokens), random.Random(1), GRAMMARS[name]
    compiling: list[float] = []
    first = timed(compiling, lambda: compiler.matcher(grammar))
    starting: list[float] = []
    masking: list[float] = []
    applying: list[float] = []
    accepting: list[float] = []
    logits = torch.zeros(size)
    guide = Guide(first, size, frozenset({0}))
    for _ in range(num_tokens):
        words = timed(masking, lambda guide=guide: masks([guide], [1])[0])
        timed(applying, lambda words=words: logits.masked_fill_(torch.from_numpy(banned(words, size)), -torch.inf))
        logits.zero_()
        token = int(rng.choice(np.flatnonzero(~banned(words, size))))
        if token != 0:
            timed(accepting, lambda guide=guide, token=token: guide.accept(token))
        assert guide.error is None, guide.error
        if token == 0 or guide.is_finished:
            guide = Guide(timed(starting, lambda: compiler.matcher(grammar)), size, frozenset({0}))
    return {
        "grammar": name,
        "compile ms": compiling[0] / 1000,
        "start us": statistics.median(starting) if starting else 0.0,
        "mask us": statistics.median(masking),
        "mask p99 us": float(np.percentile(masking, 99)),
        "accept us": statistics.median(accepting),
        "apply us": statistics.median(applying),
    }


def measure_many(compiler: GrammarCompiler, size: int, name: str, num_steps: int = 60) -> dict[str, Any]:
    """Steps of 64 sequences at random places of a grammar: all masks, one by one or together."""
    rng, grammar = random.Random(2), GRAMMARS[name]
    nums = [1] * NUM_GUIDED
    executor = llguidance.LLExecutor()
    times: dict[str, list[float]] = {"one by one": [], "together": [], "threads": []}
    guides = [Guide(compiler.matcher(grammar), size, frozenset({0})) for _ in nums]
    for _ in range(num_steps):
        copies = [[(guide._matcher.deep_copy(), i) for i, guide in enumerate(guides)] for _ in range(2)]
        wide = np.zeros((NUM_GUIDED, -(-(size + 1) // 32)), dtype=np.int32)
        ways: list[tuple[str, Callable[[], Any]]] = [
            ("one by one", lambda: [np.frombuffer(m.compute_bitmask(), dtype=np.uint32) for m, _ in copies[0]]),  # noqa: B023
            ("threads", lambda: fill_next_token_bitmask_par(executor, copies[1], wide)),  # noqa: B023
            ("together", lambda: masks(guides, nums)),
        ]
        found = {way: timed(times[way], run) for way, run in rng.sample(ways, 3)}
        for i, words in enumerate(found["together"]):
            token = int(rng.choice(np.flatnonzero(~banned(words, size))))
            if token != 0:
                guides[i].accept(token)
            if token == 0 or guides[i].is_finished:
                guides[i] = Guide(compiler.matcher(grammar), size, frozenset({0}))
    return {"grammar": name} | {
        f"{way} {label}": round(float(np.percentile(found, share)))
        for way, found in times.items()
        for label, share in (("us", 50), ("p90", 90))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=50_000)
    parser.add_argument("--tokens", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokens = vocabulary(options.vocab)
    compiler = GrammarCompiler(lambda: tokens)
    began = time.perf_counter()
    compiler.matcher(Grammar("regex", "a"))
    first_ms = (time.perf_counter() - began) * 1000
    rows = [measure(compiler, tokens, name, options.tokens) for name in GRAMMARS]
    report(
        f"grammars over {options.vocab} tokens",
        rows,
        [
            f"the first grammar of all, which prepares the vocabulary, took {first_ms:.0f} ms",
            "start: of a known grammar; mask, accept, apply: for each token, medians of random texts",
        ],
    )
    report(
        f"a step of {NUM_GUIDED} guided sequences",
        [measure_many(compiler, options.vocab, name) for name in GRAMMARS],
        [
            f"load of the last minute {os.getloadavg()[0]:.1f}",
            "one by one: by llguidance alone; threads: by its executor; together: whole masks, stop ids and all",
        ],
    )


if __name__ == "__main__":
    main()
