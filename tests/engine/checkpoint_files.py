"""Writes random tiny checkpoints in the forms of the authors' code, for tests of reading them."""

import json
from pathlib import Path
from typing import Any

import torch

from remuda.engine.checkpoint.model_config import parse_authors
from remuda.engine.checkpoint.names import expected_shapes
from remuda.engine.config import ModelConfig

DATA = Path(__file__).parent.parent / "data"

AUTHORS_CONFIG: dict[str, Any] = {
    "d_model": 24,
    "d_intermediate": 0,
    "n_layer": 2,
    "vocab_size": 13,
    "ssm_cfg": {},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
    "tie_embeddings": True,
}

# One change a row: each makes other tensors, or other shapes of them.
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "d_state": {"ssm_cfg": {"d_state": 5}},
    "d_conv": {"ssm_cfg": {"d_conv": 3}},
    "expand": {"ssm_cfg": {"expand": 1.5}},
    "dt_rank": {"ssm_cfg": {"dt_rank": 7}},
    "dt_rank_auto": {"ssm_cfg": {"dt_rank": "auto"}},
    "no_conv_bias": {"ssm_cfg": {"conv_bias": False}},
    "bias": {"ssm_cfg": {"bias": True}},
    "layer_norm": {"rms_norm": False},
    "bf16_residual": {"residual_in_fp32": False},
    "untied": {"tie_embeddings": False},
    "padding": {"vocab_size": 17, "pad_vocab_size_multiple": 16},
    "everything": {
        "ssm_cfg": {"d_state": 3, "d_conv": 2, "expand": 3, "dt_rank": 5, "conv_bias": False, "bias": True},
        "rms_norm": False,
        "tie_embeddings": False,
    },
}


def authors_config(variant: str = "base") -> dict[str, Any]:
    return AUTHORS_CONFIG | VARIANTS[variant]


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 tensors under canonical names; no `lm_head.weight` where it is tied."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in expected_shapes(config).items()}


def write_pretrained(
    directory: Path, config: dict[str, Any], weights: dict[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Write what the authors' `save_pretrained` writes, tied head included; return the canonical weights."""
    parsed = parse_authors(config, "test")
    weights = random_weights(parsed) if weights is None else weights
    stored = dict(weights)
    if parsed.tie_word_embeddings and "backbone.embedding.weight" in weights:
        stored.setdefault("lm_head.weight", weights["backbone.embedding.weight"])
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    torch.save(stored, directory / "pytorch_model.bin")
    return weights


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The same names, dtypes and bits."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
