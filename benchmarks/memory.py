"""Does memory grow with context? Resident memory of the engine at short and at long contexts, slots all in use.

Usage: python benchmarks/memory.py [--model demo] [--quick]
"""

import argparse
import ctypes
import os
import random

from remuda.engine.cores import engine_environment

# Before torch and numba are loaded, as the server does for its engine process.
os.environ.update(engine_environment())

import psutil

from remuda.engine.config import EngineConfig
from remuda.engine.core import EngineCore
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.start import start_engine
from report import report

# Tokens decoded after the prompt, so that what is measured is a sequence under way.
NUM_DECODED = 8


def resident_bytes() -> int:
    """Resident memory of this process, after the C library has given back what it holds free."""
    if os.name == "posix" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    return psutil.Process().memory_info().rss


def measure(core: EngineCore, num_sequences: int, context: int) -> int:
    """Bring `num_sequences` sequences to `context` tokens, and weigh the process while all hold their slots."""
    params = SamplingParams(max_tokens=2**30, temperature=0.0, ignore_eos=True)
    rng = random.Random(context)
    for i in range(num_sequences):
        # Not kept here: half a million Python integers would be weighed with the engine.
        core.add(
            f"{context}-{i}",
            [rng.randrange(core.info.vocab_size) for _ in range(context - NUM_DECODED)],
            params,
        )
    decoded = dict.fromkeys((f"{context}-{i}" for i in range(num_sequences)), 0)
    while min(decoded.values()) < NUM_DECODED:
        for output in core.step():
            decoded[output.request_id] += len(output.token_ids)
    assert core.info.num_slots - core.num_free_slots == num_sequences
    memory = resident_bytes()
    for request_id in decoded:
        core.abort(request_id)
    return memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the long contexts")
    args = parser.parse_args()
    shrink = 20 if args.quick else 1
    core = start_engine(EngineConfig(model=args.model, num_slots=64, seed=0))
    rows = []
    for num_sequences, short, long in ((64, 100, 10_000 // shrink), (1, 100, 500_000 // shrink)):
        # The first round touches every slot and buffer; the second is the baseline.
        measure(core, num_sequences, short)
        before = measure(core, num_sequences, short)
        after = measure(core, num_sequences, long)
        rows.append(
            {
                "sequences": num_sequences,
                "context": short,
                "MB": before / 1e6,
                "long context": long,
                "MB there": after / 1e6,
                "growth %": 100 * (after / before - 1),
                "limit %": 1.0,
            }
        )
    info = core.info
    note = f"{info.model}, {info.num_slots} slots of {info.slot_bytes:,} bytes, backend {info.backend}"
    report("Resident memory against context length", rows, [note])


if __name__ == "__main__":
    main()
