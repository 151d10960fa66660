"""Kernel tests run with uninitialised memory made visible: `torch.empty` is full of NaN."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _empty_is_nan() -> Iterator[None]:
    # The fill is part of deterministic mode; warn_only, since the mode itself is not what is wanted.
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
