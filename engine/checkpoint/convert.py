"""Writes any readable checkpoint in the native form: a directory of config, safetensors and tokenizer."""

import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from safetensors.torch import save_file

from remuda.engine.checkpoint.find import CheckpointLocation, find_checkpoint
from remuda.engine.checkpoint.json_file import read_json_object
from remuda.engine.checkpoint.model_config import to_native
from remuda.engine.checkpoint.names import EMBEDDING
from remuda.engine.checkpoint.read import WEIGHT_DTYPES, read_model_config, read_weights
from remuda.engine.config import ModelConfig
from remuda.engine.errors import CheckpointError, ConfigError
from remuda.engine.tokenizer import TokenIdTokenizer, Tokenizer, check_tokenizer_fits, load_tokenizer

MAX_SHARD_BYTES: Final = 4 * 10**9

_DTYPES: Final = {str(dtype).removeprefix("torch."): dtype for dtype in WEIGHT_DTYPES}


@dataclass(frozen=True)
class ConvertSummary:
    """What was written. num_bytes: of the weights. has_…: whether the checkpoint came with one."""

    directory: Path
    config: ModelConfig
    num_parameters: int
    num_bytes: int
    num_shards: int
    has_tokenizer: bool
    has_chat_template: bool


def convert(
    src: str,
    dst: str | Path,
    *,
    tokenizer: str | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Callable[[float], None] | None = None,
) -> ConvertSummary:
    """Write the checkpoint `src` to the new directory `dst` in the native form.

    src: anything that `find_checkpoint` takes. tokenizer: anything that `load_tokenizer` takes in place of
    the checkpoint's own. dtype: float32, bfloat16 or float16; None keeps each tensor's. max_shard_bytes:
    above it the weights are split, with an index. progress: called with the fraction read.
    `dst` must not exist, or be empty; it appears complete or not at all.
    Raises ConfigError for wrong arguments, CheckpointError for what is wrong with the checkpoint.
    """
    if dtype is not None and dtype not in _DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, not {dtype!r}")
    if max_shard_bytes < 1:
        raise ConfigError(f"max_shard_bytes must be at least 1, not {max_shard_bytes}")
    target = Path(dst).expanduser()
    _check_target(target)
    location = find_checkpoint(src)
    config = read_model_config(location)
    text = load_tokenizer(location, tokenizer)
    check_tokenizer_fits(text, config.vocab_size)
    weights = read_weights(location, config, progress)
    if dtype is not None:
        weights = {name: _cast(name, tensor, _DTYPES[dtype]) for name, tensor in weights.items()}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
            directory = Path(temporary) / target.name
            directory.mkdir()
            _write_json(directory / "config.json", to_native(config) | {"dtype": _dtype_name(weights)})
            num_shards = _write_weights(directory, weights, max_shard_bytes)
            _write_tokenizer(directory, text, location)
            # A rename replaces an empty directory, and nothing else.
            directory.rename(target)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {error.strerror or error}") from error
    return ConvertSummary(
        directory=target,
        config=config,
        num_parameters=sum(tensor.numel() for tensor in weights.values()),
        num_bytes=sum(tensor.nbytes for tensor in weights.values()),
        num_shards=num_shards,
        has_tokenizer=isinstance(text, Tokenizer),
        has_chat_template=text.chat_template is not None,
    )


def _check_target(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ConfigError(f"{target}: exists and is not a directory")
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"{target}: exists and is not empty; nothing was written")


def _cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    cast = tensor.to(dtype)
    if not torch.isfinite(cast).all():
        raise CheckpointError(f"tensor {name} reaches past the range of {dtype}".replace("torch.", ""))
    return cast


def _write_weights(directory: Path, weights: dict[str, torch.Tensor], max_shard_bytes: int) -> int:
    shards: list[dict[str, torch.Tensor]] = [{}]
    filled = 0
    for name, tensor in weights.items():
        if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    if len(shards) == 1:
        _save(weights, directory / "model.safetensors")
        return 1
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        file_name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _save(shard, directory / file_name)
        weight_map |= dict.fromkeys(shard, file_name)
    total_size = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    _write_json(directory / "model.safetensors.index.json", index)
    return len(shards)


def _save(weights: dict[str, torch.Tensor], path: Path) -> None:
    save_file(weights, path, metadata={"format": "pt"})
    # safetensors makes files that only their owner can read; the config has the mode that the user wants.
    path.chmod(stat.S_IMODE(path.with_name("config.json").stat().st_mode))


def _write_tokenizer(
    directory: Path, tokenizer: Tokenizer | TokenIdTokenizer, location: CheckpointLocation
) -> None:
    if isinstance(tokenizer, Tokenizer):
        tokenizer.save(directory / "tokenizer.json")
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "add_bos_token": tokenizer.add_bos,
            "chat_template": tokenizer.chat_template,
        }
        _write_json(directory / "tokenizer_config.json", _without_none(settings))
    own = location.directory / "generation_config.json"
    generation = read_json_object(own) if own.is_file() else {}
    generation |= {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": list(tokenizer.eos_token_ids) or None,
    }
    if _without_none(generation):
        _write_json(directory / "generation_config.json", _without_none(generation))


def _dtype_name(weights: dict[str, torch.Tensor]) -> str:
    return str(weights[EMBEDDING].dtype).removeprefix("torch.")


def _without_none(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
