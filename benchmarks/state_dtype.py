"""What does a 16-bit state cost in quality? Perplexity of the demo model, and the recurrence's drift from float64.

The state is rounded as a server rounds it: after every token where text is decoded, after every chunk in prefill.
On a CUDA device if there is one, else by the reference backend. Not about speed.
Usage: python benchmarks/state_dtype.py [--quick]
"""

import argparse
import json
import math
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from remuda.engine.backend import KernelBackend, load_kernels, resolve_device
from remuda.engine.checkpoint.find import find_checkpoint
from remuda.engine.checkpoint.read import read_model_config, read_weights
from remuda.engine.models.base import ForwardBatch, Slots
from remuda.engine.models.longhorn import Longhorn
from remuda.engine.state_pool import StatePool
from remuda.engine.tokenizer import Tokenizer
from report import report

ROOT = Path(__file__).parents[1]
DOCUMENTS = ROOT / "tests/data/longhorn-stories/val.jsonl"
CHUNK = 64
# Layers of the demo model whose recurrence is run alone.
LAYERS = (0, 3, 7)
# Output errors are of this many tokens up to a checkpoint.
WINDOW = 64
# sigmoid(dt) is up to e^5 = 148 times less: the state forgets as much more slowly.
LOWERED_BY = 5.0

# By number of tokens: states (rows, D, N), and the outputs of the last tokens (rows, WINDOW, D).
Run = dict[int, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Rounding:
    """How a state is kept between tokens."""

    dtype: torch.dtype
    is_stochastic: bool = False

    @property
    def name(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return (
            name if self.dtype is torch.float32 else f"{name} {'stochastic' if self.is_stochastic else 'nearest'}"
        )


ROUNDINGS = [
    Rounding(torch.float32),
    *(Rounding(dtype, drawn) for dtype in (torch.bfloat16, torch.float16) for drawn in (False, True)),
]


@dataclass(frozen=True)
class Document:
    """Token ids with the BOS, and the nats that the authors' code gives for all but the first."""

    ids: list[int]
    nats: float


def read_documents() -> list[Document]:
    tokenizer = Tokenizer.from_dir(ROOT / "demo")
    assert tokenizer is not None
    entries = [json.loads(line) for line in DOCUMENTS.read_text().splitlines()]
    documents = [Document(tokenizer.encode(e["text"], add_bos=True), e["nll"]) for e in entries]
    assert [len(d.ids) - 1 for d in documents] == [e["tokens"] for e in entries]
    return documents


def load_model(backend: KernelBackend, device: torch.device, state_dtype: torch.dtype) -> Longhorn:
    location = find_checkpoint("demo")
    config = read_model_config(location)
    weights = read_weights(location, config)
    return Longhorn(config, weights, backend, device=device, dtype=torch.float32, state_dtype=state_dtype)


def pieces(documents: list[list[int]], length: int) -> Iterator[tuple[int, list[list[int]]]]:
    """Start and tokens of the pieces that are read together, targets included. documents: longest first."""
    for start in range(0, max(map(len, documents)) - 1, length):
        yield start, [d[start : start + length + 1] for d in documents if len(d) - 1 > start]


def score(
    model: Longhorn, documents: list[list[int]], *, is_stochastic: bool, by_step: bool
) -> tuple[float, torch.Tensor]:
    """Nats of all documents but their first tokens, and the likeliest id at every place.

    documents: token ids, the longest first.
    """
    device = model.device
    layers = StatePool(model.state_spec, len(documents), device).layers
    nats, likeliest = torch.zeros((), dtype=torch.float64, device=device), []
    for start, piece in pieces(documents, 1 if by_step else CHUNK):
        rows = torch.arange(len(piece), dtype=torch.int32, device=device)
        slots = Slots(rows, rows, torch.full((len(piece),), start == 0, device=device))
        none = Slots(*(tensor[:0] for tensor in slots))
        # One seed for each token of each document.
        seeds = start * len(documents) + rows.long() if is_stochastic else None
        bounds = [0] if by_step else [0, *(len(tokens) - 1 for tokens in piece)]
        batch = ForwardBatch(
            token_ids=torch.tensor([t for tokens in piece for t in tokens[:-1]], device=device),
            num_decode=len(piece) if by_step else 0,
            decode=slots if by_step else none,
            prefill=none if by_step else slots,
            cu_seqlens=torch.tensor(bounds, device=device).cumsum(0).int(),
            output_rows=torch.arange(sum(len(tokens) - 1 for tokens in piece), device=device),
            decode_seeds=seeds if by_step else None,
            prefill_seeds=None if by_step else seeds,
        )
        logits = model.logits(model.forward(batch, layers))
        targets = torch.tensor([t for tokens in piece for t in tokens[1:]], device=device)
        nats += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").double()
        likeliest.append(logits.argmax(dim=1).cpu())
    return float(nats), torch.cat(likeliest)


def perplexities(backend: KernelBackend, device: torch.device, num_documents: int) -> list[dict[str, Any]]:
    """One row per way of reading and rounding. Exits where float32 is not what the authors' code gives."""
    entries = read_documents()[:num_documents]
    documents = sorted((entry.ids for entry in entries), key=len, reverse=True)
    num_tokens, authors = sum(len(ids) - 1 for ids in documents), math.fsum(entry.nats for entry in entries)
    rows = []
    for by_step in (True, False):
        for rounding in ROUNDINGS:
            model = load_model(backend, device, rounding.dtype)
            nats, likeliest = score(model, documents, is_stochastic=rounding.is_stochastic, by_step=by_step)
            if rounding.dtype is torch.float32:
                exact, wanted = nats, likeliest
                if abs(nats - authors) > 1e-3 * len(entries):
                    sys.exit(f"float32 gives {nats} nats, the authors' code {authors}")
            states = [t for layer in model.state_spec.layers for t in layer if t.name == "h"]
            rows.append(
                {
                    "read": "token by token" if by_step else f"chunks of {CHUNK}",
                    "state": rounding.name,
                    "h, bytes": sum(math.prod(t.shape) * t.dtype.itemsize for t in states),
                    "tokens": num_tokens,
                    "perplexity": math.exp(nats / num_tokens),
                    "added, millinats a token": 1000 * (nats - exact) / num_tokens,
                    "other likeliest id, %": 100 * (likeliest != wanted).double().mean().item(),
                }
            )
    return rows


def record_rows(backend: KernelBackend, device: torch.device, D: int) -> list[torch.Tensor]:
    """x, dt, k, q, z of the documents' T tokens: (T, rows, D or N), a row for each of `LAYERS`, D channels of it.

    The same rows once more with lowered dt stand for a model that forgets more slowly.
    """
    model, seen = load_model(backend, device, torch.float32), []

    def prefill(*args: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append(args[:5])
        return backend.longhorn.prefill(*args, **options)

    recorder: Any = SimpleNamespace(prefill=prefill)
    model.backend = replace(backend, longhorn=recorder)
    parts = []
    for entry in read_documents():
        seen.clear()
        score(model, [entry.ids], is_stochastic=False, by_step=False)
        # `seen` runs through all layers chunk by chunk.
        layers = [seen[index :: len(model.state_spec.layers)] for index in LAYERS]
        parts.append([torch.stack([torch.cat([c[i] for c in chunks]) for chunks in layers], 1) for i in range(5)])
    x, dt, k, q, z = (torch.cat(rows)[..., :D].contiguous() for rows in zip(*parts, strict=True))
    return [torch.cat(pair, dim=1) for pair in ((x, x), (dt, dt - LOWERED_BY), (k, k), (q, q), (z, z))]


def exact_run(rows: list[torch.Tensor], checkpoints: list[int]) -> Run:
    """In float64, by the formulas."""
    x, dt, k, q, z = (row.double() for row in rows)
    beta, gate = torch.sigmoid(dt), torch.nn.functional.silu(z)
    delta = beta / (1 + beta * k.square().sum(dim=-1, keepdim=True))
    gain, found = delta * x, {}
    h = x.new_zeros((*x.shape[1:], k.shape[-1]))
    outputs: deque[torch.Tensor] = deque(maxlen=WINDOW)
    for t in range(checkpoints[-1]):
        i = t % len(x)
        h = h - (delta[i, :, :, None] * k[i].square()[:, None]) * h + gain[i, :, :, None] * k[i, :, None]
        outputs.append((h * q[i, :, None]).sum(dim=-1) * gate[i])
        if t + 1 in checkpoints:
            found[t + 1] = h, torch.stack(list(outputs), dim=1)
    return found


def rounded_run(rows: list[torch.Tensor], checkpoints: list[int], longhorn: ModuleType, rounding: Rounding) -> Run:
    """By the backend's `step`: its state is rounded after every token."""
    x, _, k = rows[:3]
    num_rows, D, device = x.shape[1], x.shape[2], x.device
    shape = longhorn.state_shape(D, k.shape[2])
    h = torch.zeros((num_rows, *shape), dtype=rounding.dtype, device=device)
    slots, found = torch.arange(num_rows, dtype=torch.int32, device=device), {}
    index = (slots, slots, torch.zeros(num_rows, dtype=torch.bool, device=device))
    # Without the skip, which would hide errors of the state behind what does not come from it.
    skip = torch.zeros(D, device=device)
    outputs: deque[torch.Tensor] = deque(maxlen=WINDOW)
    for t in range(checkpoints[-1]):
        seeds = {"seeds": t * num_rows + slots.long()} if rounding.is_stochastic else {}
        outputs.append(longhorn.step(*(row[t % len(x)] for row in rows), skip, h, *index, **seeds))
        if t + 1 in checkpoints:
            found[t + 1] = longhorn.to_canonical(h, D), torch.stack(list(outputs), dim=1)
    return found


def drifts(backend: KernelBackend, device: torch.device, checkpoints: list[int], D: int) -> list[dict[str, Any]]:
    """One row per memory and rounding: errors beside float64's, in millionths of the size of what is exact."""
    rows = record_rows(backend, device, D)
    exact = exact_run(rows, checkpoints)
    found = {r.name: rounded_run(rows, checkpoints, backend.longhorn, r) for r in ROUNDINGS}
    table = []
    for memory, part in (("as trained", slice(len(LAYERS))), ("longer", slice(len(LAYERS), None))):
        for name, run in found.items():
            row: dict[str, Any] = {"memory": memory, "state": name}
            for i, what in enumerate(("h", "y")):
                for count in checkpoints:
                    error = relative_error(run[count][i][part], exact[count][i][part])
                    row[f"{what} at {count:,}, ppm"] = 1e6 * error
            table.append(row)
    return table


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Norm of the difference over norm of the exact, root mean square over the rows (dim 0)."""
    difference, size = (found.double() - exact).flatten(1), exact.flatten(1)
    return float((difference.square().sum(1) / size.square().sum(1)).mean().sqrt())


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fifth of the documents, a tenth of the drift")
    args = parser.parse_args()
    device = resolve_device("auto")
    # Float32 weights, so that nothing but the state is rounded, and kernel by kernel.
    backend = replace(load_kernels("gpu" if device.type == "cuda" else "reference"), longhorn_decode=None)
    rows = perplexities(backend, device, 20 if args.quick else 100)
    note = f"backend {backend.name}, weights and activations float32; added and other: beside float32"
    report("Perplexity of the demo model by state dtype", rows, [note])
    checkpoints = [1000, 10_000] if args.quick else [1000, 10_000, 100_000]
    D = 512 if device.type == "cuda" else 128
    rows = drifts(backend, device, checkpoints, D)
    notes = [
        f"h: state after so many tokens, y: outputs of the last {WINDOW}; backend {backend.name}",
        f"layers {LAYERS} of the demo model, {D} channels of each; longer memory: dt lowered by {LOWERED_BY}",
    ]
    report("Drift of the recurrence from float64 by state dtype", rows, notes)


if __name__ == "__main__":
    main()
