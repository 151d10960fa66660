"""What a checkpoint's JSON files say about its tokens: BOS, EOS, chat template. Not the vocabulary itself."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from remuda.engine.checkpoint.json_file import describe, read_file, read_json_object
from remuda.engine.errors import CheckpointError

MAX_TEMPLATE_BYTES: Final = 2**20


@dataclass(frozen=True)
class TokenizerSettings:
    """Token facts of a checkpoint; None or empty where its files are silent.

    bos_token_id, eos_token_ids: of generation_config.json, else of config.json. bos_token, eos_token,
    add_bos_token: of tokenizer_config.json. chat_template: of chat_template.jinja, else of
    tokenizer_config.json (the template named "default" where there are several).
    """

    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    bos_token: str | None = None
    eos_token: str | None = None
    add_bos_token: bool | None = None
    chat_template: str | None = None

    def with_ids_of(self, other: "TokenizerSettings") -> "TokenizerSettings":
        """These settings, with the ids of `other` where it has any."""
        bos = self.bos_token_id if other.bos_token_id is None else other.bos_token_id
        return replace(self, bos_token_id=bos, eos_token_ids=other.eos_token_ids or self.eos_token_ids)


def read_settings(directory: Path) -> TokenizerSettings:
    """Read the settings in `directory`; absent files are silent. Raises CheckpointError for wrong ones."""
    tokenizer = _read_optional(directory / "tokenizer_config.json")
    generation = _read_optional(directory / "generation_config.json")
    model = _read_optional(directory / "config.json")
    add_bos_token = tokenizer.get("add_bos_token")
    if not isinstance(add_bos_token, bool | None):
        raise CheckpointError(f"{directory}: add_bos_token is {describe(add_bos_token)}, not true or false")
    bos = _read_ids(directory, generation, "bos_token_id") or _read_ids(directory, model, "bos_token_id")
    eos = _read_ids(directory, generation, "eos_token_id") or _read_ids(directory, model, "eos_token_id")
    return TokenizerSettings(
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=eos,
        bos_token=_read_token(directory, tokenizer, "bos_token"),
        eos_token=_read_token(directory, tokenizer, "eos_token"),
        add_bos_token=add_bos_token,
        chat_template=_read_template(directory, tokenizer),
    )


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _read_ids(directory: Path, config: dict[str, Any], key: str) -> tuple[int, ...]:
    """One id, a list of ids or null, as transformers writes them."""
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise CheckpointError(f"{directory}: {key} is {describe(value)}, not a token id")
    return tuple(ids)


def _read_token(directory: Path, config: dict[str, Any], key: str) -> str | None:
    """A special token's text: a string, or an object with its `content`."""
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    if not isinstance(value, str | None):
        raise CheckpointError(f"{directory}: {key} is {describe(value)}, not a string")
    return value


def _read_template(directory: Path, config: dict[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return read_file(path, MAX_TEMPLATE_BYTES).decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: not UTF-8: {error}") from error
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    if not isinstance(value, str | None):
        raise CheckpointError(f"{directory}: chat_template is {describe(value)}, not a string")
    return value
