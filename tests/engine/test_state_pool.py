"""One allocation, equal slots, exact accounting."""

import pytest
import torch

from remuda.engine.state_pool import StatePool, slot_bytes
from tests.engine.tiny import CPU, make_model


def make_pool(num_slots: int = 3) -> StatePool:
    return StatePool(make_model("reference").state_spec, num_slots, CPU)


def test_views_cover_the_slots_without_overlap() -> None:
    pool = make_pool()
    for slot in range(3):
        for number, layer in enumerate(pool.layers):
            for position, view in enumerate(layer.values()):
                view[slot].fill_(100 * slot + 10 * number + position)
    for slot in range(3):
        for number, layer in enumerate(pool.layers):
            for position, view in enumerate(layer.values()):
                assert (view[slot] == 100 * slot + 10 * number + position).all()


def test_all_layers_of_a_slot_are_contiguous_and_aligned() -> None:
    pool = make_pool()
    views = [view for layer in pool.layers for view in layer.values()]
    for view in views:
        assert view.stride(0) * view.element_size() == pool.slot_bytes
        assert view[0].is_contiguous()
        assert (view.data_ptr() - views[0].data_ptr()) % 256 == 0
    assert pool.slot_bytes == slot_bytes(pool.spec)


def test_allocate_and_free_account_for_every_slot() -> None:
    pool = make_pool()
    taken = [pool.allocate() for _ in range(3)]
    assert sorted(taken) == [0, 1, 2]
    assert pool.num_free == 0
    pool.free(taken[1])
    assert pool.allocate() == taken[1]


def test_a_double_free_is_caught() -> None:
    pool = make_pool()
    slot = pool.allocate()
    pool.free(slot)
    with pytest.raises(AssertionError, match=f"slot {slot}"):
        pool.free(slot)


def test_copy_and_snapshot_touch_one_slot_only() -> None:
    pool = make_pool()
    generator = torch.Generator().manual_seed(0)
    for layer in pool.layers:
        for view in layer.values():
            view.copy_(torch.randn(view.shape, generator=generator))
    saved, third = pool.snapshot(0), pool.snapshot(2)
    pool.copy(0, 1)
    pool.layers[0]["h"][0].zero_()
    for layer, wanted in zip(pool.snapshot(1), saved, strict=True):
        assert all(torch.equal(layer[name], wanted[name]) for name in wanted)
    for layer, wanted in zip(pool.snapshot(2), third, strict=True):
        assert all(torch.equal(layer[name], wanted[name]) for name in wanted)
