"""The Transformer beside the recurrent model: shapes, bytes, and where the lines cross."""

import pytest

from remuda.clients.report.kv import cache_bytes, crossing_tokens, grouped_query, kv_shape

DEMO = {"num_layers": 8, "hidden_size": 256}


def test_half_the_blocks_at_the_same_width() -> None:
    shape = kv_shape(DEMO)
    assert shape is not None
    assert (shape.num_layers, shape.kv_width, shape.bytes_per_value) == (4, 256, 2)
    assert shape.bytes_per_token() == 2 * 4 * 256 * 2
    assert "8 recurrent blocks" in shape.basis


def test_that_transformer_has_the_parameters_of_the_recurrent_model() -> None:
    # Longhorn's projections: into 2 · expand · d, out of expand · d, with expand 2.
    shape = kv_shape(DEMO)
    assert shape is not None
    assert shape.num_layers * 12 * 256**2 == 8 * (2 * 2 * 256 * 256 + 2 * 256 * 256)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"layers": 3}, (3, 256, 2)),
        ({"width": 64}, (4, 64, 2)),
        ({"bytes_per_value": 1}, (4, 256, 1)),
        ({"layers": 3, "width": 64, "bytes_per_value": 4}, (3, 64, 4)),
    ],
)
def test_what_is_given_wins(given: dict[str, int], expected: tuple[int, int, int]) -> None:
    shape = kv_shape(DEMO, **given)
    assert shape is not None
    assert (shape.num_layers, shape.kv_width, shape.bytes_per_value) == expected


@pytest.mark.parametrize(("num_layers", "expected"), [(1, 1), (2, 1), (3, 1), (48, 24)])
def test_an_odd_block_is_not_counted(num_layers: int, expected: int) -> None:
    shape = kv_shape({"num_layers": num_layers, "hidden_size": 8})
    assert shape is not None
    assert shape.num_layers == expected


@pytest.mark.parametrize(
    "info",
    [
        None,
        {},
        {"num_layers": 8},
        {"hidden_size": 256},
        {"num_layers": "8", "hidden_size": 256},
        {"num_layers": True, "hidden_size": 256},
        {"num_layers": 0, "hidden_size": 256},
        {"num_layers": 8, "hidden_size": -1},
        {"num_layers": 8.5, "hidden_size": 256},
    ],
)
def test_none_where_the_size_is_not_known(info: dict[str, str | int | float | bool | None] | None) -> None:
    assert kv_shape(info) is None


def test_given_numbers_need_no_server() -> None:
    shape = kv_shape(None, layers=4, width=256)
    assert shape is not None
    assert shape.basis == "layers as given; kv width as given"


@pytest.mark.parametrize("name", ["layers", "width", "bytes_per_value"])
def test_refuses_less_than_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} of the KV cache must be at least 1, not 0"):
        kv_shape(DEMO, **{name: 0})


def test_bytes_and_crossing_agree() -> None:
    shape = kv_shape(DEMO)
    assert shape is not None
    assert cache_bytes(shape, 131_072, 16) == 4096 * 131_072 * 16
    tokens = crossing_tokens(shape, 16, 400e6)
    assert cache_bytes(shape, tokens, 16) == pytest.approx(400e6)


@pytest.mark.parametrize(("width", "expected"), [(256, 64), (4, 1), (2, 1)])
def test_grouped_queries_cache_a_quarter(width: int, expected: int) -> None:
    shape = kv_shape(None, layers=4, width=width)
    assert shape is not None
    assert grouped_query(shape).kv_width == expected
    assert str(expected) in grouped_query(shape).basis
