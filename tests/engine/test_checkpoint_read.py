"""Reading weights: every form and variant gives the original tensors; everything wrong is one clear error."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from remuda.engine.checkpoint.find import CheckpointLocation, find_checkpoint
from remuda.engine.checkpoint.model_config import parse_authors
from remuda.engine.checkpoint.read import read_model_config, read_weights
from remuda.engine.errors import CheckpointError
from tests.engine.checkpoint_files import (
    DATA,
    VARIANTS,
    assert_same,
    authors_config,
    random_weights,
    write_pretrained,
)

MIXER = "backbone.layers.1.mixer"
IN_PROJ = f"{MIXER}.in_proj.weight"


def read(path: Path) -> dict[str, torch.Tensor]:
    location = find_checkpoint(str(path))
    return read_weights(location, read_model_config(location))


@pytest.mark.parametrize("variant", VARIANTS)
def test_pretrained_variants(variant: str, tmp_path: Path) -> None:
    weights = write_pretrained(tmp_path, authors_config(variant))
    assert_same(read(tmp_path), weights)


def test_golden_pretrained() -> None:
    original = torch.load(DATA / "longhorn-tiny/pytorch_model.bin", weights_only=True)
    assert original.pop("lm_head.weight") is not None
    assert_same(read(DATA / "longhorn-tiny"), original)


def test_golden_training_checkpoint() -> None:
    path = DATA / "longhorn-train-ckpt/ckpt.pt"
    original = torch.load(path, weights_only=True)["model"]
    expected = {name.partition("transformer.")[2]: tensor for name, tensor in original.items()}
    del expected["lm_head.weight"]
    assert_same(read(path), expected)
    assert read_model_config(find_checkpoint(str(path))).state_size == 16


@pytest.mark.parametrize("prefix", ["transformer.", "_orig_mod.transformer.", "module._orig_mod.transformer.", ""])
def test_training_checkpoint_prefixes(prefix: str, tmp_path: Path) -> None:
    config = authors_config("untied")
    weights = random_weights(parse_authors(config, "test"))
    model = {prefix + name: tensor for name, tensor in weights.items()}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}
    torch.save({"model": model, "model_config": config, "optimizer": optimizer}, tmp_path / "ckpt.pt")
    assert_same(read(tmp_path / "ckpt.pt"), weights)


def test_files_of_old_torch(tmp_path: Path) -> None:
    weights = write_pretrained(tmp_path, authors_config())
    torch.save(weights, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert_same(read(tmp_path), weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stored_dtypes_are_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = random_weights(parse_authors(authors_config(), "test"))
    mixed = {name: t if name.endswith(".D") else t.to(dtype) for name, t in weights.items()}
    assert_same(write_pretrained(tmp_path, authors_config(), mixed), mixed)
    assert_same(read(tmp_path), mixed)


def write_safetensors(directory: Path) -> dict[str, torch.Tensor]:
    """A save_pretrained directory with safetensors in place of the pickle."""
    weights = write_pretrained(directory, authors_config())
    (directory / "pytorch_model.bin").unlink()
    save_file(weights, directory / "model.safetensors")
    return weights


def write_sharded(directory: Path) -> dict[str, torch.Tensor]:
    weights = write_safetensors(directory)
    (directory / "model.safetensors").unlink()
    names = sorted(weights)
    weight_map: dict[str, str] = {}
    for i, part in enumerate((names[:5], names[5:])):
        save_file({name: weights[name] for name in part}, directory / f"part-{i}.safetensors")
        weight_map |= dict.fromkeys(part, f"part-{i}.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weights


@pytest.mark.parametrize("write", [write_safetensors, write_sharded])
def test_safetensors(write: Callable[[Path], dict[str, torch.Tensor]], tmp_path: Path) -> None:
    weights = write(tmp_path)
    loaded = read(tmp_path)
    shutil.rmtree(tmp_path)
    assert_same(loaded, weights)


def test_progress_ends_at_one() -> None:
    location = find_checkpoint(str(DATA / "longhorn-tiny"))
    seen: list[float] = []
    read_weights(location, read_model_config(location), seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def without(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda weights: weights.__delitem__(name)


def with_change(**changes: Any) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda weights: weights.update({name.replace("__", "."): value for name, value in changes.items()})


def with_value(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda weights: weights[name].view(-1).__setitem__(-1, value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (without(IN_PROJ), r"tensor backbone\.layers\.1\.mixer\.in_proj\.weight \[96, 24\] is missing$"),
        (without("backbone.embedding.weight"), r"backbone\.embedding\.weight \[16, 24\] is missing"),
        (with_change(extra__weight=torch.zeros(2)), r"tensor extra\.weight has no place in this model$"),
        (
            with_change(backbone__layers__2__norm__weight=torch.zeros(24), other=torch.zeros(1)),
            r"backbone\.layers\.2\.norm\.weight has no place in this model, and 1 more",
        ),
        (with_change(backbone__norm_f__weight=torch.zeros(23)), r"norm_f\.weight is \[23\], expected \[24\]"),
        (
            with_change(backbone__layers__0__mixer__A_log=torch.zeros(48, 16)),
            r"a Mamba checkpoint, not a Longhorn",
        ),
        (with_change(backbone__norm_f__weight=torch.zeros(24, dtype=torch.int8)), r"norm_f\.weight is int8"),
        (with_change(backbone__norm_f__weight=torch.zeros(24, dtype=torch.float64)), r"norm_f\.weight is float64"),
        (
            with_change(backbone__norm_f__weight=torch.zeros(24).to_sparse()),
            r"norm_f\.weight is float32 sparse_coo",
        ),
        (with_change(backbone__norm_f__weight=torch.zeros(24, device="meta")), r"norm_f\.weight"),
        (with_change(backbone__norm_f__weight=[1.0]), r"'backbone\.norm_f\.weight' is a list, not a tensor"),
        (with_value(IN_PROJ, float("nan")), r"in_proj\.weight holds NaN or infinity"),
        (with_value(IN_PROJ, float("inf")), r"in_proj\.weight holds NaN or infinity"),
        (with_value(f"{MIXER}.D", float("-inf")), r"mixer\.D holds NaN or infinity"),
        (with_change(lm_head__weight=torch.ones(16, 24)), r"tied, but lm_head\.weight differs from backbone"),
        (with_change(lm_head__weight=torch.ones(8, 24)), r"lm_head\.weight is \[8, 24\], expected \[16, 24\]"),
    ],
)
def test_wrong_tensors(change: Callable[[dict[str, torch.Tensor]], None], match: str, tmp_path: Path) -> None:
    weights = random_weights(parse_authors(authors_config(), "test"))
    change(weights)
    write_pretrained(tmp_path, authors_config(), weights)
    with pytest.raises(CheckpointError, match=match):
        read(tmp_path)


def test_an_untied_head_must_be_there(tmp_path: Path) -> None:
    write_pretrained(tmp_path, authors_config("untied"), random_weights(parse_authors(authors_config(), "test")))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight \[16, 24\] is missing"):
        read(tmp_path)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("a pickle ran",))


def test_pickled_code_never_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {}, "model_config": Evil()}, tmp_path / "ckpt.pt")
    with pytest.raises(
        CheckpointError, match=r"it pickles [\w.]*print, and only tensors and plain values are read"
    ):
        read(tmp_path / "ckpt.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(CheckpointError, match=r"raw\.pt: cannot be read"):
        read(tmp_path / "raw.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"model": {}}, "it has no 'model_config'"),
        ({"model_config": {}}, "it has no 'model'"),
        ({"model": {}, "model_config": {"d_model": 8}}, "n_layer is missing|vocab_size is missing"),
        ({"model": {}, "model_config": {1: 2}}, "unknown key 1"),
        ([1, 2], "holds a list, not a dict"),
        (torch.zeros(2), "holds a Tensor, not a dict"),
    ],
)
def test_other_pickles(content: object, match: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match=match):
        read(tmp_path / "ckpt.pt")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_truncated_files(name: str, keep: float, tmp_path: Path) -> None:
    if name == "model.safetensors":
        write_safetensors(tmp_path)
    else:
        write_pretrained(tmp_path, authors_config())
    path = tmp_path / name
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(CheckpointError, match=name):
        read(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"x" * 100, b"PK\x03\x04" + b"x" * 100, b"\xff" * 8 + b"{}", b"\x80\x02."]
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_garbage_files(content: bytes, name: str, tmp_path: Path) -> None:
    write_pretrained(tmp_path, authors_config())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        read(tmp_path)


def test_a_directory_without_weights(tmp_path: Path) -> None:
    write_pretrained(tmp_path, authors_config())
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("index", "match"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {"x": "../part-0.safetensors"}}, "not the name of a safetensors file beside it"),
        ({"weight_map": {"x": "/etc/part-0.safetensors"}}, "not the name of a safetensors file beside it"),
        ({"weight_map": {"x": "pytorch_model.bin"}}, "not the name of a safetensors file beside it"),
        ({"weight_map": {"x": 3}}, "not the name of a safetensors file beside it"),
        ({"weight_map": {"x": "part-7.safetensors"}}, r"part-7\.safetensors"),
        ({"weight_map": {"x": "part-0.safetensors"}}, r"is missing, and \d+ more"),
    ],
)
def test_wrong_indexes(index: dict[str, Any], match: str, tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=match):
        read(tmp_path)


def test_one_tensor_in_two_shards(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    shutil.copy(tmp_path / "part-0.safetensors", tmp_path / "part-1.safetensors")
    with pytest.raises(CheckpointError, match="is in another file too"):
        read(tmp_path)


def test_a_file_that_went_away(tmp_path: Path) -> None:
    location = CheckpointLocation("training", tmp_path / "gone.pt", tmp_path, "gone")
    with pytest.raises(CheckpointError, match=r"gone\.pt: cannot be read"):
        read_model_config(location)
