"""Other projects' code for a model of the same shape, in the same run, where their packages are installed.

mamba_ssm is asked for its Triton step kernel only, which needs none of its CUDA extensions; the packages
with whole models get their own torch code, because those extensions are hidden from them.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any, Final

import torch
from gpu_lab import Case, Lab, Row, poisoned, relative_error, require
from gpu_shapes import Options, Prompts, model_config

from remuda.engine.config import ModelConfig

_MAX_KERNEL_ERROR: Final = 5e-3
_MAX_MODEL_ERROR: Final = 0.1
# Each: package, module of its Mamba, and the keyword under which a step gets its cache.
_MODELS: Final = (("transformers", "transformers", "cache_params"), ("fla", "fla.models", "past_key_values"))


def run(lab: Lab, options: Options) -> Iterator[Case]:
    """See the head of this file. Packages that are absent are rows too."""
    config = model_config(options.sizes.models[0], options.num_layers)
    name = "mamba_ssm selective_state_update"
    try:
        update = _selective_state_update()
    except ImportError as error:
        yield Case(name, partial(_absent, str(error)))
    else:
        for batch in options.sizes.step_batches:
            yield Case(f"{name} B={batch}", partial(_state_update, lab, config, update, batch))
    # From here on it is not to be found: without its extension it would be half there.
    sys.modules["mamba_ssm"] = None  # type: ignore[assignment]
    for package, module, keyword in _MODELS:
        try:
            model = _make_model(lab, config, importlib.import_module(module))
        except (ImportError, AttributeError, RuntimeError) as error:
            yield Case(f"{package} Mamba", partial(_absent, str(error).splitlines()[0]))
            continue
        for batch in options.sizes.peer_batches:
            yield Case(f"{package} Mamba, decode B={batch}", partial(_decode, lab, model, keyword, batch))
        seqs, length = options.sizes.peer_prefill
        yield Case(f"{package} Mamba, prefill {seqs}×{length}", partial(_prefill, lab, model, (seqs, length)))
        del model
        lab.release()


def _absent(reason: str) -> Row:
    return {"check": f"absent: {reason[:60]}"}


def _selective_state_update() -> Callable[..., torch.Tensor]:
    """mamba_ssm's kernel, its package's __init__ not run. Raises ImportError."""
    spec = importlib.util.find_spec("mamba_ssm")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("no package mamba_ssm")
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        package = ModuleType(name)
        folders = name.split(".")[1:]
        package.__path__ = ["/".join([root, *folders]) for root in spec.submodule_search_locations]
        sys.modules[name] = package
    module = importlib.import_module("mamba_ssm.ops.triton.selective_state_update")
    update: Callable[..., torch.Tensor] = module.selective_state_update
    return update


def _state_update(lab: Lab, config: ModelConfig, update: Callable[..., torch.Tensor], batch: int) -> Row:
    """float32 state, bf16 activations; each launch on its own state."""
    D, N = config.intermediate_size, config.state_size
    num_bytes = 2 * batch * D * N * 4 + batch * (4 * D + 2 * N) * 2
    num_sets = lab.num_sets(num_bytes)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=lab.device)

    A, skip, dt_bias = -torch.rand(D, N, device=lab.device) * N, draw(D), draw(D)
    sets = [
        (draw(batch, D, N), *(draw(batch, size).bfloat16() for size in (D, D, N, N, D))) for _ in range(num_sets)
    ]

    def launch(i: int) -> torch.Tensor:
        state, x, dt, b, c, z = sets[i]
        return update(state, x, dt, A, b, c, skip, z, dt_bias, dt_softplus=True)

    state, x, dt, b, c, z = (tensor.double() for tensor in sets[0])
    step = torch.nn.functional.softplus(dt + dt_bias.double())[..., None]
    state = state * torch.exp(step * A.double()) + step * b[:, None] * x[..., None]
    wanted = ((state * c[:, None]).sum(dim=2) + skip.double() * x) * torch.nn.functional.silu(z)
    with poisoned():
        out = launch(0)
    error = require("output", relative_error(out, wanted), _MAX_KERNEL_ERROR)
    seconds = lab.seconds_per_launch(launch, num_sets)
    rate = num_bytes / seconds
    return {
        "µs": seconds * 1e6,
        "GB/s": rate / 1e9,
        "% of copy": 100 * rate / lab.ceilings.copy,
        "error": error,
    }


def _make_model(lab: Lab, config: ModelConfig, module: ModuleType) -> Any:
    """Raises ImportError or AttributeError where the package lacks a Mamba."""
    with torch.device(lab.device):
        model = module.MambaForCausalLM(
            module.MambaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_hidden_layers,
                state_size=config.state_size,
            )
        )
    return model.to(device=lab.device, dtype=torch.bfloat16).eval()


def _ids(lab: Lab, model: Any, batch: int, length: int) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, (batch, length), device=lab.device)


@torch.inference_mode()
def _decode(lab: Lab, model: Any, keyword: str, batch: int) -> Row:
    """One token a row with a cache, greedy; first held to the forward without one."""
    ids = _ids(lab, model, batch, 9)
    begun = model(ids[:, :8], use_cache=True)
    cache = {keyword: begun[keyword], "use_cache": True}
    token = ids[:, 8:]
    wanted = model(ids, use_cache=False).logits[:, -1]
    found = model(token, **cache).logits[:, -1]
    error = require("logits", relative_error(found, wanted), _MAX_MODEL_ERROR)
    seconds = lab.median_wall(lambda: model(token, **cache).logits.argmax(-1), rounds=max(3, lab.rounds // 2))
    return {"ms": seconds * 1e3, "tokens/s": batch / seconds, "error": error}


@torch.inference_mode()
def _prefill(lab: Lab, model: Any, prompts: Prompts) -> Row:
    """Once, because its loop over the tokens takes seconds."""
    ids = _ids(lab, model, *prompts)
    model(ids[:, :8], use_cache=True)
    logits = []
    seconds = lab.median_wall(lambda: logits.append(model(ids, use_cache=True, logits_to_keep=1).logits), rounds=1)
    require("logits that are not finite:", float((~torch.isfinite(logits[0])).sum()), 0)
    return {"ms": seconds * 1e3, "tokens/s": ids.numel() / seconds}
