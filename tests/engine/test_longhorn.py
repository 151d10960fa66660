"""The whole model, under every backend: against the authors' code, and against itself taken apart differently."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from remuda.engine.backend import load_kernels
from remuda.engine.checkpoint.find import find_checkpoint
from remuda.engine.checkpoint.read import read_model_config, read_weights
from remuda.engine.models.base import ForwardBatch, Slots
from remuda.engine.models.longhorn import Longhorn
from remuda.engine.state_pool import StatePool
from remuda.kernels.slots import PAD_SLOT
from tests.engine.tiny import BACKENDS, CPU, make_model, tiny_config

DATA = Path(__file__).parents[1] / "data"
GOLDEN = {
    "longhorn-tiny": DATA / "longhorn-tiny",
    "longhorn-train-ckpt": DATA / "longhorn-train-ckpt" / "ckpt.pt",
}
NO_SLOTS = Slots(
    torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.bool)
)


def slots(numbers: list[int], *, fresh: bool = False, dst: list[int] | None = None) -> Slots:
    src = torch.tensor(numbers, dtype=torch.int32)
    return Slots(
        src,
        src if dst is None else torch.tensor(dst, dtype=torch.int32),
        torch.full((len(numbers),), fresh, dtype=torch.bool),
    )


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


class Harness:
    """A model with a pool whose slots all hold NaN, and the two kinds of step."""

    def __init__(self, model: Longhorn, num_slots: int = 4) -> None:
        self.model = model
        self.pool = StatePool(model.state_spec, num_slots, CPU)
        for layer in self.pool.layers:
            for view in layer.values():
                view.fill_(torch.nan)

    def prefill(self, pieces: list[torch.Tensor], rows: Slots) -> list[torch.Tensor]:
        """Logits of every position of every piece."""
        lengths = torch.tensor([0] + [len(p) for p in pieces])
        batch = ForwardBatch(
            token_ids=torch.cat(pieces),
            num_decode=0,
            decode=NO_SLOTS,
            prefill=rows,
            cu_seqlens=lengths.cumsum(0).int(),
            output_rows=torch.arange(int(lengths.sum())),
        )
        return list(self.run(batch).split([len(p) for p in pieces]))

    def decode(self, tokens: torch.Tensor, rows: Slots) -> torch.Tensor:
        batch = ForwardBatch(
            token_ids=tokens,
            num_decode=len(tokens),
            decode=rows,
            prefill=NO_SLOTS,
            cu_seqlens=torch.zeros(1, dtype=torch.int32),
            output_rows=torch.arange(len(tokens)),
        )
        return self.run(batch)

    def run(self, batch: ForwardBatch) -> torch.Tensor:
        with torch.inference_mode():
            return self.model.logits(self.model.forward(batch, self.pool.layers))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("form", list(GOLDEN))
def test_golden_outputs_of_the_authors_code(form: str, backend: str) -> None:
    location = find_checkpoint(str(GOLDEN[form]))
    config = read_model_config(location)
    model = Longhorn(
        config,
        read_weights(location, config),
        load_kernels(backend),
        device=CPU,
        dtype=torch.float32,
        state_dtype=torch.float32,
    )
    expected = load_file(DATA / form / "expected.safetensors")
    harness = Harness(model)
    ids, continuation = expected["input_ids"], expected["continuation"]
    logits = torch.stack(harness.prefill(list(ids), slots([3, 1], fresh=True)))
    assert relative(logits, expected["logits"]) < 1e-5
    for i, slot in enumerate((3, 1)):
        for number, layer in enumerate(harness.pool.snapshot(slot)):
            assert relative(layer["h"], expected[f"layer{number}.ssm"][i]) < 1e-5
            # The authors keep W inputs, of which the oldest is never used again.
            assert relative(layer["conv"], expected[f"layer{number}.conv"][i][:, 1:]) < 1e-5
    steps = [logits[:, -1]]
    for t in range(continuation.shape[1]):
        steps.append(harness.decode(continuation[:, t].contiguous(), slots([3, 1])))
    assert relative(torch.stack(steps, dim=1), expected["step_logits"]) < 1e-5


VARIANTS = [
    {},
    {"conv_kernel": 2},
    {"state_size": 1},
    {"time_step_rank": 1},
    {"use_bias": True},
    {"use_conv_bias": False},
    {"rms_norm": False},
    {"tie_word_embeddings": False},
    {"residual_in_fp32": False},
    {"vocab_size": 40},
    {"num_hidden_layers": 1},
]


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_backends_agree_with_the_reference_on_output_and_state(backend: str, changes: dict[str, object]) -> None:
    ids = [torch.tensor([5, 9, 2, 30, 7]), torch.tensor([11])]
    outcomes = []
    for name in ("reference", backend):
        harness = Harness(make_model(name, tiny_config(**changes)))
        logits = torch.cat(harness.prefill(ids, slots([2, 0], fresh=True)))
        after = harness.decode(torch.tensor([3, 4]), slots([2, 0]))
        outcomes.append((torch.cat([logits, after]), harness.pool.snapshot(2), harness.pool.snapshot(0)))
    assert relative(outcomes[1][0], outcomes[0][0]) < 1e-5
    for state, expected in zip(outcomes[1][1:], outcomes[0][1:], strict=True):
        for layer, wanted in zip(state, expected, strict=True):
            for name in wanted:
                assert relative(layer[name], wanted[name]) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_split_anywhere_equals_whole(backend: str) -> None:
    tokens = torch.arange(7, 16)
    whole = Harness(make_model(backend))
    expected = whole.prefill([tokens], slots([1], fresh=True))[0]
    state = whole.pool.snapshot(1)
    for cut in range(1, len(tokens)):
        harness = Harness(make_model(backend))
        first = harness.prefill([tokens[:cut]], slots([1], fresh=True))[0]
        second = harness.prefill([tokens[cut:]], slots([1]))[0]
        assert relative(torch.cat([first, second]), expected) < 2e-6
        for layer, wanted in zip(harness.pool.snapshot(1), state, strict=True):
            for name in wanted:
                assert relative(layer[name], wanted[name]) < 2e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_teacher_forced_decode_equals_full_forward(backend: str) -> None:
    tokens = torch.arange(3, 11)
    harness = Harness(make_model(backend))
    whole = harness.prefill([tokens], slots([0], fresh=True))[0]
    first = harness.decode(tokens[:1], slots([3], fresh=True))
    rest = [harness.decode(tokens[t : t + 1], slots([3])) for t in range(1, len(tokens))]
    assert relative(torch.cat([first, *rest]), whole) < 2e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_alone_equals_among_63_neighbours(backend: str) -> None:
    model = make_model(backend)
    alone = Harness(model, num_slots=1)
    prompt = torch.tensor([8, 1, 30])
    alone.prefill([prompt], slots([0], fresh=True))
    expected = alone.decode(torch.tensor([5]), slots([0]))

    crowd = Harness(model, num_slots=64)
    prompts = [torch.tensor([(i * 7 + j) % 37 for j in range(1 + i % 4)]) for i in range(64)]
    prompts[41] = prompt
    crowd.prefill(prompts, slots(list(range(64)), fresh=True))
    tokens = torch.arange(64) % 37
    tokens[41] = 5
    logits = crowd.decode(tokens, slots(list(range(64))))
    assert relative(logits[41:42], expected) < 2e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fresh_sequence_ignores_what_its_slot_held(backend: str) -> None:
    model = make_model(backend)
    clean, poisoned = Harness(model), Harness(model)
    for layer in clean.pool.layers:
        for view in layer.values():
            view.zero_()
    tokens = torch.tensor([4, 4, 17])
    a = clean.prefill([tokens], slots([2], fresh=True))[0]
    b = poisoned.prefill([tokens], slots([2], fresh=True))[0]
    assert torch.equal(a, b)
    assert torch.equal(clean.decode(tokens[:1], slots([2])), poisoned.decode(tokens[:1], slots([2])))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_copied_and_a_restored_slot_continue_identically(backend: str) -> None:
    harness = Harness(make_model(backend))
    harness.prefill([torch.tensor([8, 1, 30])], slots([0], fresh=True))
    harness.pool.copy(0, 3)
    harness.pool.restore(2, harness.pool.snapshot(0))
    token = torch.tensor([5])
    expected = harness.decode(token, slots([0]))
    assert torch.equal(harness.decode(token, slots([3])), expected)
    assert torch.equal(harness.decode(token, slots([2])), expected)
    # A different destination is a fork: the source stays where it was.
    forked = harness.decode(token, slots([3], dst=[1]))
    assert torch.equal(harness.decode(token, slots([3])), forked)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_snapshot_moves_between_backends(backend: str) -> None:
    source, target = Harness(make_model(backend)), Harness(make_model("reference"))
    source.prefill([torch.tensor([8, 1, 30])], slots([0], fresh=True))
    target.pool.restore(1, source.pool.snapshot(0))
    token = torch.tensor([5])
    assert relative(target.decode(token, slots([1])), source.decode(token, slots([0]))) < 2e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_pad_rows_are_harmless(backend: str) -> None:
    model = make_model(backend)
    plain, padded = Harness(model), Harness(model)
    prompt, token = torch.tensor([8, 1, 30]), torch.tensor([5])
    plain.prefill([prompt], slots([1], fresh=True))
    padded.prefill([torch.tensor([3]), prompt, prompt], slots([PAD_SLOT, 1, PAD_SLOT], fresh=True))
    before = [padded.pool.snapshot(slot) for slot in (0, 2, 3)]
    expected = plain.decode(token, slots([1]))
    logits = padded.decode(torch.tensor([9, 5, 2]), slots([PAD_SLOT, 1, PAD_SLOT]))
    assert relative(logits[1:2], expected) < 2e-6
    assert torch.isfinite(logits).all()
    for slot, saved in zip((0, 2, 3), before, strict=True):
        for layer, wanted in zip(padded.pool.snapshot(slot), saved, strict=True):
            assert all(torch.equal(layer[n].nan_to_num(7), wanted[n].nan_to_num(7)) for n in wanted)


def test_a_batch_that_wants_no_output_still_advances_the_state() -> None:
    model = make_model("cpu")
    harness, expected = Harness(model), Harness(model)
    tokens = torch.tensor([8, 1, 30])
    expected.prefill([tokens], slots([0], fresh=True))
    batch = ForwardBatch(
        token_ids=tokens,
        num_decode=0,
        decode=NO_SLOTS,
        prefill=slots([0], fresh=True),
        cu_seqlens=torch.tensor([0, 3], dtype=torch.int32),
        output_rows=torch.zeros(0, dtype=torch.int64),
    )
    with torch.inference_mode():
        assert model.forward(batch, harness.pool.layers).shape == (0, 12)
    token = torch.tensor([5])
    assert torch.equal(harness.decode(token, slots([0])), expected.decode(token, slots([0])))
