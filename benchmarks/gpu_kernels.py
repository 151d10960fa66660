"""Speed of the kernels, each against the bytes that it must move, and only after a check against float64.

States lie in a pool as the engine lays it out, and each launch of a graph takes another layer of it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Final

import gpu_reference
import torch
from gpu_lab import Case, Lab, Row, poisoned, relative_error, require
from gpu_shapes import Options, Prompts, model_config
from torch import Tensor

from remuda.engine.backend import load_kernels
from remuda.engine.config import ModelConfig
from remuda.engine.models.base import Slots
from remuda.engine.models.longhorn import state_spec
from remuda.engine.state_pool import StatePool

# One unit in the last place of the 16-bit types. A float32 state is held to 1e-6 whatever the activations are.
LIMITS: Final = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
_NUM_SPARE: Final = 2
# Of the pool in which steps are timed: a slot of the 1.3B shape is as long as the stride between its rows.
_NUM_LAYERS: Final = 48


@dataclass(frozen=True)
class Inputs:
    """One layer's activations (T rows) with the strides that the model gives them."""

    x: Tensor
    dt: Tensor
    k: Tensor
    q: Tensor
    z: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.x, self.dt, self.k, self.q, self.z))


class Bench:
    """The kernels under test, a pool of states for `num_rows` sequences, and as many layers as are rotated."""

    def __init__(
        self, lab: Lab, config: ModelConfig, num_rows: int, num_sets: int, dtype: torch.dtype, state: torch.dtype
    ) -> None:
        self.lab, self.dtype, self.state_dtype = lab, dtype, state
        self.D, self.N, self.R = config.intermediate_size, config.state_size, config.time_step_rank
        self.W = config.conv_kernel
        self.kernels = load_kernels("gpu")
        layers = ModelConfig(
            **{name: getattr(config, name) for name in config.__struct_fields__} | {"num_hidden_layers": num_sets}
        )
        spec = state_spec(layers, self.kernels, dtype, state)
        self.pool = StatePool(spec, num_rows + _NUM_SPARE, lab.device)
        for layer in self.pool.layers:
            layer["h"].normal_()
            layer["conv"].normal_()
        order = torch.randperm(num_rows + _NUM_SPARE, device=lab.device, dtype=torch.int32)
        rows, self.spare = order[:num_rows], order[num_rows:].long()
        self.slots = Slots(rows, rows, torch.zeros(num_rows, dtype=torch.bool, device=lab.device))
        self.seeds = torch.randint(2**62, (num_rows,), device=lab.device) if state != torch.float32 else None
        self.weight = self.normal(self.D, 1, self.W) * 0.5
        self.bias, self.skip = self.normal(self.D), self.normal(self.D)
        self.taps = self.kernels.conv.pack(self.weight, self.bias)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.lab.device).to(self.dtype)

    def inputs(self, num_tokens: int) -> Inputs:
        """z is the second half of the in-projection, k and q the end of the x-projection, as in the model."""
        kq = (self.normal(num_tokens, self.R + 2 * self.N) * 0.5)[:, self.R :]
        k, q = kq[:, : self.N], kq[:, self.N :]
        z = self.normal(num_tokens, 2 * self.D)[:, self.D :]
        return Inputs(self.normal(num_tokens, self.D), self.normal(num_tokens, self.D), k, q, z)

    def state(self, name: str, layer: int = 0) -> Tensor:
        """The sequences' states in canonical shape, float64."""
        module: ModuleType = self.kernels.longhorn if name == "h" else self.kernels.conv
        held = self.pool.layers[layer][name][self.slots.src.long()]
        canonical: Tensor = module.to_canonical(held, D=self.D)
        return canonical.double()

    def run_checked(self, launch: Callable[[int], Tensor], name: str) -> Tensor:
        """Layer 0's output, written over NaN, once no other slot has changed."""
        view = self.pool.layers[0][name]
        before = view[self.spare].clone()
        with poisoned():
            out = launch(0)
        require(f"slots of others, {name}:", float((view[self.spare] != before).sum()), 0)
        return out


def run(lab: Lab, options: Options) -> Iterator[Case]:
    """See the head of this file."""
    sizes, config = options.sizes, model_config(options.sizes.models[0], 1)
    for batch in sizes.step_batches:
        for state in (torch.float32, torch.bfloat16):
            name = str(state).removeprefix("torch.")
            yield Case(f"step B={batch}, {name} state", partial(_scan, lab, config, (batch, 1), True, state))
    for batch in sizes.step_batches:
        yield Case(f"conv step B={batch}", partial(_conv, lab, config, (batch, 1), True))
    for rows in sizes.norm_rows:
        yield Case(f"add + norm, {rows} rows", partial(_norm, lab, config, rows))
    for seqs, length in sizes.scans:
        yield Case(f"scan {seqs}×{length}", partial(_scan, lab, config, (seqs, length), False, torch.float32))
    for seqs, length in sizes.conv_scans:
        yield Case(f"conv {seqs}×{length}", partial(_conv, lab, config, (seqs, length), False))


def scan_errors(bench: Bench, launch: Callable[[int], Tensor], inputs: Inputs, prompts: Prompts) -> Row:
    """Errors of output and state against float64. Raises WrongResult."""
    S, T = prompts
    h = bench.state("h")
    out = bench.run_checked(launch, "h").view(S, T, bench.D)
    x, dt, k, q, z = (tensor.reshape(S, T, -1) for tensor in inputs)
    blocks = gpu_reference.longhorn(x, dt, k, q, z, bench.skip, h)
    wrong = total = 0.0
    for times, y in blocks:
        wrong += float((out[:, times].double() - y).square().sum())
        total += float(y.square().sum())
    state_limit = LIMITS[bench.state_dtype] * (1 if T == 1 else 4)
    return {
        "error": require("output", (wrong / total) ** 0.5, LIMITS[bench.dtype]),
        "state error": require("state", relative_error(bench.state("h"), h), state_limit),
    }


def _scan(lab: Lab, config: ModelConfig, prompts: Prompts, is_step: bool, state: torch.dtype) -> Row:
    S, T = prompts
    D, N = config.intermediate_size, config.state_size
    num_bytes = 2 * S * D * N * state.itemsize + S * T * (4 * D + 2 * N) * 2
    num_sets = lab.num_sets(num_bytes, _NUM_LAYERS if is_step else 1)
    bench = Bench(lab, config, S, num_sets, torch.bfloat16, state)
    sets = [bench.inputs(S * T) for _ in range(num_sets)]
    launch = scan_launch(bench, sets, prompts, is_step)
    errors = scan_errors(bench, launch, sets[0], prompts)
    return _speed(lab, lab.seconds_per_launch(launch, num_sets), num_bytes) | errors


def scan_launch(bench: Bench, sets: list[Inputs], prompts: Prompts, is_step: bool) -> Callable[[int], Tensor]:
    """Launch i: layer i of the pool under input set i."""
    longhorn, bounds = bench.kernels.longhorn, _bounds(bench.lab, prompts)

    def launch(i: int) -> Tensor:
        h = bench.pool.layers[i]["h"]
        where = bench.slots if is_step else (bounds, *bench.slots)
        function = longhorn.step if is_step else longhorn.prefill
        out: Tensor = function(*sets[i], bench.skip, h, *where, seeds=bench.seeds, salt=i)
        return out

    return launch


def _conv(lab: Lab, config: ModelConfig, prompts: Prompts, is_step: bool) -> Row:
    S, T = prompts
    D, W = config.intermediate_size, config.conv_kernel
    num_bytes = 2 * S * D * (W - 1) * 2 + S * T * D * 2 * 2
    num_sets = lab.num_sets(num_bytes, _NUM_LAYERS if is_step else 1)
    bench = Bench(lab, config, S, num_sets, torch.bfloat16, torch.float32)
    # The first half of the in-projection.
    sets = [bench.normal(S * T, 2 * D)[:, :D] for _ in range(num_sets)]
    conv, bounds = bench.kernels.conv, _bounds(lab, prompts)

    def launch(i: int) -> Tensor:
        state = bench.pool.layers[i]["conv"]
        where = bench.slots if is_step else (bounds, *bench.slots)
        function = conv.step if is_step else conv.prefill
        out: Tensor = function(sets[i], bench.taps, state, *where)
        return out

    past = bench.state("conv")
    out = bench.run_checked(launch, "conv").view(S, T, D)
    wanted, last = gpu_reference.conv(sets[0].reshape(S, T, D), bench.weight, bench.bias, past)
    errors = {
        "error": require("output", relative_error(out, wanted), LIMITS[bench.dtype]),
        "state error": require("state", relative_error(bench.state("conv"), last), 0),
    }
    return _speed(lab, lab.seconds_per_launch(launch, num_sets), num_bytes) | errors


def _norm(lab: Lab, config: ModelConfig, num_rows: int) -> Row:
    M, norm, eps = config.hidden_size, load_kernels("gpu").norm, config.layer_norm_epsilon
    num_bytes = num_rows * M * (2 + 4 + 4 + 2)
    num_sets = lab.num_sets(num_bytes)
    hidden = [torch.randn(num_rows, M, device=lab.device).bfloat16() for _ in range(num_sets)]
    residual = [torch.randn(num_rows, M, device=lab.device) for _ in range(num_sets)]
    weight = torch.randn(M, device=lab.device).bfloat16()

    def launch(i: int) -> Tensor:
        out: Tensor = norm.add_norm(
            hidden[i], residual[i], weight, None, eps, is_rms=True, out_dtype=torch.bfloat16
        )
        return out

    wanted, total = gpu_reference.add_rms_norm(hidden[0], residual[0], weight, eps)
    with poisoned():
        out = launch(0)
    errors = {
        "error": require("output", relative_error(out, wanted), LIMITS[torch.bfloat16]),
        "state error": require("residual", relative_error(residual[0], total), LIMITS[torch.float32]),
    }
    return _speed(lab, lab.seconds_per_launch(launch, num_sets), num_bytes) | errors


def _bounds(lab: Lab, prompts: Prompts) -> Tensor:
    S, T = prompts
    return torch.arange(0, S * T + 1, T, dtype=torch.int32, device=lab.device)


def _speed(lab: Lab, seconds: float, num_bytes: int) -> Row:
    rate = num_bytes / seconds
    return {
        "µs": seconds * 1e6,
        "MB": num_bytes / 1e6,
        "GB/s": rate / 1e9,
        "% of copy": 100 * rate / lab.ceilings.copy,
        "% of as large a copy": 100 * lab.seconds_per_copy(num_bytes) / seconds,
    }
