"""When a request is sent again, and after how long; decides, and neither sends nor sleeps."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

from remuda.clients.errors import InvalidArgumentError

RETRIED_STATUSES: Final = frozenset({429, 503})


@dataclass(frozen=True)
class RetryPolicy:
    """Retries of 429, 503 and failed connections, before the first byte of an answer.

    The n-th wait is drawn between half and all of first_delay_s · 2ⁿ⁻¹, at most max_delay_s. `Retry-After` is
    waited instead, as it is; where it asks for more than max_retry_after_s, the error is raised at once.
    """

    max_retries: int = 2
    first_delay_s: float = 0.5
    max_delay_s: float = 8
    max_retry_after_s: float = 60
    # For tests: a number in [0, 1), and seconds since the epoch, to which dates are compared.
    draw: Callable[[], float] = random.random
    wall_clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        for name in ("max_retries", "first_delay_s", "max_delay_s", "max_retry_after_s"):
            value = getattr(self, name)
            if not value >= 0:
                raise InvalidArgumentError(f"{name} must be at least 0, not {value}")

    def delay(self, num_retries: int, headers: Mapping[str, str] | None = None) -> float | None:
        """Seconds to wait before the next attempt; None: there is to be none.

        num_retries: those that were made. headers: of the answer, where there was one.
        """
        headers = headers or {}
        if num_retries >= self.max_retries or headers.get("x-should-retry") == "false":
            return None
        asked = self.retry_after(headers)
        if asked is not None:
            return asked if asked <= self.max_retry_after_s else None
        # Beyond 2⁶³ a float would overflow.
        longest = min(self.max_delay_s, self.first_delay_s * 2.0 ** min(num_retries, 63))
        return longest * (0.5 + 0.5 * self.draw())

    def retry_after(self, headers: Mapping[str, str]) -> float | None:
        """Seconds that `Retry-After` asks for, as a number or as a date; None where it says nothing sensible."""
        value = headers.get("retry-after", "").strip()
        if value.isascii() and value.replace(".", "", 1).isdigit():
            return float(value)
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - self.wall_clock())
        except (ValueError, OverflowError):
            return None
