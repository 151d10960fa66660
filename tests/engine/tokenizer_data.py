"""Writes small tokenizers of every kind that a checkpoint may come with."""

import json
import pickle
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers


def write_meta(path: Path, characters: str) -> None:
    """A nanoGPT meta.pkl; ids in the order of `characters`."""
    stoi = {character: i for i, character in enumerate(characters)}
    meta = {"vocab_size": len(stoi), "itos": {i: c for c, i in stoi.items()}, "stoi": stoi}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(meta))


def write_gpt2(directory: Path, names: tuple[str, str] = ("vocab.json", "merges.txt")) -> None:
    """GPT-2 BPE files: the 256 bytes, two merges, and the separator as id 258."""
    directory.mkdir(parents=True, exist_ok=True)
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "Ġt", "<|endoftext|>"]
    (directory / names[0]).write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (directory / names[1]).write_text("#version: 0.2\nh e\nĠ t\n", encoding="utf-8")


def id_of(tokenizer: Tokenizer, text: str) -> int:
    """The id of a token that exists."""
    token = tokenizer.token_to_id(text)
    assert token is not None
    return token


def byte_level() -> Tokenizer:
    """Byte-level BPE with two special tokens, one of them outside the byte alphabet, and one plain added token."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "Ġt"]
    model = models.BPE({token: i for i, token in enumerate(tokens)}, [("h", "e"), ("Ġ", "t")])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<｜begin｜>", special=True)])
    tokenizer.add_tokens([AddedToken("plain added", normalized=False)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """A Llama-like tokenizer: words with a leading ▁, single bytes for what has no token, first space stripped."""
    words = ["▁hello", "▁world", "▁", "a", "b", "é", "ing"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    model = models.BPE({token: i for i, token in enumerate(tokens)}, [], byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def characters() -> Tokenizer:
    """One token a character, of one to four bytes each."""
    alphabet = "abc \n\té\u0301漢😀\ufffd"
    model = models.WordLevel({character: i for i, character in enumerate(alphabet)}, unk_token="<none>")
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def word_pieces() -> Tokenizer:
    """Pieces that join or not by their neighbour: a decoder that needs context."""
    tokens = ["[UNK]", "un", "##want", "##ed", "dog", "run", "##ning", "."]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer
