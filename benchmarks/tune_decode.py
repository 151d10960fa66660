"""Which launches make the fused decode step fastest? Prints kernels/longhorn/gpu_decode_configs.py's table.

Coordinate descent over the stages of the step, timed as a whole: a CUDA graph of a few layers of the 1.3B shape,
replayed. Every candidate is checked against the first one's output before its time counts.
Usage: python benchmarks/tune_decode.py [--rows 1 64 128] [--stages step] [--state bfloat16] [--layers 8]
"""

import argparse
import itertools
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from triton.runtime.errors import OutOfResources

from remuda.kernels.longhorn.gpu_decode import DecodeLayer, FusedDecode
from remuda.kernels.longhorn.gpu_decode_configs import CONFIGS, DecodeConfig, Gemm, choose

N, W = 16, 4
NUM_COMPILERS = 14
# Tiles that do not fit the device, launches that fail, outputs that are wrong.
_FAILURES = (OutOfResources, RuntimeError, AssertionError)
# Rows, channels and warps of a recurrence's program.
_STEPS = [
    (16, 128, 16), (16, 64, 16), (16, 64, 8), (16, 32, 8), (16, 32, 4), (8, 128, 16), (8, 128, 8), (8, 64, 8),
    (8, 64, 4), (8, 32, 8), (8, 32, 4), (8, 32, 2), (4, 128, 8), (4, 128, 4), (4, 64, 8), (4, 64, 4), (4, 64, 2),
    (4, 32, 2), (2, 128, 4), (2, 64, 2),
]  # fmt: skip


class Step:
    """A fused decode step of `num_layers` random layers over `rows` slots."""

    def __init__(self, rows: int, hidden: int, num_layers: int, state_dtype: torch.dtype = torch.float32) -> None:
        D, R, device = 2 * hidden, hidden // 16, torch.device("cuda")
        draw = torch.Generator(device).manual_seed(0)

        def weight(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=draw, device=device, dtype=torch.bfloat16) * shape[-1] ** -0.5

        ones = torch.ones(hidden, device=device, dtype=torch.bfloat16)
        self.layers = [
            DecodeLayer(
                norm_weight=ones,
                norm_bias=None,
                in_proj=(weight(2 * D, hidden), None),
                conv=torch.randn(W + 1, D, generator=draw, device=device) * 0.5,
                x_proj=(weight(R + 2 * N, D), None),
                dt_head=(weight(D, R), weight(D)),
                skip=weight(D),
                out_proj=(weight(hidden, D), None),
            )
            for _ in range(num_layers)
        ]
        self.embedding = torch.randn(1000, hidden, generator=draw, device=device, dtype=torch.bfloat16)
        self.state = [
            {
                "conv": torch.randn(rows, W - 1, D, generator=draw, device=device).to(torch.bfloat16),
                "h": torch.randn(rows, N, D, generator=draw, device=device).to(state_dtype),
            }
            for _ in range(num_layers)
        ]
        self.initial = [{name: view.clone() for name, view in layer.items()} for layer in self.state]
        self.tokens = torch.randint(1000, (rows,), generator=draw, device=device)
        self.slots = torch.arange(rows, device=device, dtype=torch.int32)
        self.seeds = None if state_dtype == torch.float32 else torch.arange(rows, device=device)
        self.fresh = torch.zeros(rows, device=device, dtype=torch.bool)
        self.final = ones

    def run(self, config: DecodeConfig, *, is_pdl: bool = True) -> torch.Tensor:
        step = FusedDecode(
            self.layers, self.embedding, (self.final, None), width=W, eps=1e-5, is_rms=True,
            residual_dtype=torch.float32, config=config,
        )  # fmt: skip
        if not is_pdl:
            step._pdl = {"IS_PDL": False}
        return step(self.tokens, self.state, self.slots, self.slots, self.fresh, self.seeds)

    def check(self, config: DecodeConfig, expected: torch.Tensor | None) -> torch.Tensor:
        """The output from a fixed state; raises where it is off."""
        for layer, old in zip(self.state, self.initial, strict=True):
            for name, view in layer.items():
                view.copy_(old[name])
        out = self.run(config)
        assert torch.isfinite(out).all()
        if expected is not None:
            error = (out - expected).float().norm() / expected.float().norm()
            assert error < 2e-2, f"wrong by {error:.2e}"
        return out

    def time(self, config: DecodeConfig, *, is_pdl: bool = True, rounds: int = 5) -> float:
        """Microseconds of one step, the median of `rounds` graphs' replays."""
        self.run(config, is_pdl=is_pdl)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.run(config, is_pdl=is_pdl)
        return time_graph(graph, rounds)


def profile(step: Step, config: DecodeConfig) -> None:
    """Print the device time of each kernel, run one after the other."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(3):
            step.run(config, is_pdl=False)
        torch.cuda.synchronize()
    for event in sorted(profiler.key_averages(), key=lambda event: -event.device_time_total)[:9]:
        print(f"      {event.key[:60]:60s} {event.count:5d} {event.device_time_total / event.count:9.2f} us")


def time_graph(graph: torch.cuda.CUDAGraph, rounds: int = 5, replays: int = 10) -> float:
    """Microseconds of a replay."""
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / replays)
    return sorted(times)[rounds // 2]


def candidates(rows: int, base: DecodeConfig) -> Iterator[tuple[str, list[Any]]]:
    """Of each stage, what to try."""
    small = max(16, 1 << (min(rows, 128) - 1).bit_length())
    gemms: list[Gemm | None] = [None]
    outs: list[Gemm | None] = [None]
    for block_n, block_k, stages, warps in [
        (64, 128, 4, 4), (64, 128, 6, 4), (64, 128, 8, 4), (64, 256, 3, 4), (64, 256, 5, 4), (64, 64, 6, 4),
        (64, 64, 12, 4), (128, 128, 3, 8), (128, 128, 5, 4), (128, 64, 8, 8),
    ]:  # fmt: skip
        if (block_n + small) * block_k * 2 * stages <= 220_000:
            tiles = Gemm(small, block_n, block_k, num_stages=stages, num_warps=warps)
            gemms.append(tiles)
            outs += [replace(tiles, split_k=s) for s in (1, 2, 4)]
    if rows == 1:
        shapes = [
            (64, 128, 6, 4), (64, 128, 6, 8), (64, 128, 10, 4), (64, 128, 10, 8), (64, 256, 5, 8), (64, 64, 12, 4),
            (32, 256, 8, 4), (32, 128, 12, 4), (128, 128, 5, 8),
        ]  # fmt: skip
        yield (
            "",
            [
                replace(base, is_norm_fused=True, in_proj=Gemm(16, n, k, num_stages=s, num_warps=w))
                for n, k, s, w in shapes
            ],
        )
    yield "in_proj", [] if base.is_norm_fused else gemms
    yield "out_proj", outs
    if rows > 128:
        yield "conv", [(1, c, 0, w) for c, w in itertools.product((256, 512, 1024), (1, 2, 4))] + [
            (16, c, p, w) for (c, p), w in itertools.product(((32, 128), (64, 256), (64, 512)), (4, 8))
        ]  # fmt: skip
        yield "step", _STEPS
        return
    if base.conv[0] == 1:
        yield "conv", [(1, c, c, w) for c, w in itertools.product((32, 64, 128), (4, 8))]
        yield "step", [(1, d, w) for d, w in itertools.product((32, 64, 128), (1, 2, 4))]
        return
    yield "conv", [(b, c, p, w) for b, (c, p), w in itertools.product(
        (16, 32), ((32, 32), (32, 64), (64, 64), (32, 128), (64, 128), (64, 256), (64, 512)), (4, 8))]  # fmt: skip
    yield "step", _STEPS


def changed(base: DecodeConfig, name: str, option: Any) -> DecodeConfig:
    """`base` with one field replaced, or the whole of it."""
    return replace(base, **{name: option}) if name else option


def starting_points(rows: int) -> list[DecodeConfig]:
    """Where the descents begin: a row a program for few rows, tiles of rows for many."""
    if rows <= 4:
        return [choose(4)]
    if rows > CONFIGS[-1].max_rows:
        return [CONFIGS[-1]]
    return [choose(4), choose(32)] if rows <= 16 else [choose(rows)]


def wanted(rows: int, base: DecodeConfig, stages: list[str]) -> Iterator[tuple[str, list[Any]]]:
    """The candidates of these stages; of all where none is named."""
    return ((name, options) for name, options in candidates(rows, base) if not stages or name in stages)


def variants(rows: int, stages: list[str]) -> list[DecodeConfig]:
    found = []
    for base in starting_points(rows):
        found.append(base)
        for name, options in wanted(rows, base, stages):
            found += [changed(base, name, option) for option in options]
    return found


def _compile(jobs: list[tuple[int, DecodeConfig]], hidden: int, state_dtype: torch.dtype) -> None:
    """Fill Triton's cache on disk; what cannot be launched is left to the timing, which says so."""
    for rows, config in jobs:
        try:
            Step(rows, hidden, 1, state_dtype).run(config)
            torch.cuda.synchronize()
        except _FAILURES as error:
            print("cannot run", config, str(error)[:80])


def compile_all(all_rows: list[int], hidden: int, state_dtype: torch.dtype, stages: list[str]) -> None:
    jobs = [(rows, config) for rows in all_rows for config in variants(rows, stages)]
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_compile, args=(jobs[i::NUM_COMPILERS], hidden, state_dtype))
        for i in range(NUM_COMPILERS)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def tune(rows: int, step: Step, best: DecodeConfig, stages: list[str]) -> tuple[float, DecodeConfig]:
    """The fastest configuration that a descent from `best` finds, and its microseconds a layer."""
    num_layers = len(step.layers)
    expected = step.check(best, None)
    fastest = step.time(best)
    print(f"rows {rows}: start {fastest / num_layers:.2f} us a layer", flush=True)
    for name, options in wanted(rows, best, stages):
        lines = []
        for option in options:
            config = changed(best, name, option)
            try:
                step.check(config, expected)
                spent = step.time(config)
            except _FAILURES as error:
                lines.append((1e9, option, str(error)[:70]))
                continue
            lines.append((spent / num_layers, option, ""))
        if not lines:
            continue
        lines.sort(key=lambda line: line[0])
        if lines[0][0] * num_layers < fastest:
            fastest, best = lines[0][0] * num_layers, changed(best, name, lines[0][1])
        for spent, option, error in lines[:6]:
            print(f"   {name} {spent:.2f} {option} {error}")
    print(f"rows {rows}: best {fastest / num_layers:.2f} us a layer; without PDL "
          f"{step.time(best, is_pdl=False) / num_layers:.2f}: {best}", flush=True)  # fmt: skip
    profile(step, best)
    return fastest / num_layers, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--stages", nargs="+", default=[], help="of a layer: in_proj, out_proj, conv, step")
    parser.add_argument("--state", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=2048)
    args = parser.parse_args()
    state_dtype = getattr(torch, args.state)
    began = time.monotonic()
    compile_all(args.rows, args.hidden, state_dtype, args.stages)
    print(f"compiled in {time.monotonic() - began:.0f} s", flush=True)
    table = []
    for rows in args.rows:
        step = Step(rows, args.hidden, args.layers, state_dtype)
        found = [tune(rows, step, base, args.stages) for base in starting_points(rows)]
        del step
        table.append(replace(min(found, key=lambda pair: pair[0])[1], max_rows=rows))
        torch.cuda.empty_cache()
        print(f"{time.monotonic() - began:.0f} s", flush=True)
    print("\n".join(f"    {config}," for config in table))


if __name__ == "__main__":
    main()
