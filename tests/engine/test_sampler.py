"""Every sampling parameter, one at a time and together, against what its definition says."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from remuda.engine.errors import InvalidRequestError
from remuda.engine.sampler import Sampler
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.sequence import Request, Sequence

VOCAB = 50
LOGITS = torch.linspace(-3, 3, VOCAB)[torch.randperm(VOCAB, generator=torch.Generator().manual_seed(3))]


def sequence(prompt: tuple[int, ...] = (1, 2), seed: int = 0, **params: object) -> Sequence:
    request = Request.create(
        "r",
        np.array(prompt, dtype=np.int32),
        SamplingParams(max_tokens=10**6, **params),
        seed,  # type: ignore[arg-type]
    )
    return request.sequences[0]


def draw(one: Sequence, logits: torch.Tensor = LOGITS, times: int = 1, eos: tuple[int, ...] = ()) -> list[int]:
    sampler = Sampler(VOCAB, eos)
    if one.num_tokens == 0:
        sampler.start(one, torch.device("cpu"))
    tokens = []
    for _ in range(times):
        tokens.append(sampler.sample(logits[None].clone(), [one])[0].token)
        one.num_tokens += 1
    return tokens


def test_greedy_takes_the_largest_and_ties_go_to_the_lowest_id() -> None:
    logits = torch.zeros(VOCAB)
    logits[[7, 30]] = 2.0
    assert draw(sequence(temperature=0.0), logits, 3) == [7, 7, 7]


def test_padded_ids_are_never_sampled() -> None:
    padded = torch.cat([LOGITS, torch.full((6,), 100.0)])
    assert draw(sequence(temperature=0.0), padded) == [int(LOGITS.argmax())]
    assert max(draw(sequence(temperature=2.0), padded, 200)) < VOCAB


def test_frequencies_follow_the_distribution() -> None:
    counts = np.bincount(draw(sequence(temperature=0.7), times=6_000), minlength=VOCAB)
    expected = torch.softmax(LOGITS / 0.7, 0).numpy() * counts.sum()
    # Chi-square with 49 degrees of freedom: 99.9 % of honest samplers stay below 85.
    assert ((counts - expected) ** 2 / expected).sum() < 85


def test_tokens_depend_on_seed_and_position_but_not_on_neighbours() -> None:
    alone = draw(sequence(seed=5), times=20)
    assert draw(sequence(seed=5), times=20) == alone
    assert draw(sequence(seed=6), times=20) != alone
    one, others = sequence(seed=5), [sequence(seed=9, top_p=0.5), sequence(temperature=0.0)]
    sampler = Sampler(VOCAB, ())
    among = []
    for _ in range(20):
        rows = torch.stack([LOGITS * 2, LOGITS, -LOGITS])
        among.append(sampler.sample(rows, [others[0], one, others[1]])[1].token)
        one.num_tokens += 1
    assert among == alone


def test_choices_of_one_request_differ() -> None:
    request = Request.create("r", np.array([1], dtype=np.int32), SamplingParams(n=3, seed=1), 0)
    drawn = [tuple(draw(s, times=20)) for s in request.sequences]
    assert len(set(drawn)) == 3


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 3}, 3),
        ({"top_k": 1}, 1),
        ({"top_k": -1}, VOCAB),
        ({"top_k": 10**9}, VOCAB),
        ({"top_p": 1e-9}, 1),
        ({"min_p": 1.0}, 1),
    ],
    ids=str,
)
def test_filters_keep_the_likeliest(params: dict[str, object], kept: int) -> None:
    allowed = set(LOGITS.argsort(descending=True)[:kept].tolist())
    seen = set(draw(sequence(temperature=2.0, **params), times=3000))
    assert seen <= allowed
    assert len(seen) >= 0.9 * kept


def test_top_p_keeps_the_smallest_set_of_that_mass() -> None:
    probs, order = torch.softmax(LOGITS, 0).sort(descending=True)
    kept = int((probs.cumsum(0) < 0.6).sum()) + 1
    assert set(draw(sequence(top_p=0.6), times=4000)) == set(order[:kept].tolist())


def test_min_p_is_relative_to_the_likeliest() -> None:
    probs = torch.softmax(LOGITS, 0)
    allowed = set((probs >= 0.3 * probs.max()).nonzero().flatten().tolist())
    assert set(draw(sequence(min_p=0.3), times=4000)) == allowed


def test_a_wide_vocabulary_is_filtered_beyond_the_first_candidates() -> None:
    wide = 5000
    one = sequence(temperature=1.0, top_p=0.9)
    sampler = Sampler(wide, ())
    sampler.start(one, torch.device("cpu"))
    tokens = set()
    for _ in range(1500):
        tokens.add(sampler.sample(torch.zeros(1, wide), [one])[0].token)
        one.num_tokens += 1
    # A flat distribution: 4,500 of 5,000 ids stay, far more than the sampler looks at first.
    assert 1000 < len(tokens) <= 4500


def test_penalties() -> None:
    logits = torch.zeros(VOCAB)
    logits[4], logits[9] = 3.0, 2.0
    assert draw(sequence((4,), temperature=0.0, repetition_penalty=2.0), logits) == [9]
    assert draw(sequence((1,), temperature=0.0, presence_penalty=1.5), logits, 3) == [4, 9, 4]
    assert draw(sequence((4,), temperature=0.0, presence_penalty=1.5), logits, 1) == [4]
    frequent = draw(sequence(temperature=0.0, frequency_penalty=0.6), logits, 6)
    assert frequent == [4, 4, 9, 4, 9, 4]
    negative = -torch.arange(1.0, VOCAB + 1)
    assert draw(sequence((0,), temperature=0.0, repetition_penalty=3.0), negative) == [1]


def test_logit_bias_min_tokens_and_stop_tokens() -> None:
    best = int(LOGITS.argmax())
    assert draw(sequence(temperature=0.0, logit_bias={11: 100.0})) == [11]
    assert draw(sequence(temperature=0.0, logit_bias={best: -100.0})) != [best]
    held = draw(sequence(temperature=0.0, min_tokens=2), times=3, eos=(best,))
    assert best not in held[:2]
    assert held[2] == best
    ignoring = draw(sequence(temperature=0.0, min_tokens=2, ignore_eos=True), times=1, eos=(best,))
    assert ignoring == [best]
    assert draw(sequence(temperature=0.0, min_tokens=1, stop_token_ids=(best,))) != [best]


def test_logprobs_are_the_models_own_before_any_adjustment() -> None:
    one = sequence(temperature=0.0, logprobs=3, logit_bias={11: 100.0})
    result = Sampler(VOCAB, ()).sample(LOGITS[None].clone(), [one])[0]
    expected = torch.log_softmax(LOGITS, 0)
    assert result.logprobs is not None
    assert result.logprobs.token == 11
    assert result.logprobs.logprob == pytest.approx(float(expected[11]), rel=1e-6)
    assert [t for t, _ in result.logprobs.top] == expected.argsort(descending=True)[:3].tolist()
    assert [v for _, v in result.logprobs.top] == pytest.approx(expected.sort(descending=True)[0][:3].tolist())


def test_a_tiny_temperature_is_greedy() -> None:
    best = int(LOGITS.argmax())
    for temperature in (1e-38, 1e-9, 9e-6, 1e-5):
        for filters in ({}, {"top_k": 5}, {"top_p": 0.9}):
            assert draw(sequence(temperature=temperature, **filters), times=3) == [best] * 3


@pytest.mark.parametrize("penalty", [0.01, 100.0])
def test_the_ends_of_the_penalties_range_leave_finite_choices(penalty: float) -> None:
    tokens = draw(sequence(repetition_penalty=penalty, logprobs=1), LOGITS * 30, times=20)
    assert all(0 <= token < VOCAB for token in tokens)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_is_reported_and_harms_no_other(bad: float) -> None:
    logits = torch.stack([LOGITS, LOGITS])
    logits[0, 3] = bad
    first, second = Sampler(VOCAB, ()).sample(logits, [sequence(), sequence(temperature=0.0)])
    assert (first.is_healthy, first.token) == (False, 0)
    assert (second.is_healthy, second.token) == (True, int(LOGITS.argmax()))


FEATURES: list[dict[str, object]] = [
    {"temperature": 0.0},
    {"top_k": 4},
    {"top_p": 0.5},
    {"min_p": 0.1},
    {"repetition_penalty": 1.5},
    {"presence_penalty": 1.0, "frequency_penalty": -1.0},
    {"logit_bias": {3: 5.0}},
    {"min_tokens": 3, "stop_token_ids": (4, 5)},
    {"logprobs": 5},
]


@pytest.mark.parametrize("pair", list(itertools.combinations(FEATURES, 2)), ids=str)
def test_every_pair_of_features_draws_a_token(pair: tuple[dict[str, object], dict[str, object]]) -> None:
    tokens = draw(sequence(**(pair[0] | pair[1])), times=5, eos=(0,))
    assert all(0 <= token < VOCAB for token in tokens)


@given(
    st.lists(st.floats(-200, 200, width=32), min_size=VOCAB, max_size=VOCAB),
    st.floats(0.01, 2),
    st.floats(0.01, 1),
)
def test_any_finite_logits_give_a_token_of_positive_probability(
    values: list[float], temperature: float, top_p: float
) -> None:
    logits = torch.tensor(values)
    token = draw(sequence(temperature=temperature, top_p=top_p), logits)[0]
    assert float(torch.softmax(logits / temperature, 0)[token]) > 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", -0.1),
        ("repetition_penalty", 1e-39),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("seed", 2**63),
        ("max_tokens", -1),
        ("max_tokens", 2**31),
        ("max_tokens", 10**5000),
        ("min_tokens", 17),
        ("n", 0),
        ("n", 129),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
        ("stop", ("x",) * 17),
        ("stop", ("",)),
        ("stop_token_ids", tuple(range(257))),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", dict.fromkeys(range(1025), 1.0)),
    ],
    ids=lambda v: str(v)[:20] if not isinstance(v, int) or abs(v) < 2**64 else "huge",
)
def test_values_out_of_range_name_the_field(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert caught.value.param == field
    assert len(str(caught.value)) < 200


def test_a_stop_string_alone_and_lists_are_taken() -> None:
    params = SamplingParams(stop="END", stop_token_ids=[5])  # type: ignore[arg-type]
    assert (params.stop, params.stop_token_ids) == (("END",), (5,))
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 2.5),
        ("max_tokens", True),
        ("n", "2"),
        ("temperature", "hot"),
        ("temperature", None),
        ("stop", 5),
        ("stop", [5]),
        ("stop_token_ids", ["a"]),
        ("seed", 1.0),
        ("ignore_eos", 1),
        ("logit_bias", {"a": 1.0}),
        ("logit_bias", [1]),
    ],
    ids=str,
)
def test_wrong_types_name_the_field(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert caught.value.param == field


def test_ids_outside_the_vocabulary_name_the_field() -> None:
    with pytest.raises(InvalidRequestError, match=r"50 is outside the vocabulary \[0, 50\)"):
        SamplingParams(logit_bias={50: 1.0}).check_vocabulary(50)
    with pytest.raises(InvalidRequestError, match="stop_token_ids"):
        SamplingParams(stop_token_ids=(-1,)).check_vocabulary(50)
