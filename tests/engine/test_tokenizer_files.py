"""Building a tokenizer from each kind of file, and refusing every pickle that holds more than plain values."""

import pickle
import pickletools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from remuda.engine.checkpoint.tokenizer_files import (
    PLAIN_OPCODES,
    character_tokenizer,
    find_tokenizer,
    read_meta,
)
from remuda.engine.errors import CheckpointError, InvalidRequestError
from remuda.engine.tokenizer import Tokenizer
from tests.engine.tokenizer_data import byte_level, write_gpt2, write_meta

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(deadline=None)
@given(TEXT)
def test_character_vocabularies_round_trip(text: str) -> None:
    """Through a tokenizer.json: every character, and an error for any other."""
    alphabet = "".join(dict.fromkeys(text)) or "a"
    written = character_tokenizer({character: i for i, character in enumerate(alphabet)}).to_str()
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(written))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text) == [alphabet.index(character) for character in text]
    other = next(c for c in map(chr, range(0x4E00, 0x5000)) if c not in alphabet)
    with pytest.raises(InvalidRequestError, match=f"no token for the character '{other}'"):
        tokenizer.encode(text + other)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_meta_of_every_protocol(protocol: int, tmp_path: Path) -> None:
    stoi = {character: i for i, character in enumerate("\n !ab漢")}
    meta = {"vocab_size": 6, "itos": {i: c for c, i in stoi.items()}, "stoi": stoi}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta, protocol))
    assert read_meta(tmp_path / "meta.pkl") == stoi


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("a pickle ran",))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (pickle.dumps({"stoi": {"a": 0}, "extra": Evil()}), "holds more than dicts, strings and ints"),
        (pickle.dumps({"stoi": {"a": 0}, "extra": 1.5}), r"holds more than .* \(BINFLOAT\)"),
        (pickle.dumps({"stoi": {"a": 0}, "extra": [1]}), r"holds more than .* \(EMPTY_LIST\)"),
        (b"cos\nsystem\n(S'true'\ntR.", r"holds more than .* \(GLOBAL\)"),
        (b"\x80\x04r\xff\xff\xff\x7f.", "memo index"),
        (b"\x80\x04X\xff\xff\xff\x7fab.", "not a readable pickle"),
        (b"", "not a readable pickle"),
        (b"\x80\x04.", "not a readable pickle"),
        (b"\x80\x04}}u.", "not a readable pickle"),
        (b"\x80\x04}}}s.", "not a readable pickle"),
        (pickle.dumps({"a": 1}), "has no 'stoi'"),
        (pickle.dumps({1: 2}), "has no 'stoi'"),
        (pickle.dumps("stoi"), "has no 'stoi'"),
        (pickle.dumps({"stoi": {}}), "has no 'stoi'"),
        (pickle.dumps({"stoi": {"ab": 0}}), "stoi has 'ab', not a character"),
        (pickle.dumps({"stoi": {"": 0}}), "stoi has '', not a character"),
        (pickle.dumps({"stoi": {"\ud800": 0}}), "not a character"),
        (pickle.dumps({"stoi": {3: 0}}), "stoi has 3, not a character"),
        (pickle.dumps({"stoi": {"a": "b"}}), "stoi maps 'a' to 'b', not to an id"),
        (pickle.dumps({"stoi": {"a": 1}}), "the ids in stoi are not 0 to 0"),
        (pickle.dumps({"stoi": {"a": 0, "b": 0}}), "the ids in stoi are not 0 to 1"),
        (pickle.dumps({"stoi": {"a": 0}, "itos": {0: "b"}}), "itos is not the inverse"),
        (pickle.dumps({"stoi": {"a": 0}, "vocab_size": 2}), "vocab_size is 2, not 1"),
    ],
)
def test_wrong_metas(content: bytes, match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=match):
        read_meta(tmp_path / "meta.pkl")
    assert capsys.readouterr().out == ""


def test_an_oversized_meta_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "meta.pkl").open("wb") as file:
        file.truncate(2**26)
    with pytest.raises(CheckpointError, match="the limit is"):
        read_meta(tmp_path / "meta.pkl")


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_no_pickle_raises_anything_else(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "meta.pkl"
        path.write_bytes(b"\x80\x04" + content + b".")
        with pytest.raises(CheckpointError):
            read_meta(path)


def test_allowed_opcodes_exist() -> None:
    assert {opcode.name for opcode in pickletools.opcodes} >= PLAIN_OPCODES


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_gpt2_files(names: tuple[str, str], tmp_path: Path) -> None:
    write_gpt2(tmp_path, names)
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer is not None
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids, tokenizer.add_bos) == (258, (258,), False)
    text = "the 漢 thé\n<|endoftext|>"
    ids = tokenizer.encode(text)
    assert ids[-1] == 258
    assert tokenizer.decode(ids, False) == text
    assert tokenizer.token_bytes(ids[0]) == b"t"


@pytest.mark.parametrize(
    ("vocabulary", "merges", "match"),
    [
        ("{", "", "not a GPT-2 vocabulary"),
        ('{"a": 0}', "#version: 0.2\n", "not byte-level"),
        ('{"a": 0}', "x y z w", "not a"),
    ],
)
def test_wrong_gpt2_files(vocabulary: str, merges: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(CheckpointError, match=match):
        Tokenizer.from_dir(tmp_path)


def test_order_of_tokenizer_files(tmp_path: Path) -> None:
    assert find_tokenizer(tmp_path) is None
    write_gpt2(tmp_path, ("encoder.json", "vocab.bpe"))
    assert find_tokenizer(tmp_path) == tmp_path / "encoder.json"
    write_gpt2(tmp_path)
    assert find_tokenizer(tmp_path) == tmp_path / "vocab.json"
    write_meta(tmp_path / "meta.pkl", "abc")
    assert find_tokenizer(tmp_path) == tmp_path / "meta.pkl"
    byte_level().save(str(tmp_path / "tokenizer.json"))
    assert find_tokenizer(tmp_path) == tmp_path / "tokenizer.json"


@pytest.mark.parametrize("content", ["{", "[]", "", '{"model": {}}'])
def test_wrong_tokenizer_json(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"not a tokenizer\.json"):
        Tokenizer.from_dir(tmp_path)
