"""Text to token ids and back, on the `tokenizers` library. Not incremental (text_stream.py is); no torch."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import tokenizers

from remuda.engine.checkpoint.find import TOKENIZER_PATTERNS, CheckpointLocation, download, is_repo_id
from remuda.engine.checkpoint.tokenizer_files import BPE_FILES, END_OF_TEXT, build_tokenizer, find_tokenizer
from remuda.engine.checkpoint.tokenizer_settings import TokenizerSettings, read_settings
from remuda.engine.errors import CheckpointError, InvalidRequestError

_BYTE_FALLBACK: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """A checkpoint's tokenizer, with its special tokens and its chat template.

    vocab_size: one more than the highest id. bos_token_id, eos_token_ids, bos_token, eos_token: as the
    checkpoint's files give them, else None or empty. add_bos: whether plain prompts start with the BOS.
    special_ids: ids that `skip_special_tokens` leaves out. chat_template: its jinja source.
    joins_bytes: whether a text is just the concatenation of its tokens' bytes, read as UTF-8.
    """

    def __init__(self, backend: tokenizers.Tokenizer, settings: TokenizerSettings | None = None) -> None:
        self._backend = backend
        settings = settings if settings is not None else TokenizerSettings()
        self.vocab_size: int = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self.bos_token_id, self.bos_token = _resolve(backend, settings.bos_token_id, settings.bos_token)
        eos_id, self.eos_token = _resolve(backend, None, settings.eos_token)
        self.eos_token_ids = settings.eos_token_ids or (() if eos_id is None else (eos_id,))
        if self.eos_token is None and self.eos_token_ids:
            self.eos_token = backend.id_to_token(self.eos_token_ids[0])
        self.add_bos = self._adds_bos() if settings.add_bos_token is None else settings.add_bos_token
        self.chat_template = settings.chat_template
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token for token, entry in added.items() if entry.special)
        decoders = _decoder_types(backend)
        self._is_byte_level = "ByteLevel" in decoders
        self._has_byte_fallback = "ByteFallback" in decoders
        self.joins_bytes = self._is_byte_level or decoders == {"Fuse"}
        self._bytes: dict[int, bytes] = {}
        # Texts of tokens that begin and end with a character, gathered by who decodes.
        self.whole_texts: dict[int, str] = {}

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Read a tokenizer.json (or meta.pkl, or vocab.json), with the settings that lie beside it.

        Raises CheckpointError.
        """
        path = Path(path)
        return cls._open(path, read_settings(path.parent))

    @classmethod
    def from_dir(cls, directory: str | Path) -> "Tokenizer | None":
        """The tokenizer of a checkpoint directory, or None if it has none. Raises CheckpointError."""
        path = find_tokenizer(Path(directory))
        return None if path is None else cls.from_file(path)

    @classmethod
    def _open(cls, path: Path, settings: TokenizerSettings) -> "Tokenizer":
        if path.name in BPE_FILES and settings.eos_token is None and not settings.eos_token_ids:
            settings = replace(settings, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)
        return cls(build_tokenizer(path), settings)

    def encode(self, text: str, add_bos: bool = False) -> list[int]:
        """Token ids of `text`; special tokens written out in it are recognised.

        add_bos: start with the BOS, unless the model has none or the text begins with it already.
        Raises InvalidRequestError for text that is not valid Unicode or outside a character alphabet.
        """
        try:
            # Without the characters' offsets, which nobody reads: half the time for a long text.
            ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except Exception as error:
            # The library raises a TypeError for lone surrogates and a bare Exception for unknown characters.
            raise _invalid_text(self._backend, text) from error
        if add_bos and self.bos_token_id is not None and ids[:1] != [self.bos_token_id]:
            ids.insert(0, self.bos_token_id)
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; invalid UTF-8 becomes U+FFFD and ids without a token are left out."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_text(self, token: int) -> str:
        """One token as text, as it stands in the middle of a text; "token_id:N" for an id without a token."""
        if self._backend.id_to_token(token) is None:
            return f"token_id:{token}"
        return self.token_bytes(token).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The exact bytes that a token adds in the middle of a text; none for an id without a token."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._make_bytes(token)
        return found

    def is_byte_token(self, token: int) -> bool:
        """Whether the token stands for one byte ("<0xE2>") rather than for text of its own."""
        return self._has_byte_fallback and self._fallback_byte(token) is not None

    def save(self, path: Path) -> None:
        """Write a tokenizer.json."""
        path.write_text(self._backend.to_str(pretty=True), encoding="utf-8")

    def _make_bytes(self, token: int) -> bytes:
        text = self._backend.id_to_token(token)
        if text is None:
            return b""
        if self._is_byte_level:
            table = _BYTE_OF_CHARACTER
            if all(character in table for character in text):
                return bytes(table[character] for character in text)
            return text.encode()
        if self._has_byte_fallback and (byte := self._fallback_byte(token)) is not None:
            return byte
        # After itself, a token keeps the leading space that it would lose at the beginning of a text.
        once, twice = self.decode([token], False), self.decode([token, token], False)
        return twice[len(once) :].encode()

    def _fallback_byte(self, token: int) -> bytes | None:
        match = _BYTE_FALLBACK.fullmatch(self._backend.id_to_token(token) or "")
        return bytes.fromhex(match[1]) if match else None

    def _adds_bos(self) -> bool:
        """Whether the post-processor of tokenizer.json puts the BOS first, where no setting says so."""
        ids = self._backend.encode("", add_special_tokens=True).ids
        return self.bos_token_id is not None and ids[:1] == [self.bos_token_id]


class TokenIdTokenizer:
    """Stands in for a missing tokenizer: prompts must be token ids, texts read `token_id:N token_id:M`."""

    bos_token: str | None = None
    eos_token: str | None = None
    add_bos = False
    chat_template: str | None = None
    special_ids: frozenset[int] = frozenset()
    joins_bytes = False
    vocab_size = 0

    def __init__(self, settings: TokenizerSettings | None = None) -> None:
        settings = settings if settings is not None else TokenizerSettings()
        self.bos_token_id = settings.bos_token_id
        self.eos_token_ids = settings.eos_token_ids
        self.whole_texts: dict[int, str] = {}

    def encode(self, text: str, add_bos: bool = False) -> list[int]:
        """Always raises InvalidRequestError."""
        raise InvalidRequestError("this model has no tokenizer: give the prompt as token ids", param="prompt")

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """`token_id:N` for each id, joined by one space."""
        return " ".join(map(self.token_text, ids))

    def token_text(self, token: int) -> str:
        return f"token_id:{token}"

    def token_bytes(self, token: int) -> bytes:
        return self.token_text(token).encode()

    def is_byte_token(self, token: int) -> bool:
        return False


def load_tokenizer(location: CheckpointLocation, override: str | None = None) -> Tokenizer | TokenIdTokenizer:
    """The tokenizer of a checkpoint, or the one that `override` names instead.

    override: a tokenizer file (tokenizer.json, meta.pkl, vocab.json), a directory, or a hub repository id.
    The BOS and EOS ids of the checkpoint's own generation_config.json go before those of the override.
    Raises CheckpointError when files are unreadable, or `override` names no tokenizer.
    """
    own = read_settings(location.directory)
    path = find_tokenizer(location.directory) if override is None else _find_override(override)
    if path is None:
        return TokenIdTokenizer(own)
    settings = own if override is None else read_settings(path.parent).with_ids_of(own)
    return Tokenizer._open(path, settings)


class SpecialTokens(NamedTuple):
    """The ids at which sequences begin and end."""

    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


def load_special_tokens(location: CheckpointLocation, override: str | None = None) -> SpecialTokens:
    """The BOS and EOS of the tokenizer that `load_tokenizer` returns. Raises CheckpointError."""
    tokenizer = load_tokenizer(location, override)
    return SpecialTokens(tokenizer.bos_token_id, tokenizer.eos_token_ids)


def check_tokenizer_fits(tokenizer: Tokenizer | TokenIdTokenizer, vocab_size: int) -> None:
    """Raise CheckpointError if the tokenizer, or a BOS or EOS id, reaches past the model's vocabulary."""
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"the tokenizer has ids up to {tokenizer.vocab_size - 1}, but the model's vocabulary ends at "
            f"{vocab_size - 1}: it belongs to another model"
        )
    for token in (*tokenizer.eos_token_ids, tokenizer.bos_token_id):
        if token is not None and not 0 <= token < vocab_size:
            raise CheckpointError(f"BOS or EOS id {token} is outside the vocabulary [0, {vocab_size})")


def _find_override(override: str) -> Path:
    path = Path(os.path.expanduser(override))
    if os.path.isfile(path):
        return path
    if not os.path.isdir(path) and is_repo_id(override):
        path = download(override, TOKENIZER_PATTERNS)
    found = find_tokenizer(path) if override and os.path.isdir(path) else None
    if found is None:
        raise CheckpointError(f"no tokenizer.json, meta.pkl or vocab.json in {override!r}")
    return found


def _resolve(backend: tokenizers.Tokenizer, token: int | None, text: str | None) -> tuple[int | None, str | None]:
    """Complete a special token of which the id, the text or nothing is known."""
    if token is not None:
        return token, text if text is not None else backend.id_to_token(token)
    return (backend.token_to_id(text), text) if text is not None else (None, None)


def _decoder_types(backend: tokenizers.Tokenizer) -> set[str]:
    """Names of the decoders in the tokenizer's chain."""
    if backend.decoder is None:
        return set()
    state: dict[str, Any] = msgspec.json.decode(backend.decoder.__getstate__())
    return {entry["type"] for entry in state.get("decoders", [state])}


def _invalid_text(backend: tokenizers.Tokenizer, text: str) -> InvalidRequestError:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        character, place = text[error.start], error.start
        reason = f"U+{ord(character):04X} at character {place} is half of a surrogate pair"
        return InvalidRequestError(f"the text is not valid Unicode: {reason}", param="prompt")
    unknown = next((character for character in text if backend.token_to_id(character) is None), "")
    return InvalidRequestError(f"the tokenizer has no token for the character {unknown!r}", param="prompt")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (`bytes_to_unicode` in OpenAI's encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER: Final = _byte_alphabet()
