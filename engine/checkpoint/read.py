"""Reads a located checkpoint: its ModelConfig, and its weights under canonical names, on the CPU."""

import math
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from remuda.engine.checkpoint.find import CheckpointLocation
from remuda.engine.checkpoint.json_file import describe, read_json_object
from remuda.engine.checkpoint.model_config import parse_authors, parse_native
from remuda.engine.checkpoint.names import EMBEDDING, LM_HEAD, canonical_names, check_shapes, expected_shapes
from remuda.engine.config import ModelConfig
from remuda.engine.errors import CheckpointError

__all__ = ["expected_shapes", "read_model_config", "read_weights"]

WEIGHT_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)

_INDEX: Final = "model.safetensors.index.json"
# What torch.load raises on files that are damaged, or that hold more than tensors and plain values.
_LOAD_ERRORS: Final = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
)


def read_model_config(location: CheckpointLocation) -> ModelConfig:
    """The model's hyperparameters. Raises CheckpointError naming the file and the value."""
    if location.kind == "training":
        config = _load_training(location.path)["model_config"]
        return parse_authors(config, f"{location.path}: model_config")
    path = location.path / "config.json"
    parse = parse_native if location.kind == "native" else parse_authors
    return parse(read_json_object(path), str(path))


def read_weights(
    location: CheckpointLocation, config: ModelConfig, progress: Callable[[float], None] | None = None
) -> dict[str, torch.Tensor]:
    """Every tensor of `expected_shapes(config)`, in its stored dtype, mapped from the file where possible.

    progress: called with the fraction read, up to 1.0. Raises CheckpointError for damaged files, for
    missing, surplus and mis-shaped tensors, for dtypes other than float32, bfloat16 and float16, for
    values that are not finite, and for a tied head that differs from the embedding.
    """
    with ExitStack() as stack:
        stored = _open_weights(location, stack)
        source = str(location.path)
        names = canonical_names(stored, source)
        check_shapes({name: stored[original].shape for name, original in names.items()}, config, source)
        weights: dict[str, torch.Tensor] = {}
        total = sum(math.prod(stored[original].shape) for original in names.values())
        done = 0
        for name, original in names.items():
            weights[name] = _checked(stored[original].load(), name, source)
            done += weights[name].numel()
            if progress is not None:
                progress(done / total)
    if config.tie_word_embeddings:
        head = weights.pop(LM_HEAD, weights[EMBEDDING])
        if not torch.equal(head, weights[EMBEDDING]):
            raise CheckpointError(f"{source}: the embeddings are tied, but {LM_HEAD} differs from {EMBEDDING}")
    return weights


class _Stored:
    """A tensor in a file: its shape now, its values when asked."""

    def __init__(self, shape: tuple[int, ...], load: Callable[[], torch.Tensor]) -> None:
        self.shape = shape
        self.load = load


def _open_weights(location: CheckpointLocation, stack: ExitStack) -> dict[str, _Stored]:
    if location.kind == "training":
        return _from_state_dict(_load_training(location.path)["model"], location.path)
    directory = location.path
    if (directory / _INDEX).is_file():
        return _open_safetensors(_shards(directory), stack)
    if (directory / "model.safetensors").is_file():
        return _open_safetensors([directory / "model.safetensors"], stack)
    path = directory / "pytorch_model.bin"
    if not path.is_file():
        raise CheckpointError(f"{directory}: holds neither model.safetensors nor {_INDEX} nor pytorch_model.bin")
    return _from_state_dict(_load_pickle(path), path)


def _shards(directory: Path) -> list[Path]:
    """The files that the index names; each must lie in the directory itself."""
    path = directory / _INDEX
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: has no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name, re.ASCII):
            raise CheckpointError(f"{path}: {describe(name)} is not the name of a safetensors file beside it")
    return [directory / name for name in sorted(set(weight_map.values()))]


def _open_safetensors(paths: list[Path], stack: ExitStack) -> dict[str, _Stored]:
    stored: dict[str, _Stored] = {}
    for path in paths:
        for name, tensor in _read_safetensors(path, stack):
            if name in stored:
                raise CheckpointError(f"{path}: tensor {name} is in another file too")
            stored[name] = tensor
    return stored


def _read_safetensors(path: Path, stack: ExitStack) -> Iterator[tuple[str, _Stored]]:
    try:
        file = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
        for name in file.keys():  # noqa: SIM118
            shape = tuple(file.get_slice(name).get_shape())
            yield name, _Stored(shape, partial(file.get_tensor, name))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error


def _load_training(path: Path) -> dict[str, Any]:
    checkpoint = _load_pickle(path)
    for key in ("model", "model_config"):
        if not isinstance(checkpoint.get(key), dict):
            raise CheckpointError(f"{path}: not a training checkpoint: it has no {key!r} of names and values")
    return checkpoint


def _load_pickle(path: Path) -> dict[str, Any]:
    """torch.load of tensors and plain values only, without reading the tensors where the format allows it."""
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except _LOAD_ERRORS as error:
        # torch's own text advises to load the file without protection, so it is not passed on.
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        if forbidden:
            reason = f"it pickles {forbidden[1]}, and only tensors and plain values are read"
        elif isinstance(error, pickle.UnpicklingError):
            reason = "it is damaged, or pickles more than tensors and plain values"
        else:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: cannot be read: {reason}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not a dict")
    return value


def _from_state_dict(state_dict: dict[Any, Any], path: Path) -> dict[str, _Stored]:
    stored: dict[str, _Stored] = {}
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{path}: {describe(name)} is a {type(value).__name__}, not a tensor")
        stored[name] = _Stored(tuple(value.shape), value.detach)
    return stored


def _checked(tensor: torch.Tensor, name: str, source: str) -> torch.Tensor:
    if tensor.dtype not in WEIGHT_DTYPES or tensor.layout != torch.strided or tensor.device.type != "cpu":
        kind = f"{tensor.dtype} {tensor.layout}".replace("torch.", "")
        raise CheckpointError(f"{source}: tensor {name} is {kind}, expected float32, bfloat16 or float16")
    # Both ends are NaN where any value is, and no mask of the tensor's size is made.
    if not all(torch.isfinite(end) for end in torch.aminmax(tensor)):
        raise CheckpointError(f"{source}: tensor {name} holds NaN or infinity")
    return tensor.contiguous()
