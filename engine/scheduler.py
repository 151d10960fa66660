"""Decides what one step computes, and who holds a slot. Touches no tensor but through the pool's counters."""

import time
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from remuda.engine.decode_batch import DecodeBatch
from remuda.engine.errors import QueueFullError
from remuda.engine.sequence import Request, Sequence
from remuda.engine.state_pool import StatePool
from remuda.engine.waiting_queue import WaitingQueue


@dataclass(frozen=True)
class PrefillChunk:
    """Prompt tokens [start, end) of a request, read into `slot`."""

    request: Request
    start: int
    end: int
    slot: int

    @property
    def is_last(self) -> bool:
        """The prompt ends with this chunk."""
        return self.end == self.request.num_prompt_tokens


@dataclass(frozen=True)
class Plan:
    """One step: a token for every decoding sequence, whose slots are `slots`, then prompt chunks.

    is_guided: a sequence that is given a token follows a grammar.
    """

    decode: list[Sequence]
    slots: npt.NDArray[np.int32]
    prefill: list[PrefillChunk]
    is_guided: bool = False

    @property
    def is_empty(self) -> bool:
        """There is nothing to compute."""
        return not self.decode and not self.prefill


class Scheduler:
    """First come, first served among those of one priority, under one token budget a step.

    A request is admitted when the pool has a slot for each of its sequences; until then it waits, and
    everybody behind it, in the order of `WaitingQueue`. So nothing that happens to an admitted request can
    run out of memory.
    What a plan says counts as done when the plan is made: the next may be asked for before it has run,
    because steps run in order.
    """

    def __init__(self, pool: StatePool, *, max_batch_tokens: int, prefill_chunk: int, max_queue: int) -> None:
        assert max_batch_tokens > pool.num_slots, "a full batch of decode rows would leave prefill no token"
        self._pool = pool
        self._max_batch_tokens = max_batch_tokens
        self._prefill_chunk = prefill_chunk
        self._max_queue = max_queue
        self._requests: dict[str, Request] = {}
        self._waiting = WaitingQueue()
        self._prefilling: OrderedDict[str, Request] = OrderedDict()
        self._decoding = DecodeBatch(pool.num_slots)

    @property
    def has_work(self) -> bool:
        """A request waits or runs."""
        return bool(self._requests)

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests with slots."""
        return len(self._requests) - len(self._waiting)

    def get(self, request_id: str) -> Request | None:
        """The request of that id, while it waits or runs."""
        return self._requests.get(request_id)

    def add(self, request: Request) -> None:
        """Queue a request. Raises QueueFullError where as many as may wait have found no slot."""
        self._admit()
        if len(self._waiting) >= self._max_queue:
            raise QueueFullError(f"{len(self._waiting)} requests are waiting, the limit is {self._max_queue}")
        self._requests[request.request_id] = request
        self._waiting.add(request)

    def schedule(self) -> Plan:
        """Admit who can be admitted, and share the step's tokens out: decode first, then prompts in order."""
        self._admit()
        budget = self._max_batch_tokens - len(self._decoding)
        chunks = []
        for request in self._prefilling.values():
            start, slot = request.num_computed, request.sequences[0].slot
            size = min(request.num_prompt_tokens - start, self._prefill_chunk, budget)
            if size == 0:
                break
            assert slot is not None
            chunks.append(PrefillChunk(request, start, start + size, slot))
            budget -= size
        is_guided = self._decoding.num_guided > 0
        is_guided |= any(chunk.is_last and chunk.request.params.grammar is not None for chunk in chunks)
        decode, slots = self._decoding.take_step()
        for chunk in chunks:
            self._advance(chunk)
        return Plan(decode, slots, chunks, is_guided)

    def _admit(self) -> None:
        """Give slots to those who wait, in order, as far as they go."""
        while (request := self._waiting.first) is not None:
            if len(request.sequences) > self._pool.num_free:
                break
            self._waiting.remove(request.request_id)
            request.queued_s = time.monotonic() - request.created_at
            for sequence in request.sequences:
                sequence.slot = self._pool.allocate()
            self._prefilling[request.request_id] = request

    def _advance(self, chunk: PrefillChunk) -> None:
        """Note that a chunk is computed; after the last one the request's sequences decode.

        That step draws their first token. A slot given back here is in the plan still, and is not drawn
        again before the next.
        """
        request = chunk.request
        request.num_computed = chunk.end
        if not chunk.is_last:
            return
        del self._prefilling[request.request_id]
        for sequence in request.sequences:
            if sequence.is_finished:
                self._release(sequence)
            elif request.params.max_tokens > 1:
                self._decoding.add(sequence, request.params.max_tokens - 1)

    def finish(self, sequence: Sequence) -> None:
        """End a sequence wherever it stands, and give its slot back.

        A step under way may still use the slot: whatever its next owner does comes after. While the prompt
        is being read for its siblings, its slot stays taken until that is done.
        """
        if sequence.is_finished:
            return
        sequence.is_finished = True
        request = sequence.request
        request.num_live -= 1
        if request.is_finished:
            self._forget(request)
        elif not request.is_prefilling:
            self._release(sequence)

    def _forget(self, request: Request) -> None:
        del self._requests[request.request_id]
        self._waiting.remove(request.request_id)
        self._prefilling.pop(request.request_id, None)
        for sequence in request.sequences:
            self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._decoding.remove(sequence)
        if sequence.slot is not None:
            self._pool.free(sequence.slot)
            sequence.slot = None
