"""The tensors of a Longhorn model: canonical names and shapes, and a check of what was found. No torch."""

from collections.abc import Iterable, Mapping
from typing import Final

from remuda.engine.config import ModelConfig
from remuda.engine.errors import CheckpointError

EMBEDDING: Final = "backbone.embedding.weight"
LM_HEAD: Final = "lm_head.weight"

Shape = tuple[int, ...]

# Left by the authors' training wrapper, by DistributedDataParallel and by torch.compile.
_PREFIXES: Final = ("transformer.", "module.", "_orig_mod.")


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Canonical name to shape for every tensor of the model; `lm_head.weight` only where it is not tied."""
    hidden, inner, rank = config.hidden_size, config.intermediate_size, config.time_step_rank
    shapes: dict[str, Shape] = {EMBEDDING: (config.padded_vocab_size, hidden)}
    for i in range(config.num_hidden_layers):
        layer = f"backbone.layers.{i}"
        mixer = f"{layer}.mixer"
        shapes[f"{layer}.norm.weight"] = (hidden,)
        if not config.rms_norm:
            shapes[f"{layer}.norm.bias"] = (hidden,)
        shapes[f"{mixer}.in_proj.weight"] = (2 * inner, hidden)
        shapes[f"{mixer}.conv1d.weight"] = (inner, 1, config.conv_kernel)
        if config.use_conv_bias:
            shapes[f"{mixer}.conv1d.bias"] = (inner,)
        shapes[f"{mixer}.x_proj.weight"] = (rank + 2 * config.state_size, inner)
        shapes[f"{mixer}.dt_head.weight"] = (inner, rank)
        shapes[f"{mixer}.dt_head.bias"] = (inner,)
        shapes[f"{mixer}.D"] = (inner,)
        shapes[f"{mixer}.out_proj.weight"] = (hidden, inner)
        if config.use_bias:
            shapes[f"{mixer}.in_proj.bias"] = (2 * inner,)
            shapes[f"{mixer}.out_proj.bias"] = (hidden,)
    shapes["backbone.norm_f.weight"] = (hidden,)
    if not config.rms_norm:
        shapes["backbone.norm_f.bias"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes[LM_HEAD] = shapes[EMBEDDING]
    return shapes


def canonical_names(names: Iterable[str], source: str) -> dict[str, str]:
    """Canonical name to stored name. Raises CheckpointError if two stored names mean the same tensor."""
    found: dict[str, str] = {}
    for name in names:
        canonical = _strip(name)
        if canonical in found:
            raise CheckpointError(f"{source}: {found[canonical]!r} and {name!r} are the same tensor, {canonical}")
        found[canonical] = name
    return found


def check_shapes(found: Mapping[str, Shape], config: ModelConfig, source: str) -> None:
    """Raise CheckpointError for a missing, a surplus or a mis-shaped tensor, naming it.

    found: canonical name to shape. A tied model may store `lm_head.weight` too.
    """
    foreign = next((name for name in found if name.endswith(".mixer.A_log")), None)
    if foreign is not None:
        raise CheckpointError(f"{source}: a Mamba checkpoint, not a Longhorn one: it has the tensor {foreign}")
    expected = expected_shapes(config)
    missing = [name for name in expected if name not in found]
    if missing:
        raise CheckpointError(
            f"{source}: tensor {missing[0]} {list(expected[missing[0]])} is missing{_more(missing)}"
        )
    allowed = expected | {LM_HEAD: expected[EMBEDDING]}
    surplus = [name for name in found if name not in allowed]
    if surplus:
        raise CheckpointError(f"{source}: tensor {surplus[0]} has no place in this model{_more(surplus)}")
    for name, shape in found.items():
        if shape != allowed[name]:
            raise CheckpointError(f"{source}: tensor {name} is {list(shape)}, expected {list(allowed[name])}")


def _strip(name: str) -> str:
    stripped = name.replace("_orig_mod.", "")
    while stripped.startswith(_PREFIXES):
        stripped = stripped.partition(".")[2]
    return stripped


def _more(names: list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""
