"""Sampling on the device: the kernels against their definition, and that against the engine's sampler."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from remuda.engine.sampler import Sampler
from remuda.engine.sampling_params import MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS, SamplingParams
from remuda.engine.sequence import Request, Sequence, mix64
from remuda.kernels.sample import gpu, reference
from remuda.kernels.sample import table as words
from remuda.kernels.sample.table import IN_PROMPT, SamplingTable, encode, make_table
from remuda.kernels.slots import PAD_SLOT
from tests.kernels.harness import device_of

DEVICE = device_of("gpu")
# How far from a step of the cumulative distribution float32 weights may decide otherwise than float64 ones.
STEP = 1e-6
CHOICES: dict[str, list[Any]] = {
    "temperature": [0.0, 0.3, 1.0, 2.0],
    "top_k": [0, 0, 1, 7, 300, 5000, 10**12],
    "top_p": [1.0, 1.0, 1e-9, 0.3, 0.9, 0.999],
    "min_p": [0.0, 0.0, 0.02, 1.0],
    "repetition_penalty": [1.0, 1.0, 1.3, 0.7],
    "presence_penalty": [0.0, 0.0, 0.7],
    "frequency_penalty": [0.0, 0.0, 0.9, -0.5],
}


def table_of(rows: list[dict[str, Any]], V: int) -> SamplingTable:
    """A slot per entry of `rows`, arguments of `encode`."""
    table = make_table(len(rows), V, DEVICE)
    packed = [encode(**({"key": mix64(i)} | row)) for i, row in enumerate(rows)]
    table.packed.copy_(torch.from_numpy(np.stack(packed)))
    # Few bits or many, but at least one of an id.
    draw = np.random.default_rng(V)
    masks = draw.integers(-(2**31), 2**31, table.masks.shape, dtype=np.int32)
    masks[::2] &= draw.integers(-(2**31), 2**31, masks[::2].shape, dtype=np.int32) & 0x01010101
    masks[:, 0] |= 1
    table.masks.copy_(torch.from_numpy(masks))
    return table


def copy_of(table: SamplingTable) -> SamplingTable:
    return SamplingTable(*(part.clone() for part in table))


def random_row(V: int, draw: np.random.Generator) -> dict[str, Any]:
    row = {name: values[draw.integers(len(values))] for name, values in CHOICES.items()}
    if draw.random() < 0.3:
        row["logit_bias"] = {int(i): float(draw.normal(0, 5)) for i in draw.choice(V, min(V, 300), replace=False)}
    if draw.random() < 0.3:
        row |= {"held_ids": draw.choice(V, min(V - 1, 270), replace=False).tolist(), "min_tokens": 2}
    return row | {"is_guided": draw.random() < 0.4}


def padded(logits: Tensor, columns: int = 6) -> Tensor:
    """The rows of `logits` with that many columns of padding, which hold what would win."""
    return torch.nn.functional.pad(logits, (0, columns), value=1e4).to(DEVICE)


def draw_both(logits: Tensor, slots: list[int], table: SamplingTable) -> tuple[Tensor, Tensor]:
    """Tokens and health by the kernels, after a check against the definition; `table` gets what they note."""
    index = torch.tensor(slots, dtype=torch.int32, device=DEVICE)
    expected_table, before = copy_of(table), copy_of(table)
    V, kept = table.counts.shape[1], logits.clone()
    work = torch.full((len(slots) + 1, V + 3), torch.nan, device=DEVICE)
    tokens, healthy = gpu.sample(logits, index, table, work)
    expected, expected_healthy = reference.sample(logits, index, expected_table, work.clone())
    assert torch.equal(logits.nan_to_num(), kept.nan_to_num())
    assert tokens.dtype == torch.int64
    assert healthy.tolist() == expected_healthy.tolist()
    for i in (tokens != expected).nonzero()[:, 0].tolist():
        slot, token = slots[i], int(tokens[i])
        weight = reference.weights(reference.adjusted(logits[i, :V], before, slot), before, slot)
        mass = (weight.cumsum(0) / weight.sum()).tolist()
        below = mass[token - 1] if token else 0.0
        assert weight[token] > 0
        assert below - STEP <= reference.uniform(before, slot) <= mass[token] + STEP, f"slot {slot}: {token}"
        # The other token is right too: what is noted must be that.
        expected_table.last_token[slot] = token
        if torch.any(expected_table.counts[slot] != before.counts[slot]):
            expected_table.counts[slot] = before.counts[slot]
            expected_table.counts[slot, token] += 1
    for part, expected_part in zip(table, expected_table, strict=True):
        assert torch.equal(part, expected_part)
    return tokens.cpu(), healthy.cpu()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("V", "spread"), [(1, 1.0), (53, 1.0), (4099, 3.0), (13001, 1.0), (12288, 0.05)])
def test_kernels_draw_as_defined(V: int, spread: float, seed: int) -> None:
    draw, torch_draw = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    table = table_of([random_row(V, draw) for _ in range(7)], V)
    prompt = torch.from_numpy(draw.choice(V, 40)).to(DEVICE)
    row_slots = torch.from_numpy(draw.integers(-1, 7, 40).astype(np.int32)).to(DEVICE)
    gpu.mark_prompt(table, prompt, row_slots)
    for step in range(3):
        logits = torch.randn(7, V, generator=torch_draw) * spread
        if step == 1:
            logits = logits.bfloat16().float()
        slots = draw.permutation(7)[:6].tolist()
        slots[2] = PAD_SLOT
        tokens, healthy = draw_both(padded(logits, 1 + step), slots, table)
        assert tokens[2] == 0
        assert healthy.all()


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"top_k": 3},
        {"top_k": 4500},
        {"top_p": 0.4},
        {"top_p": 0.999},
        {"top_k": 700, "top_p": 0.5},
        {"top_k": 4500, "top_p": 0.99},
        {"top_k": 2, "top_p": 0.99},
        {"min_p": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("levels", [1, 2, 40])
def test_equal_logits_are_kept_from_the_lowest_id(row: dict[str, Any], levels: int) -> None:
    draw = torch.Generator().manual_seed(levels)
    logits = (torch.randint(levels, (3, 9001), generator=draw) - levels // 2) * 0.25
    # Both zeros are the same number.
    logits = torch.where((logits == 0) & (torch.rand(3, 9001, generator=draw) < 0.5), -logits, logits)
    tokens, _ = draw_both(padded(logits), [0, 1, 2], table_of([row] * 3, 9001))
    if row == {"top_k": 3} and levels == 1:
        assert max(tokens) <= 2


def test_far_apart_logits_end_the_search() -> None:
    logits = torch.cat([torch.logspace(-44, 37, 4500), -torch.logspace(-44, 37, 4500)])
    logits = logits[torch.randperm(9000, generator=torch.Generator().manual_seed(0))].expand(6, -1)
    rows = [{"top_k": k, "top_p": p} for k in (0, 1000, 4600) for p in (0.5, 0.9999)]
    draw_both(padded(logits), list(range(6)), table_of(rows, 9000))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_gives_token_0_and_harms_no_other(bad: float) -> None:
    rows = [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"presence_penalty": 1.0}]
    table = table_of(rows * 2, 5000)
    logits = torch.randn(8, 5000, generator=torch.Generator().manual_seed(1))
    clean = copy_of(table)
    expected, _ = draw_both(padded(logits), list(range(8)), clean)
    logits[:4, 4999] = bad
    tokens, healthy = draw_both(padded(logits), list(range(8)), table)
    assert healthy.tolist() == [False] * 4 + [True] * 4
    assert tokens.tolist() == [0] * 4 + expected[4:].tolist()
    assert table.num_tokens.tolist() == [1] * 8
    assert not table.counts[3].any()


def test_all_ids_held_back_give_token_0() -> None:
    rows = [{"held_ids": range(50), "min_tokens": 1} | more for more in ({}, {"top_k": 2}, {"temperature": 0.0})]
    tokens, healthy = draw_both(padded(torch.randn(3, 50)), [0, 1, 2], table_of(rows, 50))
    assert tokens.tolist() == [0, 0, 0]
    assert healthy.all()


@pytest.mark.parametrize(
    "more", [{}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.1}, {"temperature": 0.0}], ids=str
)
@pytest.mark.parametrize("allowed", [[8999], [0, 31, 32, 4096, 4097, 8999], list(range(4090, 8200, 3))])
def test_a_masked_id_is_never_drawn(allowed: list[int], more: dict[str, Any]) -> None:
    rows = [more | {"is_guided": True, "logit_bias": {5: 100.0}, "presence_penalty": i % 2} for i in range(4)]
    table = table_of(rows, 9000)
    bits = np.zeros(words.mask_words(9000) * 32, dtype=np.uint8)
    bits[allowed] = 1
    table.masks[:] = torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32).copy())
    draw = torch.Generator().manual_seed(4)
    for _ in range(3):
        tokens, healthy = draw_both(padded(torch.randn(4, 9000, generator=draw) * 5), [3, 2, 1, 0], table)
        assert set(tokens.tolist()) <= set(allowed)
        assert healthy.all()


def test_a_row_depends_on_no_other() -> None:
    draw = np.random.default_rng(3)
    rows = [random_row(9001, draw) for _ in range(5)]
    logits = padded(torch.randn(5, 9001, generator=torch.Generator().manual_seed(2)))
    together, _ = draw_both(logits, [4, 3, 2, 1, 0], table_of(rows, 9001))
    table = table_of(rows, 9001)
    for i in range(5):
        alone, _ = draw_both(logits[i : i + 1], [4 - i], table)
        assert alone[0] == together[i]


def test_prompts_are_marked_and_slots_forgotten() -> None:
    table = table_of([{}, {"presence_penalty": 1.0}, {"repetition_penalty": 1.1}, {}], 600)
    table.counts[2, 5], table.num_tokens[:] = 3, 4
    expected = copy_of(table)
    ids = torch.arange(300, device=DEVICE) * 2 % 599
    row_slots = (torch.arange(300, dtype=torch.int32, device=DEVICE) * 7 % 5) - 1
    for module, one in ((gpu, table), (reference, expected)):
        module.mark_prompt(one, ids, row_slots)
        module.mark_prompt(one, ids[:1], row_slots[:1] * 0 + 1)
    assert torch.equal(table.counts, expected.counts)
    assert (table.counts[1] == IN_PROMPT).any()
    assert not table.counts[[0, 3]].any()
    gone = torch.tensor([2, PAD_SLOT, 0], dtype=torch.int32, device=DEVICE)
    for module, one in ((gpu, table), (reference, expected)):
        module.reset(one, gone)
    assert torch.equal(table.counts, expected.counts)
    assert table.num_tokens.tolist() == expected.num_tokens.tolist() == [0, 4, 0, 4]
    assert not table.counts[2].any()


@triton.jit
def _mix_kernel(p_values):  # type: ignore[no-untyped-def]
    p_value = p_values + tl.program_id(0)
    mixed = gpu._mix64(tl.load(p_value).to(tl.uint64, bitcast=True))
    tl.store(p_value, mixed.to(tl.int64, bitcast=True))


def test_kernels_mix_as_the_engine() -> None:
    values = [0, 1, 2**32 - 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15, *(mix64(i) for i in range(20))]
    mixed = torch.from_numpy(np.array(values, dtype=np.uint64).view(np.int64)).to(DEVICE)
    _mix_kernel[(len(values),)](mixed)
    assert mixed.cpu().numpy().view(np.uint64).tolist() == [mix64(value) for value in values]


def test_a_row_has_room_for_what_a_request_may_ask() -> None:
    assert words.MAX_BIAS >= MAX_LOGIT_BIAS
    assert words.MAX_HELD >= MAX_STOP_TOKEN_IDS
    with pytest.raises(ValueError, match="held"):
        encode(key=0, held_ids=range(words.MAX_HELD + 1), min_tokens=1)
    with pytest.raises(ValueError, match="biased"):
        encode(key=0, logit_bias=dict.fromkeys(range(words.MAX_BIAS + 1), 1.0))


@dataclass(eq=False)
class Fixed(Sequence):
    """A sequence whose next random number is given."""

    number: float = 0.0

    def uniform(self) -> float:
        return self.number


def engine_sequences(V: int, **params: Any) -> list[Sequence]:
    """Two choices of one request, started."""
    request = Request.create("r", np.arange(5, dtype=np.int32), SamplingParams(n=2, **params), 9)
    for one in request.sequences:
        Sampler(V, (3,)).start(one, torch.device("cpu"))
    return request.sequences


def row_of(one: Sequence) -> dict[str, Any]:
    """Arguments of `encode` for a sequence of the engine whose end-of-sequence id is 3."""
    params = one.request.params
    same = {name: getattr(params, name) for name in (*CHOICES, "logit_bias", "min_tokens")}
    return same | {"key": one.key, "held_ids": (*params.stop_token_ids, 3)}


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "repetition_penalty": 1.5, "presence_penalty": 0.3, "frequency_penalty": 0.2},
        {"temperature": 0.0, "logit_bias": {7: 4.0, 8: -2.0}, "stop_token_ids": (7,), "min_tokens": 3},
        {},
        {"temperature": 0.6, "frequency_penalty": 1.5, "stop_token_ids": (7, 90), "min_tokens": 9},
        {"temperature": 1.7, "logit_bias": {4: 5.0}},
    ],
    ids=str,
)
def test_unfiltered_draws_are_those_of_the_engine(params: dict[str, Any]) -> None:
    V, sequences = 701, engine_sequences(701, max_tokens=20, **params)
    table = table_of([row_of(one) for one in sequences], V)
    prompt = torch.arange(5, device=DEVICE).repeat(2)
    reference.mark_prompt(table, prompt, torch.arange(2, dtype=torch.int32, device=DEVICE).repeat_interleave(5))
    draw = torch.Generator().manual_seed(5)
    for _ in range(10):
        logits = torch.randn(2, V, generator=draw)
        tokens, _ = draw_both(padded(logits), [0, 1], table)
        sampled = Sampler(V, (3,)).sample(logits, sequences)
        assert tokens.tolist() == [one.token for one in sampled]
        for one in sequences:
            one.num_tokens += 1


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"top_k": 40, "top_p": 0.7},
        {"top_k": 20, "top_p": 0.9, "min_p": 0.2},
        {"top_k": -1, "top_p": 1e-6},
        {"temperature": 0.4, "top_p": 0.95},
    ],
    ids=str,
)
def test_filters_keep_what_the_engine_keeps(params: dict[str, Any]) -> None:
    V, base = 300, engine_sequences(300, max_tokens=9, **params)[0]
    logits = torch.randn(V, generator=torch.Generator().manual_seed(8)) * 2
    table = table_of([row_of(base)], V)
    weight = reference.weights(logits.to(DEVICE), table, 0).cpu()
    kept = {i for i, one in enumerate(weight.tolist()) if one > 0}
    share = (weight / weight.sum()).tolist()
    assert min(share[i] for i in kept) > 1e-4
    numbers = np.linspace(0, 1, 10_000, endpoint=False).tolist()
    asked = [Fixed(base.request, 0, base.key, number=number) for number in numbers]
    drawn = [one.token for one in Sampler(V, ()).sample(logits.repeat(len(asked), 1), list(asked))]
    assert set(drawn) == kept
    assert np.bincount(drawn, minlength=V) / len(drawn) == pytest.approx(share, abs=3e-4)
