"""Requests without a slot, in the order in which they are to get one. Gives no slot itself."""

from bisect import bisect_left
from operator import itemgetter

from remuda.engine.sequence import Request

_place_of = itemgetter(0)


class WaitingQueue:
    """Lowest `priority` first, and among equals first come, first served."""

    def __init__(self) -> None:
        # Ordered by place: (priority, number of arrival).
        self._entries: list[tuple[tuple[int, int], Request]] = []
        self._places: dict[str, tuple[int, int]] = {}
        self._num_added = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def first(self) -> Request | None:
        """Who is next, if anybody waits."""
        return self._entries[0][1] if self._entries else None

    def add(self, request: Request) -> None:
        """Queue a request behind all of its priority."""
        place = (request.params.priority, self._num_added)
        self._num_added += 1
        self._entries.insert(bisect_left(self._entries, place, key=_place_of), (place, request))
        self._places[request.request_id] = place

    def remove(self, request_id: str) -> None:
        """Take a request out; unknown ids are ignored."""
        place = self._places.pop(request_id, None)
        if place is not None:
            del self._entries[bisect_left(self._entries, place, key=_place_of)]
