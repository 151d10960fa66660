"""What a request's choices hold: the prompt only where the answer is to show something of it."""

from typing import Any

import pytest

from remuda.engine.sampling_params import SamplingParams
from remuda.engine.tokenizer import TokenIdTokenizer
from remuda.server.generation import Generation
from remuda.server.prompts import Prompt


@pytest.mark.parametrize(
    ("params", "options", "is_kept"),
    [
        ({}, {}, False),
        ({"n": 2}, {}, False),
        ({}, {"echo": True}, True),
        ({}, {"keeps_token_ids": True}, True),
        ({"logprobs": 0}, {}, True),
        ({"prompt_logprobs": 0}, {}, True),
    ],
)
def test_prompts_are_let_go(params: dict[str, Any], options: dict[str, bool], is_kept: bool) -> None:
    prompts = [Prompt([1, 2, 3]), Prompt([4])]
    generation = Generation(prompts, SamplingParams(**params), TokenIdTokenizer(), **options)
    assert generation.hand_over_prompts() == [[1, 2, 3], [4]]
    assert list(generation.prompts) == (prompts if is_kept else [])
    assert generation.usage()["prompt_tokens"] == 4
