"""Launch configurations of the prefill kernels, side by side on the GPU at hand, each checked first.

For choosing the constants of kernels/longhorn/gpu_scan.py and kernels/conv/gpu.py; benchmarks/gpu.py measures
what was chosen. `python benchmarks/kernels_prefill.py [--quick]`, less than a minute.
Timed inside CUDA graphs: alone, the launches of short prompts take longer than their kernels.
"""

import json
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

import torch
from torch import Tensor
from triton.compiler.errors import CompilationError
from triton.testing import do_bench_cudagraph

from remuda.kernels.conv import gpu as conv
from remuda.kernels.longhorn import gpu as longhorn
from remuda.kernels.longhorn import gpu_scan

D: Final = 4096
N: Final = 16
W: Final = 4
R: Final = 128
# Sequences and the tokens of each.
SHAPES: Final = [(1, 16384), (1, 2048), (64, 512)]
SCANS: Final[dict[str, Callable[..., Tensor]]] = {
    "plain": partial(longhorn.prefill, exact_order=True),
    "fast": gpu_scan.prefill,
}
CONVS: Final[dict[str, Callable[..., Tensor]]] = {
    f"{t} tokens, {d} channels, {warps} warps": partial(conv.prefill, tiling=conv.Tiling(t, d, warps))
    for t, d, warps in [(16, 128, 1), (32, 128, 1), (32, 256, 1), (8, 1024, 4)]
}


class Pack(NamedTuple):
    """Packed sequences: bounds, source and destination slots, fresh flags."""

    cu_seqlens: Tensor
    src: Tensor
    dst: Tensor
    fresh: Tensor


def pack(lengths: list[int]) -> Pack:
    """Slot i+1 is read and slot i+2 written for every other sequence, else the same; slot 0 is never used."""
    bounds = torch.tensor([0, *lengths]).cumsum(0).int().cuda()
    slots = torch.arange(len(lengths), device="cuda", dtype=torch.int32) * 2 + 1
    fresh = torch.arange(len(lengths), device="cuda") % 3 == 1
    return Pack(bounds, slots, slots + (slots % 4 == 1).int(), fresh)


def scan_rows(T: int) -> list[Tensor]:
    """x, dt, k, q, z as the model passes them: k, q and z are columns of wider matrices. dt about softly open."""
    wide = torch.randn(T, R + 2 * N, device="cuda").bfloat16()
    xz = torch.randn(T, 2 * D, device="cuda").bfloat16()
    x, dt = torch.randn(T, D, device="cuda").bfloat16(), torch.randn(T, D, device="cuda").bfloat16() - 3
    return [x, dt, wide[:, R : R + N], wide[:, R + N :], xz[:, D:]]


def expected_scan(rows: list[Tensor], skip: Tensor, h: Tensor, p: Pack) -> tuple[Tensor, Tensor]:
    """float64 outputs before rounding, and the states (num_slots, N, D)."""
    x, dt, k, q, z = (row.double() for row in rows)
    h, out = h.double(), torch.zeros_like(x)
    bounds = p.cu_seqlens.tolist()
    for s, (src, dst, fresh) in enumerate(zip(p.src.tolist(), p.dst.tolist(), p.fresh.tolist(), strict=True)):
        if dst < 0:
            continue
        state = torch.zeros_like(h[0]) if fresh else h[src].clone()
        for t in range(bounds[s], bounds[s + 1]):
            delta = 1 / (1 + k[t].square().sum() + torch.exp(-dt[t]))
            key = k[t][:, None]
            state += delta * key * (x[t] - key * state)
            out[t] = ((state * q[t][:, None]).sum(0) + skip.double() * x[t]) * torch.nn.functional.silu(z[t])
        h[dst] = state
    return out, h


def error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm; NaN if anything is."""
    return float((actual.double() - expected).norm() / expected.norm())


def check_scan(prefill: Callable[..., Tensor]) -> str:
    """Ragged sequences, a padding row, sources other than destinations; 16-bit states by stochastic rounding."""
    lengths = [97, 1, 33, 64, 5, 300]
    p = pack(lengths)
    p.dst[4] = -1
    rows, skip = scan_rows(sum(lengths)), torch.randn(D, device="cuda").bfloat16()
    before = torch.randn(14, N, D, device="cuda")
    h = before.clone()
    out = prefill(*rows, skip, h, *p)
    expected, states = expected_scan(rows, skip, before, p)
    state_error, out_error = error(h, states), error(out, expected)
    live = [slot for slot in p.dst.tolist() if slot >= 0]
    others = [slot for slot in range(14) if slot not in live]
    assert torch.equal(h[others], before[others]), "an untouched slot changed"
    assert state_error < 1e-6, f"state error {state_error:.2g}"
    assert out_error < 3e-3, f"output error {out_error:.2g}"
    # The sums over n are cut to 11 bits in `gpu_scan`: what is left of the bias that it corrects.
    rounded = expected.to(out.dtype).double()
    bias = ((out.double() * expected).sum() / (rounded * expected).sum()).item() - 1
    assert abs(bias) < 2e-4, f"outputs are {bias:.2g} too large"
    check_split(prefill, rows, skip, before)
    check_float16(prefill, [row.half() for row in rows], skip, before, p)
    return f"state {state_error:.1e}, out {out_error:.1e}, bias {bias:.1e}"


def check_float16(
    prefill: Callable[..., Tensor], rows: list[Tensor], skip: Tensor, before: Tensor, p: Pack
) -> None:
    """Rows of float16; the state has 16 bits and is rounded stochastically, twice alike."""
    seeds, halves, again = torch.arange(len(p.src), device="cuda"), before.bfloat16(), before.bfloat16()
    out = prefill(*rows, skip, halves, *p, seeds=seeds, salt=3)
    prefill(*rows, skip, again, *p, seeds=seeds, salt=3)
    assert torch.equal(halves, again), "stochastic rounding is not repeatable"
    expected, states = expected_scan(rows, skip, before.bfloat16(), p)
    state_error, out_error = error(halves, states), error(out, expected)
    assert state_error < 5e-3, f"rounded state error {state_error:.2g}"
    assert out_error < 1e-3, f"float16 output error {out_error:.2g}"


def check_split(prefill: Callable[..., Tensor], rows: list[Tensor], skip: Tensor, before: Tensor) -> None:
    """A prompt of 97 tokens in two parts gives the bits of the whole."""

    def run(h: Tensor, start: int, end: int) -> Tensor:
        p = pack([end - start])
        return prefill(*(row[start:end] for row in rows), skip, h, p.cu_seqlens, p.src, p.src, p.fresh)

    pieces, whole = before.clone(), before.clone()
    joined = torch.cat([run(pieces, 0, 41), run(pieces, 41, 97)])
    assert torch.equal(joined, run(whole, 0, 97)), "a split prompt differs"
    assert torch.equal(pieces, whole), "the state of a split prompt differs"


def check_conv(prefill: Callable[..., Tensor]) -> str:
    """Bit for bit the steps, and the state moved."""
    lengths = [97, 1, 2, 33, 64, 5, 300]
    p, T = pack(lengths), sum(lengths)
    x = torch.randn(T, 2 * D, device="cuda").bfloat16()[:, :D]
    packed = conv.pack(torch.randn(D, 1, W, device="cuda"), torch.randn(D, device="cuda"))
    before = torch.randn(16, W - 1, D, device="cuda").bfloat16()
    state, stepped = before.clone(), before.clone()
    out = prefill(x, packed, state, *p)
    bounds, rows = p.cu_seqlens.tolist(), []
    for s in range(len(lengths)):
        for t in range(bounds[s], bounds[s + 1]):
            is_first = t == bounds[s]
            src = p.src[s : s + 1] if is_first else p.dst[s : s + 1]
            fresh = p.fresh[s : s + 1] & is_first
            rows.append(conv.step(x[t : t + 1], packed, stepped, src, p.dst[s : s + 1], fresh))
    assert torch.equal(out, torch.cat(rows)), "prefill differs from steps"
    assert torch.equal(state, stepped), "states differ from those of steps"
    taps, padded = packed[:W].double(), torch.cat([before[1].double(), x[:97].double()])
    y = packed[W].double() + sum(taps[w] * padded[w : w + 97] for w in range(W))
    out_error = error(out[:97], torch.nn.functional.silu(y))
    assert out_error < 3e-3, f"output error {out_error:.2g}"
    return f"out {out_error:.1e}"


def copy_rate() -> float:
    """Bytes a second of a large copy, read and written."""
    a = torch.randn(2**28, device="cuda")
    b = torch.empty_like(a)
    return 2 * a.nbytes / milliseconds(lambda: b.copy_(a)) * 1e3


def milliseconds(run: Callable[[], object]) -> float:
    value: float = do_bench_cudagraph(run, rep=50, return_mode="median")
    return value


def main() -> None:
    """Check each candidate, time those that pass, and print a line each."""
    torch.manual_seed(0)
    shapes = SHAPES[:2] if "--quick" in sys.argv else SHAPES
    rate = copy_rate()
    print(f"{torch.cuda.get_device_name()}: copy {rate / 1e12:.2f} TB/s")
    results = []
    passed: dict[str, dict[str, Callable[..., Tensor]]] = {"scan": {}, "conv": {}}
    for op, candidates, check in [("scan", SCANS, check_scan), ("conv", CONVS, check_conv)]:
        for name, run in candidates.items():
            try:
                print(f"{op} {name}: {check(run)}", flush=True)
                passed[op][name] = run
            # A candidate that fails must not hide the others' figures.
            except (AssertionError, RuntimeError, CompilationError):
                print(f"{op} {name}: FAILED", traceback.format_exc(limit=-2))
    skip = torch.randn(D, device="cuda").bfloat16()
    packed = conv.pack(torch.randn(D, 1, W, device="cuda"), None)
    for S, T in shapes:
        rows, p = scan_rows(S * T), pack([T] * S)
        h = torch.randn(2 * S + 2, N, D, device="cuda")
        state = torch.randn(2 * S + 2, W - 1, D, device="cuda").bfloat16()
        for op, num_rows in [("scan", 4), ("conv", 2)]:
            for name, run in passed[op].items():
                if name == "plain" and T > 2048:
                    continue
                args = (*rows, skip, h, *p) if op == "scan" else (rows[0], packed, state, *p)
                launch = partial(run, *args)
                ms = milliseconds(launch)
                share = num_rows * S * T * D * 2 / ms * 1e3 / rate
                results.append({"op": op, "shape": f"{S}x{T}", "variant": name, "us": ms * 1e3, "of_copy": share})
                print(f"{op} {S}x{T:<7} {name:32} {ms * 1e3:9.1f} us  {share:6.1%} of copy", flush=True)
        del rows
    print(json.dumps(results))


if __name__ == "__main__":
    main()
