"""Prompts of many tokens, whose bodies are larger than aiohttp likes to send in one piece."""

from remuda.clients.load.options import LoadOptions, PromptOptions
from tests.clients.load.conftest import FakeServer, fixed, run


def test_a_prompt_of_several_megabytes(fake: FakeServer) -> None:
    prompts = PromptOptions(fixed(400_000), fixed(2), vocab_size=50_000)
    script = {"first": 0.01, "gap": 0.01}
    (stage,) = run(
        fake.url, LoadOptions(concurrency=1, num_requests=2), script=script, prompts=prompts
    ).result.stages
    assert (stage.num_failed, stage.prompt_tokens) == (0, 800_000)
    assert [len(body["prompt"]) for body in fake.log()["bodies"]] == [400_000] * 2
