"""The offline engine on the demo checkpoint: the texts and the loss that the authors' code gives."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from remuda.engine import Engine, EngineConfig, SamplingParams
from remuda.engine.errors import CheckpointError, ConfigError, InvalidRequestError, UnhealthyStateError
from remuda.engine.grammar import Grammar
from remuda.engine.start import build_core
from remuda.engine.tokenizer import SpecialTokens
from remuda.engine.wire import SequenceOutput
from remuda.kernels.sample import reference as reference_sample

DATA = Path(__file__).parents[1] / "data" / "longhorn-stories"
EXPECTED = json.loads((DATA / "expected.json").read_text())


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    made = Engine("demo", backend="cpu", num_slots=64, seed=0)
    yield made
    assert made.core.num_free_slots == 64


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_greedy_texts_equal_those_of_the_authors_code(backend: str) -> None:
    tensors = load_file(DATA / "expected.safetensors")
    engine = Engine("demo", backend=backend, num_slots=3)
    texts = [case["prompt"] for case in EXPECTED["greedy"]]
    params = SamplingParams(temperature=0.0, max_tokens=120, ignore_eos=True, skip_special_tokens=False)
    for i, result in enumerate(engine.generate(texts, params)):
        assert result.prompt_token_ids == tensors[f"prompt{i}"].tolist()
        assert result.completions[0].token_ids == tensors[f"greedy{i}"].tolist()
        assert result.completions[0].text == EXPECTED["greedy"][i]["greedy"]
        assert result.completions[0].finish_reason == "length"


def test_validation_loss_on_the_offline_engine(engine: Engine) -> None:
    documents = [json.loads(line) for line in (DATA / "val.jsonl").read_text().splitlines()][::10]
    results = engine.generate(
        [document["text"] for document in documents], SamplingParams(max_tokens=0, prompt_logprobs=0)
    )
    for document, result in zip(documents, results, strict=True):
        assert result.prompt_logprobs is not None
        logprobs = [entry.logprob for entry in result.prompt_logprobs if entry is not None]
        assert len(logprobs) == document["tokens"]
        assert -math.fsum(logprobs) == pytest.approx(document["nll"], abs=1e-3)


def test_a_stream_is_the_same_text_in_pieces(engine: Engine) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=40)
    whole = engine.generate("Once upon a time", params)[0].completions[0].text
    pieces = list(engine.generate_stream("Once upon a time", params))
    assert len(pieces) > 20
    assert "".join(pieces) == whole


def test_a_stop_string_ends_the_text_before_it(engine: Engine) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=60)
    whole = engine.generate("Once upon a time", params)[0].completions[0].text
    stop = whole[20:31]
    stopped = engine.generate("Once upon a time", SamplingParams(temperature=0.0, max_tokens=60, stop=(stop,)))[0]
    assert stopped.completions[0].text == whole[: whole.index(stop)]
    assert stopped.completions[0].finish_reason == "stop"
    later = SamplingParams(temperature=0.0, max_tokens=60, stop=(stop,), min_tokens=60)
    assert engine.generate("Once upon a time", later)[0].completions[0].text == whole


def test_n_choices_and_their_logprobs(engine: Engine) -> None:
    result = engine.generate("Once", SamplingParams(n=3, seed=4, max_tokens=12, logprobs=2))[0]
    assert len({completion.text for completion in result.completions}) == 3
    for completion in result.completions:
        assert [entry.token for entry in completion.logprobs] == completion.token_ids
        assert all(len(entry.top) == 2 and entry.logprob <= 0 for entry in completion.logprobs)


def test_leaving_a_stream_frees_its_slot(engine: Engine) -> None:
    stream = engine.generate_stream("Once", SamplingParams(max_tokens=1000))
    next(stream)
    assert engine.core.num_free_slots == 63
    stream.close()
    assert engine.core.num_free_slots == 64


def test_open_streams_and_calls_beside_them_do_not_disturb_each_other(engine: Engine) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=20)
    expected = [engine.generate(text, params)[0].completions[0].text for text in ("Once", "The dog")]
    first, second = engine.generate_stream("Once", params), engine.generate_stream("The dog", params)
    texts = [next(first), next(second)]
    assert engine.generate("Once", params)[0].completions[0].text == expected[0]
    texts = [texts[0] + "".join(first), texts[1] + "".join(second)]
    assert texts == expected
    assert engine.core.num_free_slots == 64


def test_more_prompts_than_the_queue_holds() -> None:
    engine = Engine("demo", num_slots=2, max_queue=1)
    results = engine.generate(["a", "b", "c", "d", "e"], SamplingParams(max_tokens=2, ignore_eos=True))
    assert [len(result.completions[0].token_ids) for result in results] == [2] * 5


def test_a_mixture_of_prompts_names_the_odd_one(engine: Engine) -> None:
    params = SamplingParams(max_tokens=1)
    assert len(engine.generate(["Once", [1, 2]], params)) == 2  # type: ignore[list-item]
    assert engine.generate([np.int64(5), 6], params)[0].prompt_token_ids == [5, 6]  # type: ignore[list-item]
    with pytest.raises(InvalidRequestError, match="prompt 1 is neither text nor token ids, but int"):
        engine.generate(["Once", 5], params)  # type: ignore[list-item]


def test_a_bad_prompt_among_good_ones_leaves_nothing_running(engine: Engine) -> None:
    with pytest.raises(InvalidRequestError, match="2048 is outside the vocabulary"):
        engine.generate([[1, 2], [2048]])
    assert not engine.core.has_work
    with pytest.raises(InvalidRequestError, match="no tokens"):
        engine.generate([[]])
    with pytest.raises(ConfigError, match="2 sampling parameters were given for 1 prompts"):
        engine.generate("a", [SamplingParams(), SamplingParams()])


def test_a_state_gone_bad_is_an_error_and_not_a_text(engine: Engine) -> None:
    stream = engine.generate_stream("Once", SamplingParams(max_tokens=100))
    next(stream)
    for layer in engine.core._pool.layers:
        layer["h"].fill_(math.nan)
    with pytest.raises(UnhealthyStateError, match="not finite"):
        list(stream)
    assert engine.generate("Once", SamplingParams(max_tokens=3))[0].completions[0].finish_reason == "length"


def test_options_that_cannot_be_honoured() -> None:
    with pytest.raises(ConfigError, match="number_of_slots"):
        Engine("demo", number_of_slots=3)
    with pytest.raises(ConfigError, match="num_slots must be at least 1, not 0"):
        Engine("demo", num_slots=0)
    with pytest.raises(ConfigError, match="not both"):
        Engine(EngineConfig(), num_slots=3)
    with pytest.raises(ConfigError, match="device must be one of auto, cpu, cuda, not 'gpu'"):
        Engine("demo", device="gpu")
    with pytest.raises(ConfigError, match="state_dtype must be one of"):
        Engine("demo", backend="reference", state_dtype="int8")
    with pytest.raises(ConfigError, match=r"num_slots \(3\) or state_memory"):
        Engine("demo", num_slots=3, state_memory=10**9)
    with pytest.raises(ConfigError, match="num_threads is 4096"):
        Engine("demo", num_threads=4096)
    with pytest.raises(CheckpointError, match="no-such-model"):
        Engine("./no-such-model")


def test_sizes_follow_the_memory_that_is_given() -> None:
    engine = Engine("demo", state_memory=10 * 311_296 + 5)
    assert (engine.info.num_slots, engine.info.slot_bytes) == (10, 311_296)


def test_grammars(engine: Engine) -> None:
    grammars = [
        Grammar("regex", "[A-Z]{3}-[0-9]{2}"),
        Grammar("json_schema", '{"type": "boolean"}'),
        Grammar("grammar", 'start: "ok"'),
    ]
    params = [SamplingParams(grammar=grammar, seed=1, max_tokens=50) for grammar in grammars]
    found = [result.completions[0] for result in engine.generate(["Once", "Once", "Once"], params)]
    assert re.fullmatch("[A-Z]{3}-[0-9]{2}", found[0].text)
    assert found[1].text in ("true", "false")
    assert found[2].text == "ok"
    assert {completion.finish_reason for completion in found} == {"stop"}
    with pytest.raises(InvalidRequestError, match="grammar: "):
        engine.generate("Once", SamplingParams(grammar=Grammar("regex", "(")))


def test_a_stop_string_ends_a_sequence_to_which_the_same_step_brings_a_token_more() -> None:
    engine = Engine("demo", backend="cpu", num_slots=2)
    model = engine.core.runner._model
    model.backend = replace(model.backend, sample=reference_sample)
    special = SpecialTokens(engine.tokenizer.bos_token_id, engine.tokenizer.eos_token_ids)
    config = EngineConfig(num_slots=2, max_batch_tokens=16, prefill_chunk=8)
    engine.core = build_core(model, config, special=special, depth=1, grammars=engine.core.grammars)
    greedy = engine.generate("Once upon a time", SamplingParams(max_tokens=8, temperature=0.0))[0].completions[0]
    step, num_twice = engine.core.step, 0

    def checked() -> list[SequenceOutput]:
        nonlocal num_twice
        assert engine.core.has_work, "nothing is left to do, but it goes on"
        outputs = step()
        num_twice += len(outputs) > len({output.request_id for output in outputs})
        return outputs

    engine.core.step = checked  # type: ignore[method-assign]
    bound = SamplingParams(max_tokens=5, temperature=0.0, grammar=Grammar("regex", "[a-z ]+"))
    # The grammar joins at the step after that which completes the stop string, for one of these lengths.
    for length in (9, 17, 25, 33):
        for token in greedy.token_ids[2:6]:
            stop = engine.tokenizer.token_text(token)
            params = SamplingParams(max_tokens=40, temperature=0.0, stop=(stop,))
            result = engine.generate(["Once upon a time", [5] * length], [params, bound])[0].completions[0]
            assert result.finish_reason == "stop"
            assert greedy.text.startswith(result.text)
    assert num_twice
