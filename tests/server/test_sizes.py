"""sizes.parse_bytes."""

import pytest

from remuda.server.sizes import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 * 2**20),
        ("2GiB", 2 * 2**30),
        ("2 gib", 2 * 2**30),
        ("1e9", 10**9),
        ("1.5GB", 1_500_000_000),
        ("10k", 10_000),
        ("1000", 1000),
        ("7B", 7),
        ("1TiB", 2**40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "lots", "12 parsecs", "-1", "1..5", "0x10", "1e999", "MiB", "1 2"])
def test_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a size|too large|number"):
        parse_bytes(text)
