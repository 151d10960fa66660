"""Finding a tokenizer among a checkpoint's files, and building it. No torch, and no code from pickles."""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Final, NoReturn

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from remuda.engine.checkpoint.json_file import describe, read_file
from remuda.engine.errors import CheckpointError

MAX_META_BYTES: Final = 32 * 2**20

# The only special token of GPT-2, written between documents.
END_OF_TEXT: Final = "<|endoftext|>"
# The vocabularies of GPT-2 BPE, each with its merges: transformers' names, then OpenAI's.
BPE_FILES: Final = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}

# What pickling a dict of strings and ints takes. Nothing here can name, import or call anything.
PLAIN_OPCODES: Final = frozenset(
    {"PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"}
    | {"MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET"}
    | {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
    | {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"}
)
_MEMO_OPCODES: Final = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})


def find_tokenizer(directory: Path) -> Path | None:
    """Tokenizer file in `directory`: tokenizer.json, else meta.pkl, else a GPT-2 vocabulary with merges."""
    for name in ("tokenizer.json", "meta.pkl"):
        if (directory / name).is_file():
            return directory / name
    for vocabulary, merges in BPE_FILES.items():
        if (directory / vocabulary).is_file() and (directory / merges).is_file():
            return directory / vocabulary
    return None


def build_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer in `path`, by the file's name. Raises CheckpointError."""
    if path.suffix == ".pkl":
        return character_tokenizer(read_meta(path))
    if path.name in BPE_FILES:
        return _gpt2_tokenizer(path, path.with_name(BPE_FILES[path.name]))
    try:
        return tokenizers.Tokenizer.from_buffer(read_file(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: not a tokenizer.json: {error}") from error


def read_meta(path: Path) -> dict[str, int]:
    """The character vocabulary of a nanoGPT `meta.pkl`: {character: id}, ids 0 to n−1.

    The pickle may hold plain dicts, strings and ints only; anything else is refused before it is loaded.
    Raises CheckpointError.
    """
    data = read_file(path, MAX_META_BYTES)
    try:
        _check_opcodes(path, data)
        meta = _PlainUnpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, ValueError, TypeError, LookupError, EOFError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a readable pickle: {error}") from error
    stoi = meta.get("stoi") if isinstance(meta, dict) else None
    if not isinstance(stoi, dict) or not stoi:
        raise CheckpointError(f"{path}: not the meta.pkl of a character data set: it has no 'stoi'")
    for character, token in stoi.items():
        if not isinstance(character, str) or len(character) != 1 or 0xD800 <= ord(character) < 0xE000:
            raise CheckpointError(f"{path}: stoi has {describe(character)}, not a character")
        if type(token) is not int:
            raise CheckpointError(f"{path}: stoi maps {character!r} to {describe(token)}, not to an id")
    if sorted(stoi.values()) != list(range(len(stoi))):
        raise CheckpointError(f"{path}: the ids in stoi are not 0 to {len(stoi) - 1}, each once")
    if meta.get("itos", {i: c for c, i in stoi.items()}) != {i: c for c, i in stoi.items()}:
        raise CheckpointError(f"{path}: itos is not the inverse of stoi")
    if meta.get("vocab_size", len(stoi)) != len(stoi):
        raise CheckpointError(f"{path}: vocab_size is {describe(meta['vocab_size'])}, not {len(stoi)} as in stoi")
    return stoi


class _PlainUnpickler(pickle.Unpickler):
    """Refuses to look anything up by name. The opcodes were checked before; this is the second lock."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is not a dict, a string or an int")


def _check_opcodes(path: Path, data: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in PLAIN_OPCODES:
            raise CheckpointError(f"{path}: holds more than dicts, strings and ints ({opcode.name})")
        # The unpickler allocates its memo up to the largest index, which may be four bytes of anything.
        if opcode.name in _MEMO_OPCODES and not 0 <= int(argument or 0) <= len(data):
            raise CheckpointError(f"{path}: not a readable pickle: memo index {argument}")


def character_tokenizer(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    """One token a character: {character: id}."""
    # The token for unknown characters is in no vocabulary: encoding one is an error, never a silent loss.
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown character>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _gpt2_tokenizer(vocabulary_path: Path, merges_path: Path) -> tokenizers.Tokenizer:
    for path in (vocabulary_path, merges_path):
        read_file(path)
    try:
        model = models.BPE.from_file(str(vocabulary_path), str(merges_path))
    except Exception as error:
        raise CheckpointError(f"{vocabulary_path}: not a GPT-2 vocabulary: {error}") from error
    missing = sorted(c for c in pre_tokenizers.ByteLevel.alphabet() if model.token_to_id(c) is None)
    if missing:
        raise CheckpointError(f"{vocabulary_path}: not byte-level: no token for the byte {missing[0]!r}")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if model.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([tokenizers.AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer
