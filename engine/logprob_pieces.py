"""Log-probabilities of a prompt as they are sent: packed in pieces, which their receiver unpacks one by one.

There may be 100,000, which take a tenth of a second to unpack.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from remuda.engine.wire import TokenLogprobs

# Of a piece: log-probabilities, a token's own and those of the likeliest.
MAX_IN_PIECE: Final = 1024

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[TokenLogprobs | None])


def num_at_once(num_top: int) -> int:
    """Tokens of a piece, where each comes with `num_top` of the likeliest."""
    return max(1, MAX_IN_PIECE // (num_top + 1))


def pack(entries: Sequence[TokenLogprobs | None]) -> list[bytes]:
    """The pieces; of entries the first may be None, and the others have equally many of the likeliest."""
    count = num_at_once(max((len(entry.top) for entry in entries[:2] if entry is not None), default=0))
    return [_encoder.encode(entries[i : i + count]) for i in range(0, len(entries), count)]


def unpacked(pieces: Iterable[bytes]) -> Iterator[TokenLogprobs | None]:
    """What was packed; each piece is unpacked when its turn comes."""
    for piece in pieces:
        yield from _decoder.decode(piece)
