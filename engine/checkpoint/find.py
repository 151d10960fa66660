"""From what the user typed to where the checkpoint lies. Reads no weights and imports no torch."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final, Literal

from remuda.engine.checkpoint.json_file import describe, read_json_object
from remuda.engine.errors import CheckpointError

DEMO: Final = "demo"

# Everything but the weights; of those, safetensors are fetched first and pickles only in their absence.
TOKENIZER_PATTERNS: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
)
_MODEL_PATTERNS: Final = ("config.json", "model*.safetensors", "model.safetensors.index.json")
_PICKLE_PATTERNS: Final = ("pytorch_model.bin",)

_REPO_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FILE_SUFFIXES: Final = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json", ".pkl", ".txt")

CheckpointKind = Literal["native", "pretrained", "training"]


@dataclass(frozen=True)
class CheckpointLocation:
    """Where a checkpoint lies on disk.

    kind: "native" (this project's form), "pretrained" (a directory of the authors' `save_pretrained`) or
    "training" (the authors' training checkpoint, one file). path: that directory or file.
    directory: where tokenizer files are looked for. name: what to call the model.
    """

    kind: CheckpointKind
    path: Path
    directory: Path
    name: str


def find_checkpoint(model: str, *, progress: Callable[[float], None] | None = None) -> CheckpointLocation:
    """Locate `model`: `demo`, a directory, a `.pt` file, or a hub repository id `owner/name`.

    progress: called with 0.0 before a download and with 1.0 after it; the hub's own bars show the bytes.
    Raises CheckpointError when there is no such thing, or when it is not a Longhorn checkpoint.
    """
    if model == DEMO:
        return _locate_directory(Path(str(resources.files("remuda.demo"))), DEMO)
    # os.path answers False for names that no file can have; pathlib raises.
    path = Path(os.path.expanduser(model))
    if model and os.path.isdir(path):
        return _locate_directory(path, path.resolve().name)
    if os.path.isfile(path):
        if path.suffix not in (".pt", ".pth"):
            raise CheckpointError(f"{path}: not a .pt file; a model is a directory or a .pt file")
        return CheckpointLocation("training", path, path.resolve().parent, path.stem)
    if not is_repo_id(model):
        raise CheckpointError(
            f"no such model: {describe(model)} is neither an existing directory or .pt file, "
            f"nor {DEMO!r}, nor a hub repository id (owner/name)"
        )
    if progress is not None:
        progress(0.0)
    directory = download(model, _MODEL_PATTERNS + TOKENIZER_PATTERNS)
    if not any(directory.glob("model*.safetensors")):
        directory = download(model, _PICKLE_PATTERNS)
    if progress is not None:
        progress(1.0)
    return _locate_directory(directory, model)


def is_repo_id(name: str) -> bool:
    """Whether `name` can only mean a hub repository: one slash, and nothing that looks like a local path."""
    if not _REPO_ID.fullmatch(name) or ".." in name or name.endswith(_FILE_SUFFIXES):
        return False
    return not Path(name.split("/")[0]).is_dir()


def download(repo_id: str, patterns: tuple[str, ...]) -> Path:
    """Fetch the files of a hub repository that match `patterns` into the hub's cache; return their directory.

    Raises CheckpointError with one sentence for whatever the hub, the network or the disk has against it.
    """
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise CheckpointError(f"{repo_id}: the hub asks for a login, and for consent to its terms") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"{repo_id}: no such repository on the hub, or it is private") from error
    except (OSError, HFValidationError) as error:
        # Every other error of the hub client is an OSError; the first line of its text says what happened.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{repo_id}: cannot be fetched from the hub: {reason}") from error


def _locate_directory(directory: Path, name: str) -> CheckpointLocation:
    config_path = directory / "config.json"
    if not config_path.is_file():
        training = sorted(directory.glob("*.pt"))
        hint = f"; for a training checkpoint name the file, as in {training[0]}" if training else ""
        raise CheckpointError(f"{directory}: holds no config.json{hint}")
    config = read_json_object(config_path)
    kind: CheckpointKind
    if "d_model" in config:
        kind = "pretrained"
    elif config.get("model_type") == "longhorn":
        kind = "native"
    else:
        model_type = config.get("model_type")
        what = "names no model_type" if model_type is None else f"is of a {describe(model_type)} model"
        raise CheckpointError(f"{config_path}: {what}; Remuda serves 'longhorn'")
    return CheckpointLocation(kind, directory, directory.resolve(), name)
