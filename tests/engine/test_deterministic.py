"""Deterministic mode's promise: a request's logits have the same bits alone, in any batch, and in any chunking.

Kernel by kernel on the GPU's kernels with the deterministic GEMM, in the interpreter where there is no GPU.
"""

from collections.abc import Callable

import pytest
import torch

from remuda.engine.backend import load_kernels
from remuda.engine.models.base import ForwardBatch, Slots
from remuda.engine.models.longhorn import Longhorn
from remuda.engine.state_pool import StatePool
from tests.engine.tiny import random_weights, tiny_config

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
# The interpreter has no bfloat16 products.
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * ON_GPU
# On a GPU also of sizes that its fast prefill takes outside this mode.
WIDE = {"hidden_size": 32, "intermediate_size": 64, "time_step_rank": 8, "state_size": 16}
SIZES: list[dict[str, object]] = [{}] + [WIDE] * ON_GPU
VOCAB = 37
NUM_SLOTS = 80
SLOT = 7
PROMPT = [5, 9, 2, 30, 7, 7, 11, 0, 36]


class Sequences:
    """A model and a pool, and what is left of each slot's sequence to read."""

    def __init__(self, dtype: torch.dtype, sizes: dict[str, object]) -> None:
        config = tiny_config(vocab_size=VOCAB, **sizes)
        backend = load_kernels("gpu", deterministic=True)
        weights = random_weights(config)
        self.model = Longhorn(config, weights, backend, device=DEVICE, dtype=dtype, state_dtype=torch.float32)
        self.pool = StatePool(self.model.state_spec, NUM_SLOTS, DEVICE)
        self._started: set[int] = set()

    def run(self, decode: dict[int, int], prefill: dict[int, list[int]]) -> dict[int, torch.Tensor]:
        """One step: a token for the slots of `decode`, a chunk for those of `prefill`. Logits by slot."""
        tokens = [*decode.values(), *(token for chunk in prefill.values() for token in chunk)]
        batch = ForwardBatch(
            token_ids=torch.tensor(tokens, device=DEVICE),
            num_decode=len(decode),
            decode=self._slots(list(decode)),
            prefill=self._slots(list(prefill)),
            cu_seqlens=torch.tensor([0, *map(len, prefill.values())], device=DEVICE).cumsum(0).int(),
            output_rows=None,
        )
        self._started |= {*decode, *prefill}
        with torch.inference_mode():
            logits = self.model.logits(self.model.forward(batch, self.pool.layers)).cpu()
        lengths = [1] * len(decode) + [len(chunk) for chunk in prefill.values()]
        return dict(zip([*decode, *prefill], logits.split(lengths), strict=True))

    def _slots(self, numbers: list[int]) -> Slots:
        rows = torch.tensor(numbers, dtype=torch.int32, device=DEVICE)
        fresh = [number not in self._started for number in numbers]
        return Slots(rows, rows, torch.tensor(fresh, dtype=torch.bool, device=DEVICE))


Start = Callable[[], Sequences]


def neighbours(count: int, length: int) -> dict[int, list[int]]:
    """Other sequences, one of every length up to `length` and again, in the slots after SLOT."""
    return {SLOT + 1 + i: [(3 * i + 5 * t) % VOCAB for t in range(1 + i % length)] for i in range(count)}


@pytest.fixture(params=SIZES, ids=str)
def sizes(request: pytest.FixtureRequest) -> dict[str, object]:
    found: dict[str, object] = request.param
    return found


@pytest.fixture(params=DTYPES, ids=str)
def start(request: pytest.FixtureRequest, sizes: dict[str, object]) -> Start:
    return lambda: Sequences(request.param, sizes)


@pytest.fixture
def expected(start: Start) -> torch.Tensor:
    """The prompt read alone, in one chunk."""
    return start().run({}, {SLOT: PROMPT})[SLOT]


def test_the_prompt_in_two_chunks_and_token_by_token(start: Start, expected: torch.Tensor) -> None:
    for cut in range(1, len(PROMPT)):
        sequences = start()
        first = sequences.run({}, {SLOT: PROMPT[:cut]})[SLOT]
        second = sequences.run({}, {SLOT: PROMPT[cut:]})[SLOT]
        assert torch.equal(torch.cat([first, second]), expected)
    sequences = start()
    steps = [sequences.run({SLOT: token}, {})[SLOT] for token in PROMPT]
    assert torch.equal(torch.cat(steps), expected)


@pytest.mark.parametrize("count", [1, 40])
def test_the_prompt_among_neighbours(start: Start, expected: torch.Tensor, count: int) -> None:
    others = neighbours(count, 5)
    before = dict(list(others.items())[: count // 2])
    after = {slot: chunk for slot, chunk in others.items() if slot not in before}
    found = start().run({}, before | {SLOT: PROMPT} | after)
    assert torch.equal(found[SLOT], expected)


def test_steps_beside_decoding_and_reading_neighbours(start: Start, expected: torch.Tensor) -> None:
    """Every step is of another kind and size: the sequence is a chunk, a row among chunks, a row among rows."""
    sequences = start()
    rows = {slot: chunk[0] for slot, chunk in neighbours(30, 1).items()}
    found = [sequences.run(rows, {SLOT: PROMPT[:3]})[SLOT]]
    found.append(sequences.run({SLOT: PROMPT[3]}, neighbours(4, 4))[SLOT])
    found.append(sequences.run(rows | {SLOT: PROMPT[4]}, {})[SLOT])
    found.append(sequences.run({SLOT: PROMPT[5]} | rows, {SLOT + 60: PROMPT * 4})[SLOT])
    found.append(sequences.run({}, {SLOT: PROMPT[6:]})[SLOT])
    assert torch.equal(torch.cat(found), expected)
