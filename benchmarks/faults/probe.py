"""Asks an engine process how it is, past its API workers: as one more worker on its socket."""

import time
from types import TracebackType
from typing import Self

import msgspec
import psutil
import zmq

from remuda.engine.wire import HELLO, EngineStats, FromEngine, StatsRequest


class EngineProbe:
    """A connection to one engine process; a context manager."""

    def __init__(self, engine: psutil.Process) -> None:
        (address,) = {
            found.laddr for found in engine.net_connections("unix") if found.laddr and "remuda-" in found.laddr
        }
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(f"ipc://{address}")
        self._socket.send(HELLO)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.destroy()

    def stats(self, within_s: float = 30.0) -> EngineStats | None:
        """How many run and wait, and how many slots are free; None where it does not answer in time."""
        self._socket.send(msgspec.msgpack.encode(StatsRequest()))
        while self._socket.poll(within_s * 1000):
            message = msgspec.msgpack.decode(self._socket.recv(), type=FromEngine)
            if isinstance(message, EngineStats):
                return message
        return None

    def until_free(self, num_slots: int, within_s: float) -> float | None:
        """Seconds until all slots are free and nothing runs or waits; None where that takes longer."""
        began = time.monotonic()
        while time.monotonic() - began < within_s:
            stats = self.stats()
            if stats is not None and is_free(stats, num_slots):
                return time.monotonic() - began
            time.sleep(0.01)
        return None


def is_free(stats: EngineStats, num_slots: int) -> bool:
    """Nothing runs or waits, and every slot is free."""
    return (stats.num_running, stats.num_waiting, stats.num_free_slots) == (0, 0, num_slots)
