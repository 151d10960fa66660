"""The name of weights: it changes with any value, name, shape or dtype, and with nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from remuda.engine.checkpoint.convert import convert
from remuda.engine.checkpoint.find import find_checkpoint
from remuda.engine.checkpoint.fingerprint import fingerprint
from remuda.engine.checkpoint.read import read_model_config, read_weights

Weights = dict[str, torch.Tensor]


def small() -> Weights:
    return {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w | {"a": w["a"] + torch.eye(2, 3) * 1e-6},
        lambda w: w | {"a": w["a"].reshape(3, 2).contiguous()},
        lambda w: w | {"b": w["b"].to(torch.float16)},
        lambda w: {"a": w["a"], "c": w["b"]},
        lambda w: {"a": w["a"]},
    ],
)
def test_any_change_shows(change: Callable[[Weights], Weights]) -> None:
    assert fingerprint(change(small())) != fingerprint(small())


def test_the_order_of_names_does_not_matter() -> None:
    assert fingerprint(dict(reversed(small().items()))) == fingerprint(small())


def test_both_ends_of_a_large_tensor_count() -> None:
    large = torch.zeros(3 * 2**20, dtype=torch.float32)
    names = {fingerprint({"x": large})}
    for place in (0, -1):
        changed = large.clone()
        changed[place] = 1
        names.add(fingerprint({"x": changed}))
    assert len(names) == 3


def test_the_form_of_the_files_does_not_matter(tmp_path: Path) -> None:
    convert("demo", tmp_path / "copy")
    names = set()
    for model in ("demo", str(tmp_path / "copy")):
        location = find_checkpoint(model)
        names.add(fingerprint(read_weights(location, read_model_config(location))))
    assert len(names) == 1
