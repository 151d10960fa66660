"""The herd: one allocation of equal slots, each the whole recurrent state of one sequence."""

from typing import Final

import torch

from remuda.engine.models.base import LayerState, StateSpec, StateTensor

# Every tensor starts on a boundary that any load width of any backend accepts.
_ALIGNMENT: Final = 256

Snapshot = list[dict[str, torch.Tensor]]


def slot_bytes(spec: StateSpec) -> int:
    """Bytes of one slot, alignment included."""
    return sum(_padded_bytes(tensor) for layer in spec.layers for tensor in layer)


class StatePool:
    """`num_slots` states in one buffer of (num_slots, slot_bytes) bytes; all layers of a slot are contiguous.

    `layers[i][name]` is the view (num_slots, *storage_shape) that kernels index by slot. A slot's content
    is undefined between owners: a fresh sequence starts from zero by flag.
    """

    def __init__(self, spec: StateSpec, num_slots: int, device: torch.device) -> None:
        self.spec = spec
        self.num_slots = num_slots
        self.slot_bytes = slot_bytes(spec)
        self._buffer = torch.zeros((num_slots, self.slot_bytes), dtype=torch.uint8, device=device)
        self.layers: list[LayerState] = []
        offset = 0
        for layer in spec.layers:
            views = {}
            for tensor in layer:
                size = _num_bytes(tensor)
                flat = self._buffer[:, offset : offset + size].view(tensor.dtype)
                views[tensor.name] = flat.view(num_slots, *tensor.storage_shape)
                offset += _padded_bytes(tensor)
            self.layers.append(views)
        # A stack, so that the slots in use stay few and warm in the caches.
        self._free = list(range(num_slots - 1, -1, -1))
        self._is_used = [False] * num_slots

    @property
    def num_free(self) -> int:
        """Slots that no sequence holds."""
        return len(self._free)

    @property
    def device_bytes(self) -> int | None:
        """What this process holds of the GPU that the pool is on; None on a CPU."""
        return torch.cuda.memory_reserved(self._buffer.device) if self._buffer.is_cuda else None

    def allocate(self) -> int:
        """Draw a slot. The caller has looked at `num_free`."""
        slot = self._free.pop()
        self._is_used[slot] = True
        return slot

    def free(self, slot: int) -> None:
        """Give a slot back."""
        assert self._is_used[slot], f"slot {slot} is not in use"
        self._is_used[slot] = False
        self._free.append(slot)

    def copy(self, src: int, dst: int) -> None:
        """Make `dst` the same state as `src`: one copy of `slot_bytes`."""
        self._buffer[dst].copy_(self._buffer[src])

    def snapshot(self, slot: int) -> Snapshot:
        """The slot's state in canonical shapes, independent of the backend and of the pool."""
        return [
            {t.name: t.to_canonical(views[t.name][slot]).clone() for t in layer}
            for layer, views in zip(self.spec.layers, self.layers, strict=True)
        ]

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        """Write a snapshot, of this or another backend, into a slot."""
        for layer, views, saved in zip(self.spec.layers, self.layers, snapshot, strict=True):
            for tensor in layer:
                views[tensor.name][slot].copy_(tensor.from_canonical(saved[tensor.name]))


def _num_bytes(tensor: StateTensor) -> int:
    return int(torch.Size(tensor.storage_shape).numel()) * tensor.dtype.itemsize


def _padded_bytes(tensor: StateTensor) -> int:
    return -(-_num_bytes(tensor) // _ALIGNMENT) * _ALIGNMENT
