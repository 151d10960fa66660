"""What `conv` and `longhorn` promise alike, on every backend: order of time, slots, padding, fresh rows."""

import mmap
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remuda.kernels.slots import PAD_SLOT
from tests.kernels.harness import (
    NUM_SLOTS,
    Conv,
    Longhorn,
    Op,
    Pack,
    Pool,
    assert_close,
    assert_same,
    device_of,
    load,
    one,
)

BACKENDS = ["cpu", "gpu"]
OPS: list[Op] = [Longhorn(33, 5), Conv(33, 4)]
RAGGED = Pack((3, 1, 7), (4, 0, 6), (4, 1, 6), (False, False, True))

every_backend = pytest.mark.parametrize("backend", ["reference", *BACKENDS])
every_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)


@every_backend
@every_op
def test_any_split_equals_the_whole(op: Op, backend: str) -> None:
    T = 9
    rows = op.rows(T)
    whole = Pool(op, backend)
    expected = whole.run(rows, one(T))
    for cut in range(1, T):
        parts = Pool(op, backend)
        head = parts.run(tuple(row[:cut] for row in rows), one(cut))
        tail = parts.run(tuple(row[cut:] for row in rows), one(T - cut))
        assert_same(torch.cat([head, tail]), expected)
        assert_same(parts.canonical(), whole.canonical())


@every_backend
@every_op
@pytest.mark.parametrize("by_step", [False, True])
def test_rows_are_written_where_they_are_wanted(op: Op, by_step: bool, backend: str) -> None:
    """And nowhere beside: a step and a prompt write parts of the same rows."""
    rows = op.rows(4)
    index = one(1 if by_step else 4)
    rows = tuple(row[: index.num_tokens] for row in rows)
    expected = Pool(op, backend).run(rows, index, by_step=by_step)
    wide = torch.full((index.num_tokens + 2, op.D), torch.nan, device=device_of(backend))
    found = Pool(op, backend).run(rows, index, by_step=by_step, out=wide[1:-1])
    assert_same(found, expected)
    assert_same(wide[1:-1].to(expected.device), expected)
    assert wide[[0, -1]].isnan().all()


@every_backend
@every_op
@pytest.mark.parametrize("D", [1, 64, 65])
def test_steps_equal_prefill(op: Op, D: int, backend: str) -> None:
    op = type(op)(D, 4)
    T = 12
    rows = op.rows(T)
    whole, stepped = Pool(op, backend), Pool(op, backend)
    expected = whole.run(rows, one(T))
    out = [stepped.run(tuple(row[t : t + 1] for row in rows), one(1), by_step=True) for t in range(T)]
    assert_same(torch.cat(out), expected)
    assert_same(stepped.canonical(), whole.canonical())


@every_backend
@every_op
def test_a_row_does_not_depend_on_its_neighbours(op: Op, backend: str) -> None:
    rows = op.rows(RAGGED.num_tokens)
    together = Pool(op, backend)
    out = together.run(rows, RAGGED)
    start = 0
    for i, length in enumerate(RAGGED.lengths):
        alone = Pool(op, backend)
        pack = Pack((length,), (RAGGED.src[i],), (RAGGED.dst[i],), (RAGGED.fresh[i],))
        part = alone.run(tuple(row[start : start + length] for row in rows), pack)
        assert_same(part, out[start : start + length])
        slot = RAGGED.dst[i]
        assert_same(alone.canonical()[slot], together.canonical()[slot])
        start += length


@every_backend
@every_op
@pytest.mark.parametrize("by_step", [True, False])
def test_padding_between_live_rows(op: Op, by_step: bool, backend: str) -> None:
    lengths = (1, 1, 1, 1) if by_step else (2, 3, 1, 4)
    # The source of a padding row is nothing that may be read.
    pack = Pack(lengths, (2, 1_000_000, 5, PAD_SLOT), (2, PAD_SLOT, 5, PAD_SLOT), (False, False, True, True))
    rows = op.rows(pack.num_tokens)
    pool, expected = Pool(op, backend, poisoned=(5,)), Pool(op, "reference", poisoned=(5,))
    assert_close(pool.run(rows, pack, by_step=by_step), expected.run(rows, pack))
    assert_close(pool.canonical(), expected.canonical())


@every_backend
@every_op
def test_only_padding(op: Op, backend: str) -> None:
    pack = Pack((1, 1), (PAD_SLOT, 0), (PAD_SLOT, PAD_SLOT), (False, True))
    Pool(op, backend).run(op.rows(2), pack, by_step=True)
    Pool(op, backend).run(op.rows(2), pack)


@every_backend
@every_op
@pytest.mark.parametrize("by_step", [True, False])
def test_a_fresh_row_ignores_what_its_slots_hold(op: Op, by_step: bool, backend: str) -> None:
    lengths = (1, 1) if by_step else (1, 6)
    rows = op.rows(sum(lengths))
    fresh = (True, True)
    poisoned, clean = Pool(op, backend, poisoned=(3, 4, 8)), Pool(op, backend)
    out = poisoned.run(rows, Pack(lengths, (3, 8), (3, 4), fresh), by_step=by_step)
    assert_same(out, clean.run(rows, Pack(lengths, (3, 1), (3, 4), fresh), by_step=by_step))
    assert_same(poisoned.canonical()[[3, 4]], clean.canonical()[[3, 4]])
    assert out.isfinite().all()


@every_backend
@every_op
@pytest.mark.parametrize("by_step", [True, False])
def test_a_fork_reads_one_slot_and_writes_others(op: Op, by_step: bool, backend: str) -> None:
    lengths = (1, 1, 1) if by_step else (4, 2, 1)
    rows = op.rows(sum(lengths))
    fork, copies = Pool(op, backend, poisoned=(0, 1, 7)), Pool(op, backend)
    copies.state[[0, 1, 7]] = copies.state[5].clone()
    not_fresh = (False, False, False)
    out = fork.run(rows, Pack(lengths, (5, 5, 5), (0, 1, 7), not_fresh), by_step=by_step)
    assert_same(out, copies.run(rows, Pack(lengths, (0, 1, 7), (0, 1, 7), not_fresh), by_step=by_step))
    assert_same(fork.canonical(), copies.canonical())


@every_backend
@every_op
def test_a_copied_slot_goes_on_as_the_original(op: Op, backend: str) -> None:
    rows = op.rows(5)
    pool = Pool(op, backend)
    pool.run(op.rows(4, seed=1), one(4, slot=2))
    pool.state[6] = load(op.name, backend).from_canonical(pool.canonical())[2]
    assert_same(pool.run(rows, one(5, slot=2)), pool.run(rows, one(5, slot=6)))
    assert_same(pool.canonical()[2], pool.canonical()[6])


@every_backend
@every_op
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("D", [1, 63, 64, 65, 130])
def test_layout_round_trip(op: Op, D: int, lead: tuple[int, ...], backend: str) -> None:
    module = load(op.name, backend)
    canonical = torch.randn(*lead, *type(op)(D, 5).states(1).shape[1:])
    state = module.from_canonical(canonical)
    width = canonical.shape[-1] + (op.name == "conv")
    assert state.shape == (*lead, *module.state_shape(D, width))
    assert torch.equal(module.to_canonical(state, D), canonical)
    state.fill_(torch.nan)
    assert canonical.isfinite().all(), "from_canonical gave a view"


@pytest.mark.parametrize("backend", BACKENDS)
@every_op
@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
def test_ragged_packs_equal_reference(op: Op, backend: str, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    count = len(lengths)
    # No sequence may write what another reads: sources may repeat, destinations are their own or unread.
    dst = data.draw(st.permutations(range(NUM_SLOTS)))[:count]
    unread = [slot for slot in range(NUM_SLOTS) if slot not in dst]
    src = [data.draw(st.sampled_from([slot, *unread])) for slot in dst]
    dst = [PAD_SLOT if data.draw(st.integers(0, 4)) == 0 else slot for slot in dst]
    fresh = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    pack = Pack(tuple(lengths), tuple(src), tuple(dst), tuple(fresh))
    rows = op.rows(pack.num_tokens, seed=data.draw(st.integers(0, 100)))
    poisoned = tuple(slot for slot, is_fresh in zip(src, fresh, strict=True) if is_fresh and src.count(slot) == 1)
    pool, expected = Pool(op, backend, poisoned), Pool(op, "reference", poisoned)
    assert_close(pool.run(rows, pack), expected.run(rows, pack))
    live = [slot for slot in dst if slot != PAD_SLOT]
    if live:
        assert_close(pool.canonical()[live], expected.canonical()[live])


@pytest.mark.parametrize("backend", BACKENDS)
@every_op
@pytest.mark.skipif(sys.platform != "linux", reason="needs memory that is mapped but not used")
def test_offsets_beyond_32_bits(op: Op, backend: str) -> None:
    if device_of(backend).type != "cpu":
        pytest.skip("the pool is a sparse mapping of host memory")
    near = Pool(op, backend)
    shape = near.state.shape[1:]
    stride = 2**31 + 192
    map_noreserve = 0x4000
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | map_noreserve
    with mmap.mmap(-1, 4 * (stride + near.state[0].numel()), flags=flags) as memory:
        floats = torch.frombuffer(memory, dtype=torch.float32)
        far = floats.as_strided((2, *shape), (stride, *near.state.stride()[1:]))
        far[0], far[1] = near.state[0], near.state[1]
        rows = list(op.rows(3))
        index = [torch.tensor(values, dtype=torch.int32) for values in ([0, 1, 3], [0, 1], [0, 1])]
        fresh = torch.tensor([False, False])
        out = op.call(backend, rows, far, [*index, fresh])
        pack = Pack((1, 2), (0, 1), (0, 1), (False, False))
        assert_same(out, near.run(tuple(rows), pack))
        assert_same(far[1], near.state[1])
        del far, floats
