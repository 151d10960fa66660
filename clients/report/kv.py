"""The Transformer of the served model's size, and what its KV cache would hold: the line beside the measured one.

A Transformer block has about 12·d² parameters: 4·d² in attention (queries, keys, values, output), 8·d² in an MLP
of width 4·d. A Mamba block of expand 2, which Longhorn's is too, has about 6·d²: 4·d² into and 2·d² out of its
2·d channels. So two of them are one Transformer block of the same width (Gu and Dao, Mamba, arXiv 2312.00752,
section 3.4). With multi-head attention a layer caches d keys and d values a token.
"""

from collections.abc import Mapping
from typing import Final

from remuda.clients.report.results import KvShape

# Of 16 bits, in which caches are held unless they are quantised.
BYTES_PER_VALUE: Final = 2
# Grouped-query attention with 4 query heads to one head of keys and values, as in Llama 3 8B: a thinner cache.
GROUPED_QUERY_SHARE: Final = 4
_BLOCKS_PER_LAYER: Final = 2

Info = Mapping[str, str | int | float | bool | None]


def kv_shape(
    info: Info | None, layers: int | None = None, width: int | None = None, bytes_per_value: int | None = None
) -> KvShape | None:
    """The Transformer to compare with, from a server's `/info`, or as given.

    layers, width: of the Transformer, where they are given. None where neither the server nor the caller says
    how large the model is. Raises ValueError for a number below 1, naming it.
    """
    for name, value in (("layers", layers), ("width", width), ("bytes_per_value", bytes_per_value)):
        if value is not None and value < 1:
            raise ValueError(f"{name} of the KV cache must be at least 1, not {value}")
    num_blocks, hidden_size = _count(info, "num_layers"), _count(info, "hidden_size")
    num_layers = layers if layers is not None else num_blocks and max(1, num_blocks // _BLOCKS_PER_LAYER)
    kv_width = width if width is not None else hidden_size
    if not num_layers or not kv_width:
        return None
    return KvShape(
        num_layers=num_layers,
        kv_width=kv_width,
        bytes_per_value=bytes_per_value if bytes_per_value is not None else BYTES_PER_VALUE,
        basis=_basis(num_blocks if layers is None else None, hidden_size if width is None else None),
    )


def cache_bytes(shape: KvShape, context_tokens: float, num_sequences: int) -> float:
    """Of the whole cache: 2 · layers · kv width · bytes · tokens · sequences."""
    return shape.bytes_per_token() * context_tokens * num_sequences


def crossing_tokens(shape: KvShape, num_sequences: int, num_bytes: float) -> float:
    """The context length of each sequence from which the cache holds more than `num_bytes`."""
    return num_bytes / (shape.bytes_per_token() * num_sequences)


def grouped_query(shape: KvShape) -> KvShape:
    """The same Transformer with a quarter of the heads of keys and values (at least one value wide)."""
    width = max(1, shape.kv_width // GROUPED_QUERY_SHARE)
    return KvShape(
        num_layers=shape.num_layers,
        kv_width=width,
        bytes_per_value=shape.bytes_per_value,
        basis=f"{shape.basis}; grouped-query attention, a kv width of {width}",
    )


def _count(info: Info | None, name: str) -> int | None:
    value = info.get(name) if info is not None else None
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    return None


def _basis(num_blocks: int | None, hidden_size: int | None) -> str:
    """In words, of what the server said; None stands for what the caller gave."""
    if num_blocks is not None:
        depth = f"{num_blocks} recurrent blocks of about 6·d² parameters make half as many layers of about 12·d²"
    else:
        depth = "layers as given"
    if hidden_size is not None:
        return f"{depth}; multi-head attention, so a kv width of the model's {hidden_size}"
    return f"{depth}; kv width as given"
