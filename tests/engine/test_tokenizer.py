"""Tokenizers of every kind: text to ids and back, exact bytes of tokens, special tokens, and what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from remuda.engine.checkpoint.find import find_checkpoint
from remuda.engine.errors import CheckpointError, InvalidRequestError
from remuda.engine.tokenizer import (
    TokenIdTokenizer,
    Tokenizer,
    check_tokenizer_fits,
    load_special_tokens,
    load_tokenizer,
)
from tests.engine.checkpoint_files import DATA, authors_config, write_pretrained
from tests.engine.tokenizer_data import (
    byte_fallback,
    byte_level,
    characters,
    id_of,
    word_pieces,
    write_gpt2,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    tokenizer = load_tokenizer(find_checkpoint("demo"))
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


def test_demo_special_tokens(demo: Tokenizer) -> None:
    assert (demo.vocab_size, demo.bos_token_id, demo.eos_token_ids, demo.add_bos) == (2048, 0, (0, 3), True)
    assert (demo.bos_token, demo.eos_token) == ("<|endoftext|>", "<|end|>")
    assert demo.special_ids == {0, 1, 2, 3}
    assert load_special_tokens(find_checkpoint("demo")) == (0, (0, 3))


def test_bos_is_added_once(demo: Tokenizer) -> None:
    plain = demo.encode("Once upon a time")
    assert demo.encode("Once upon a time", add_bos=True) == [0, *plain]
    assert demo.encode("<|endoftext|>Once upon a time", add_bos=True) == [0, *plain]
    assert demo.encode("", add_bos=True) == [0]
    assert demo.encode("") == []


def test_expected_prompts_of_the_demo(demo: Tokenizer) -> None:
    """The ids that the authors' side stored for its three prompts, and the texts of its greedy ids."""
    expected = load_file(DATA / "longhorn-stories/expected.safetensors")
    for i, entry in enumerate(json.loads((DATA / "longhorn-stories/expected.json").read_text())["greedy"]):
        assert demo.encode(entry["prompt"], add_bos=True) == expected[f"prompt{i}"].tolist()
        assert demo.decode(expected[f"greedy{i}"].tolist(), skip_special_tokens=False) == entry["greedy"]


def test_validation_documents_have_the_stored_lengths(demo: Tokenizer) -> None:
    documents = [json.loads(line) for line in (DATA / "longhorn-stories/val.jsonl").read_text().splitlines()]
    assert len(documents) == 100
    lengths = [len(demo.encode(document["text"])) for document in documents]
    assert sum(lengths) == 24_619
    assert lengths == [document["tokens"] for document in documents]


@settings(deadline=None)
@given(TEXT)
def test_byte_level_round_trip(text: str) -> None:
    tokenizer = Tokenizer(byte_level())
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, False) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_token_bytes_and_texts() -> None:
    tokenizer = Tokenizer(byte_level())
    token = partial(id_of, byte_level())
    assert tokenizer.token_bytes(token("Ġt")) == b" t"
    assert tokenizer.token_bytes(token("â")) == b"\xe2"
    assert tokenizer.token_text(token("â")) == "\ufffd"
    assert tokenizer.token_bytes(token("<|end|>")) == b"<|end|>"
    assert tokenizer.token_bytes(token("<｜begin｜>")) == "<｜begin｜>".encode()
    assert tokenizer.token_bytes(token("plain added")) == b"plain added"
    assert tokenizer.special_ids == {token("<|end|>"), token("<｜begin｜>")}
    assert (tokenizer.token_bytes(99_999), tokenizer.token_text(99_999)) == (b"", "token_id:99999")
    assert {tokenizer.token_bytes(i) for i in range(256)} == {bytes([i]) for i in range(256)}


def test_token_bytes_with_byte_fallback() -> None:
    backend, tokenizer = byte_fallback(), Tokenizer(byte_fallback())
    expected = {"<0xE2>": b"\xe2", "▁hello": b" hello", "▁": b" ", "é": "é".encode(), "ing": b"ing", "<s>": b"<s>"}
    for text, content in expected.items():
        assert tokenizer.token_bytes(id_of(backend, text)) == content, text
    assert tokenizer.decode(tokenizer.encode("hello é漢")) == "hello é漢"


def test_token_texts_of_other_decoders() -> None:
    backend, tokenizer = word_pieces(), Tokenizer(word_pieces())
    assert tokenizer.token_text(id_of(backend, "##ed")) == "ed"
    assert tokenizer.token_text(id_of(backend, "dog")) == " dog"


@pytest.mark.parametrize("make", [byte_level, byte_fallback, characters, word_pieces])
@pytest.mark.parametrize("text", ["\ud800", "fine \udfff", "a" * 70 + "\ud83d"])
def test_lone_surrogates_are_refused(make: Callable[[], tokenizers.Tokenizer], text: str) -> None:
    with pytest.raises(InvalidRequestError, match="is half of a surrogate pair") as caught:
        Tokenizer(make()).encode(text)
    assert caught.value.param == "prompt"


def with_files(directory: Path, **files: object) -> Tokenizer:
    byte_level().save(str(directory / "tokenizer.json"))
    for name, value in files.items():
        (directory / f"{name}.json").write_text(json.dumps(value))
    tokenizer = Tokenizer.from_dir(directory)
    assert tokenizer is not None
    return tokenizer


def test_settings_by_text_and_by_id(tmp_path: Path) -> None:
    silent = with_files(tmp_path)
    assert (silent.bos_token_id, silent.eos_token_ids, silent.add_bos) == (None, (), False)
    named = with_files(
        tmp_path, tokenizer_config={"eos_token": {"content": "<|end|>"}, "bos_token": "<｜begin｜>"}
    )
    assert (named.bos_token_id, named.eos_token_ids) == (259, (258,))
    model = with_files(tmp_path, config={"eos_token_id": 7, "bos_token_id": None})
    assert model.eos_token_ids == (7,)
    both = with_files(tmp_path, generation_config={"eos_token_id": [258, 1], "bos_token_id": 2})
    assert (both.eos_token_ids, both.bos_token_id, both.eos_token) == ((258, 1), 2, "<|end|>")


def test_bos_by_post_processor(tmp_path: Path) -> None:
    backend = byte_level()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<｜begin｜> $A", special_tokens=[("<｜begin｜>", 259)]
    )
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<｜begin｜>"}')
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert tokenizer.add_bos
    assert 259 not in tokenizer.encode("he")
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<｜begin｜>", "add_bos_token": false}')
    assert not Tokenizer.from_file(tmp_path / "tokenizer.json").add_bos


def test_chat_template_sources(tmp_path: Path) -> None:
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    assert with_files(tmp_path, tokenizer_config={"chat_template": "s"}).chat_template == "s"
    assert with_files(tmp_path, tokenizer_config={"chat_template": named}).chat_template == "d"
    assert with_files(tmp_path, tokenizer_config={"chat_template": named[:1]}).chat_template is None
    (tmp_path / "chat_template.jinja").write_text("file")
    assert with_files(tmp_path, tokenizer_config={"chat_template": "s"}).chat_template == "file"


@pytest.mark.parametrize(
    "files",
    [
        {"generation_config": {"eos_token_id": "3"}},
        {"generation_config": {"eos_token_id": [-1]}},
        {"generation_config": {"bos_token_id": True}},
        {"generation_config": [1]},
        {"tokenizer_config": {"bos_token": 3}},
        {"tokenizer_config": {"add_bos_token": "yes"}},
        {"tokenizer_config": {"chat_template": 3}},
        {"tokenizer_config": {"chat_template": [{"name": "default", "template": 3}]}},
    ],
)
def test_wrong_settings(files: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        with_files(tmp_path, **files)


def test_a_template_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        with_files(tmp_path)


def test_no_tokenizer() -> None:
    tokenizer = load_tokenizer(find_checkpoint(str(DATA / "longhorn-tiny")))
    assert isinstance(tokenizer, TokenIdTokenizer)
    assert tokenizer.decode([5, 0, 99]) == "token_id:5 token_id:0 token_id:99"
    assert (tokenizer.token_text(7), tokenizer.token_bytes(7)) == ("token_id:7", b"token_id:7")
    with pytest.raises(InvalidRequestError, match="give the prompt as token ids"):
        tokenizer.encode("text")


def test_overrides(tmp_path: Path) -> None:
    write_pretrained(tmp_path / "model", authors_config())
    (tmp_path / "model/generation_config.json").write_text('{"eos_token_id": 5}')
    location = find_checkpoint(str(tmp_path / "model"))
    write_gpt2(tmp_path / "gpt2")
    for override in (tmp_path / "gpt2", tmp_path / "gpt2/vocab.json"):
        tokenizer = load_tokenizer(location, str(override))
        assert isinstance(tokenizer, Tokenizer)
        assert (tokenizer.eos_token_ids, tokenizer.bos_token_id) == ((5,), None)
    for missing in ("nothing", str(tmp_path), "", "a\0b"):
        with pytest.raises(CheckpointError, match=r"no tokenizer\.json, meta\.pkl or vocab\.json"):
            load_tokenizer(location, missing)


def test_override_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gpt2(tmp_path / "gpt2")
    asked: list[object] = []

    def snapshot_download(repo_id: str, allow_patterns: list[str]) -> str:
        asked.append((repo_id, "config.json" in allow_patterns, "vocab.json" in allow_patterns))
        return str(tmp_path / "gpt2")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_tokenizer(find_checkpoint("demo"), "owner/gpt2").vocab_size == 259
    assert asked == [("owner/gpt2", False, True)]


def test_fit_to_the_model(demo: Tokenizer) -> None:
    check_tokenizer_fits(demo, 2048)
    with pytest.raises(CheckpointError, match="ids up to 2047, but the model's vocabulary ends at 2046"):
        check_tokenizer_fits(demo, 2047)
    without = TokenIdTokenizer()
    without.eos_token_ids = (7,)
    with pytest.raises(CheckpointError, match=r"EOS id 7 is outside the vocabulary \[0, 7\)"):
        check_tokenizer_fits(without, 7)


def test_text_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from remuda.engine.checkpoint.find import find_checkpoint\n"
        "from remuda.engine.tokenizer import load_tokenizer\n"
        "import remuda.engine.text_stream, remuda.engine.chat_template\n"
        "load_tokenizer(find_checkpoint('demo')).encode('hi')\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
