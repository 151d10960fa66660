"""Runs every kernel in every form that a request may ask for, before the first one does."""

from collections.abc import Callable
from typing import Final

from remuda.engine.compile_watch import watch_compilations
from remuda.engine.device_runner import DeviceRunner
from remuda.engine.runner import Runner

Report = Callable[[float], None]

# Rows at which CPU kernels change.
_CPU_ROWS: Final = (2, 64, 65, 128, 256, 512, 1024)
# Decode rows, prompt tokens and chunks of GPU steps. Kernels are chosen, and compiled, by ranges of these
# numbers, and a 1 or a multiple of 16 is another kernel to Triton than other numbers.
_GPU_ROWS: Final = (0, 1, 2, 16, 17)
_GPU_TOKENS: Final = (2, 3, 16, 17, 31, 32, 64, 65, 128, 129, 256, 512, 1024, 2048, 4096, 8192)
_GPU_SEQS: Final = (1, 2, 16, 17, 64, 256)


def warm_up(runner: Runner, num_slots: int, prefill_chunk: int, max_batch_tokens: int, report: Report) -> None:
    """Compile what may be asked for. `report` hears the fraction that is done."""
    if isinstance(runner, DeviceRunner) and runner.is_cuda:
        _warm_up_gpu(runner, num_slots, max_batch_tokens, report)
        watch_compilations(True)
        return
    sizes = [(1, 0), (0, min(prefill_chunk, max_batch_tokens)), (1, 2)]
    sizes += [(rows, 0) for rows in _CPU_ROWS if rows <= num_slots]
    for done, (num_decode, num_prefill) in enumerate(sizes):
        report(done / len(sizes))
        runner.warm_up(num_decode, num_prefill)


def _warm_up_gpu(runner: DeviceRunner, num_slots: int, max_batch_tokens: int, report: Report) -> None:
    runner.capture(lambda fraction: report(fraction / 2))
    steps = [
        (rows, tokens, seqs)
        for rows in _GPU_ROWS
        for tokens in (*_GPU_TOKENS, max_batch_tokens - rows)
        for seqs in _GPU_SEQS
        if rows + tokens <= max_batch_tokens and rows + seqs <= num_slots and 2 * seqs <= tokens
    ]
    # Decode steps with new sequences in them are no graphs, and of any size.
    steps += [(rows - 1, 0, 0) for rows in runner.sizes if rows > 1]
    # Capturing gave the memory of the largest step back.
    steps.append((num_slots, max_batch_tokens - num_slots, 1))
    for done, step in enumerate(steps):
        report(0.5 + done / len(steps) / 2)
        runner.warm_up(*step)
    runner.warm_up_scores()
