"""How fast is the CPU backend? Remuda's whole engine step against one forward of transformers' Mamba.

Same shape and dtype for both: d_model 768, 24 layers, vocabulary 50304, float32, random weights.
Usage: python benchmarks/cpu.py [--rounds N] [--layers N]
"""

import argparse
import itertools
import os
import sys

from remuda.engine.cores import engine_environment

# Before torch and numba are loaded, as the server does for its engine process.
os.environ.update(engine_environment())

import torch
from transformers import MambaConfig, MambaForCausalLM

from remuda.engine.backend import load_kernels
from remuda.engine.checkpoint.names import expected_shapes
from remuda.engine.config import EngineConfig, ModelConfig
from remuda.engine.core import EngineCore
from remuda.engine.models.longhorn import Longhorn
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.start import build_core
from report import medians, report

CPU = torch.device("cpu")
VOCAB, HIDDEN = 50304, 768
DECODE_BATCHES = (1, 8, 64)
PREFILLS = ((1, 512), (8, 256))
TARGETS = {
    "decode B=1": 2.4,
    "decode B=8": 3.0,
    "decode B=64": 2.4,
    "prefill 1×512": 3.5,
    "prefill 8×256": 3.5,
}


def make_model(backend: str, num_layers: int) -> Longhorn:
    config = ModelConfig(
        model_type="longhorn",
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=num_layers,
        intermediate_size=2 * HIDDEN,
        time_step_rank=HIDDEN // 16,
    )
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.ones(shape) if "norm" in name else torch.randn(shape, generator=generator) * 0.02
        for name, shape in expected_shapes(config).items()
    }
    return Longhorn(
        config, weights, load_kernels(backend), device=CPU, dtype=torch.float32, state_dtype=torch.float32
    )


def make_core(model: Longhorn, *, num_slots: int, prefill_chunk: int, max_batch_tokens: int) -> EngineCore:
    config = EngineConfig(
        num_slots=num_slots, prefill_chunk=prefill_chunk, max_batch_tokens=max_batch_tokens, seed=0
    )
    return build_core(model, config)


def check(model: Longhorn, num_layers: int) -> None:
    """Exit where the fast kernels do not give the reference's log-probabilities; then no speed is printed."""
    found = []
    prompt = torch.randint(VOCAB, (24,), generator=torch.Generator().manual_seed(1)).tolist()
    for candidate in (model, make_model("reference", num_layers)):
        core = make_core(candidate, num_slots=1, prefill_chunk=16, max_batch_tokens=32)
        core.add("check", prompt, SamplingParams(temperature=0.0, max_tokens=4, prompt_logprobs=0, logprobs=0))
        entries = []
        while core.has_work:
            for output in core.step():
                entries += [e for e in output.prompt_logprobs or [] if e] + (output.logprobs or [])
        found.append(torch.tensor([entry.logprob for entry in entries]))
    difference = float((found[0] - found[1]).abs().max() / found[1].abs().max())
    if difference > 1e-5:
        sys.exit(f"the cpu backend is wrong: log-probabilities differ from the reference's by {difference:.1e}")


def decode_step(model: Longhorn, batch: int) -> EngineCore:
    core = make_core(model, num_slots=batch, prefill_chunk=8, max_batch_tokens=batch + 512)
    for i in range(batch):
        core.add(str(i), [1 + i, 7], SamplingParams(temperature=0.0, max_tokens=2**30))
    core.step()
    return core


def prefill(core: EngineCore, names: "itertools.count[int]", batch: int, length: int) -> None:
    ids = torch.randint(VOCAB, (batch, length)).tolist()
    for prompt in ids:
        core.add(str(next(names)), prompt, SamplingParams(temperature=0.0, max_tokens=1))
    while core.has_work:
        core.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = make_model("cpu", args.layers)
    check(model, args.layers)
    peer = MambaForCausalLM(
        MambaConfig(vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=args.layers, state_size=16)
    ).eval()
    rows = []

    def row(name: str, tokens: int, seconds: dict[str, float]) -> None:
        ratio = seconds["transformers"] / seconds["remuda"]
        rows.append(
            {
                "case": name,
                "transformers ms": seconds["transformers"] * 1e3,
                "remuda ms": seconds["remuda"] * 1e3,
                "remuda tokens/s": tokens / seconds["remuda"],
                "ahead by": ratio,
                "target": TARGETS[name],
            }
        )

    with torch.inference_mode():
        for batch in DECODE_BATCHES:
            core = decode_step(model, batch)
            cache = peer(torch.randint(VOCAB, (batch, 8)), use_cache=True, logits_to_keep=1).cache_params
            token = torch.randint(VOCAB, (batch, 1))
            seconds = medians(
                {
                    "transformers": lambda token=token, cache=cache: peer(
                        token, cache_params=cache, use_cache=True
                    ).logits.argmax(-1),
                    "remuda": core.step,
                },
                rounds=args.rounds,
            )
            row(f"decode B={batch}", batch, seconds)
        for batch, length in PREFILLS:
            core = make_core(model, num_slots=batch, prefill_chunk=length, max_batch_tokens=batch * length + batch)
            names = itertools.count()
            ids = torch.randint(VOCAB, (batch, length))
            seconds = medians(
                {
                    "transformers": lambda ids=ids: peer(ids, use_cache=True, logits_to_keep=1).logits.argmax(-1),
                    "remuda": lambda core=core, names=names, b=batch, n=length: prefill(core, names, b, n),
                },
                rounds=max(2, args.rounds // 2),
                warm_up=1,
            )
            row(f"prefill {batch}×{length}", batch * length, seconds)
    report(
        "CPU backend against transformers",
        rows,
        [
            f"d_model {HIDDEN}, {args.layers} layers, vocabulary {VOCAB}, float32; medians of alternating runs",
            "remuda: a whole engine step, scheduling and greedy sampling included; transformers: one forward",
        ],
    )


if __name__ == "__main__":
    main()
