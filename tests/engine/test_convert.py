"""Conversion: every form ends as the same tensors in the native form, whole or not at all."""

import filecmp
import json
import stat
from pathlib import Path

import pytest
import torch

from remuda.engine.checkpoint.convert import convert
from remuda.engine.checkpoint.find import find_checkpoint
from remuda.engine.checkpoint.read import read_model_config, read_weights
from remuda.engine.errors import CheckpointError, ConfigError
from remuda.engine.tokenizer import Tokenizer
from tests.engine.checkpoint_files import DATA, VARIANTS, assert_same, authors_config, write_pretrained
from tests.engine.tokenizer_data import write_gpt2, write_meta


def read(model: Path | str) -> dict[str, torch.Tensor]:
    location = find_checkpoint(str(model))
    return read_weights(location, read_model_config(location))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant: str, tmp_path: Path) -> None:
    weights = write_pretrained(tmp_path / "src", authors_config(variant))
    summary = convert(str(tmp_path / "src"), tmp_path / "dst")
    location = find_checkpoint(str(tmp_path / "dst"))
    assert location.kind == "native"
    assert (
        read_model_config(location) == summary.config == read_model_config(find_checkpoint(str(tmp_path / "src")))
    )
    assert_same(read(tmp_path / "dst"), weights)
    assert summary.num_parameters == sum(tensor.numel() for tensor in weights.values())
    assert summary.num_bytes == 4 * summary.num_parameters
    assert (summary.num_shards, summary.has_tokenizer, summary.has_chat_template) == (1, False, False)


@pytest.mark.parametrize("source", ["longhorn-tiny", "longhorn-train-ckpt/ckpt.pt"])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 70_000, 1])
def test_golden_checkpoints(source: str, max_shard_bytes: int, tmp_path: Path) -> None:
    summary = convert(str(DATA / source), tmp_path / "dst", max_shard_bytes=max_shard_bytes)
    assert_same(read(tmp_path / "dst"), read(DATA / source))
    shards = sorted((tmp_path / "dst").glob("*.safetensors"))
    assert len(shards) == summary.num_shards
    assert (tmp_path / "dst/model.safetensors.index.json").is_file() == (len(shards) > 1)
    if max_shard_bytes == 70_000:
        assert 1 < len(shards) < 20
        assert all(shard.stat().st_size < 71_000 for shard in shards)


def test_native_again_is_the_same(tmp_path: Path) -> None:
    convert(str(DATA / "longhorn-tiny"), tmp_path / "a", max_shard_bytes=50_000)
    convert(str(tmp_path / "a"), tmp_path / "b")
    convert(str(tmp_path / "b"), tmp_path / "c")
    assert filecmp.dircmp(tmp_path / "b", tmp_path / "c").diff_files == []
    assert_same(read(tmp_path / "b"), read(tmp_path / "a"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtype(dtype: str, tmp_path: Path) -> None:
    weights = write_pretrained(tmp_path / "src", authors_config())
    convert(str(tmp_path / "src"), tmp_path / "dst", dtype=dtype)
    expected = {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}
    assert_same(read(tmp_path / "dst"), expected)
    assert json.loads((tmp_path / "dst/config.json").read_text())["dtype"] == dtype


def test_a_value_out_of_range_of_the_dtype(tmp_path: Path) -> None:
    weights = write_pretrained(tmp_path / "src", authors_config())
    weights["backbone.norm_f.weight"][0] = 1e6
    write_pretrained(tmp_path / "src", authors_config(), weights)
    with pytest.raises(CheckpointError, match=r"norm_f\.weight reaches past the range of float16"):
        convert(str(tmp_path / "src"), tmp_path / "dst", dtype="float16")
    assert not (tmp_path / "dst").exists()


def test_files_are_as_readable_as_any(tmp_path: Path) -> None:
    convert(str(DATA / "longhorn-tiny"), tmp_path / "dst")
    (tmp_path / "probe").touch()
    mode = stat.S_IMODE((tmp_path / "probe").stat().st_mode)
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "dst").iterdir()} == {mode}


def test_an_empty_directory_may_be_the_target(tmp_path: Path) -> None:
    (tmp_path / "dst").mkdir()
    convert(str(DATA / "longhorn-tiny"), tmp_path / "dst")
    assert (tmp_path / "dst/config.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["dst"]


def test_a_target_with_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst/thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        convert(str(DATA / "longhorn-tiny"), tmp_path / "dst")
    with pytest.raises(ConfigError, match="is not a directory"):
        convert(str(DATA / "longhorn-tiny"), tmp_path / "dst/thesis.txt")
    assert [path.name for path in (tmp_path / "dst").iterdir()] == ["thesis.txt"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    weights = write_pretrained(tmp_path / "src", authors_config())
    del weights["backbone.norm_f.weight"]
    write_pretrained(tmp_path / "src", authors_config(), weights)
    with pytest.raises(CheckpointError):
        convert(str(tmp_path / "src"), tmp_path / "dst")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        convert(str(DATA / "longhorn-tiny"), tmp_path / "file/dst")
    assert {path.name for path in tmp_path.iterdir()} == {"src", "file"}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dtype": "int8"}, "dtype must be one of float32"),
        ({"max_shard_bytes": 0}, "max_shard_bytes must be at least 1"),
    ],
)
def test_wrong_options(options: dict[str, object], match: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=match):
        convert(str(DATA / "longhorn-tiny"), tmp_path / "dst", **options)  # type: ignore[arg-type]


def test_character_tokenizer(tmp_path: Path) -> None:
    write_pretrained(tmp_path / "src", authors_config() | {"vocab_size": 8})
    write_meta(tmp_path / "src/meta.pkl", "\n \té😀ab\u0301")
    assert convert(str(tmp_path / "src"), tmp_path / "dst").has_tokenizer
    tokenizer = Tokenizer.from_file(tmp_path / "dst/tokenizer.json")
    assert tokenizer.encode("\n \té😀ab\u0301") == list(range(8))
    assert tokenizer.decode(range(8)) == "\n \té😀ab\u0301"


def test_gpt2_tokenizer_and_settings(tmp_path: Path) -> None:
    write_pretrained(tmp_path / "src", authors_config() | {"vocab_size": 300})
    write_gpt2(tmp_path / "src")
    (tmp_path / "src/generation_config.json").write_text('{"temperature": 0.7}')
    (tmp_path / "src/chat_template.jinja").write_text("{{ messages[0].content }}")
    assert convert(str(tmp_path / "src"), tmp_path / "dst").has_chat_template
    source, target = Tokenizer.from_dir(tmp_path / "src"), Tokenizer.from_dir(tmp_path / "dst")
    assert source is not None
    assert target is not None
    text = "Hello there, naïve wörld 😀<|endoftext|>"
    assert target.encode(text) == source.encode(text)
    assert target.decode(target.encode(text), False) == text
    assert target.eos_token_ids == source.eos_token_ids == (source.bos_token_id,)
    assert target.chat_template == "{{ messages[0].content }}"
    generation = json.loads((tmp_path / "dst/generation_config.json").read_text())
    assert generation == {"temperature": 0.7, "bos_token_id": 258, "eos_token_id": [258]}


def test_a_tokenizer_from_elsewhere(tmp_path: Path) -> None:
    write_meta(tmp_path / "data/meta.pkl", "abc")
    convert(str(DATA / "longhorn-tiny"), tmp_path / "dst", tokenizer=str(tmp_path / "data/meta.pkl"))
    assert (tmp_path / "dst/tokenizer.json").is_file()


def test_a_tokenizer_that_is_too_large(tmp_path: Path) -> None:
    write_gpt2(tmp_path)
    with pytest.raises(CheckpointError, match="has ids up to 258, but the model's vocabulary ends at 100"):
        convert(str(DATA / "longhorn-tiny"), tmp_path / "dst", tokenizer=str(tmp_path))


def test_the_demo_is_a_converted_checkpoint(tmp_path: Path) -> None:
    demo = find_checkpoint("demo")
    summary = convert("demo", tmp_path / "dst")
    assert summary.num_parameters == 3_963_136
    for file in (tmp_path / "dst").iterdir():
        assert filecmp.cmp(file, demo.path / file.name, shallow=False), file.name
