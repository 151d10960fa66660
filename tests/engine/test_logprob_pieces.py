"""Log-probabilities of a prompt in pieces: the same entries, so many at a time."""

import msgspec
import pytest

from remuda.engine.logprob_pieces import MAX_IN_PIECE, pack, unpacked
from remuda.engine.wire import TokenLogprobs


@pytest.mark.parametrize("num_top", [0, 1, 20, 5000])
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 1024, 1025, 3000])
def test_pieces_hold_the_entries_in_order(num_tokens: int, num_top: int) -> None:
    top = [(i, -0.5 - i) for i in range(min(num_top, num_tokens))]
    entries = [None if i == 0 else TokenLogprobs(i, -float(i), top) for i in range(num_tokens)]
    pieces = pack(entries)
    assert list(unpacked(pieces)) == entries
    for piece in pieces:
        num_held = len(msgspec.msgpack.decode(piece))
        assert num_held == 1 or num_held * (len(top) + 1) <= MAX_IN_PIECE
