"""The slot convention that every kernel shares: rows name pool slots, and one number marks padding."""

from typing import Final

# A row whose destination is PAD_SLOT reads nothing, writes nothing and outputs zeros.
PAD_SLOT: Final = -1
