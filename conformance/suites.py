"""The suites: which environment each runs in, and what it is told to run. Starts nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
WORK: Final = HERE.parent / "build" / "conformance"
OPENAI_SOURCE: Final = WORK / "openai-python-source"

# What the clients' own tests call models.
MODEL_NAMES: Final = (
    *("demo", "stories", "model"),
    *("gpt-6-astra", "gpt-3.5-turbo-instruct", "text-embedding-3-small"),
)


@dataclass(frozen=True)
class Suite:
    """environment: of `environments.py`; arguments: to pytest, or for `node` to its test runner.

    package: whose version the report shows, as it stands in the environment's list. directory: where it runs.
    """

    name: str
    environment: str
    package: str
    arguments: tuple[str, ...]
    is_in_ci: bool = False
    directory: Path = HERE


_OPENAI_FILES: Final = (
    *("test_completions.py", "chat/test_completions.py", "test_models.py"),
    *("test_responses.py", "test_embeddings.py"),
)

SUITES: Final = (
    Suite(
        "openai-python",
        "openai-python",
        "openai",
        (
            *("-o", "addopts=", "-k", "(create or TestModels or TestAsyncModels) and not delete"),
            *(f"tests/api_resources/{name}" for name in _OPENAI_FILES),
        ),
        is_in_ci=True,
        directory=OPENAI_SOURCE,
    ),
    Suite(
        "langchain",
        "langchain",
        "langchain-openai",
        (
            *("-o", "asyncio_mode=auto"),
            *("-o", "asyncio_default_test_loop_scope=session"),
            *("-o", "asyncio_default_fixture_loop_scope=session"),
            "langchain_suite.py",
        ),
        is_in_ci=True,
    ),
    Suite("ai-sdk", "node", "ai", ("ai-sdk.test.mjs",), is_in_ci=True, directory=HERE / "node"),
    Suite("openai-node", "node", "openai", ("openai.test.mjs",), is_in_ci=True, directory=HERE / "node"),
    Suite("pydantic-ai", "clients", "pydantic-ai-slim", ("pydantic_ai_suite.py",)),
    Suite("llm", "clients", "llm", ("llm_suite.py",)),
    Suite("litellm", "clients", "litellm", ("litellm_suite.py",)),
    Suite("lm-eval", "lm-eval", "lm_eval", ("lm_eval_suite.py",)),
)
