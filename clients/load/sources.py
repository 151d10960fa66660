"""Chooses the source of prompts for what was asked and what the server can take."""

import numpy as np

from remuda.clients.load.bodies import BodyForm
from remuda.clients.load.lengths import Lengths
from remuda.clients.load.options import PromptOptions, RunOptions
from remuda.clients.load.prompts import Listed, PromptSource, RandomIds, RandomWords, read_sharegpt, read_texts
from remuda.clients.load.target import Found

DEFAULT_OUTPUT = Lengths("fixed", 128, 128)
# Sequences of a long context are cut off after their window; until then none may end.
LONG_CONTEXT_OUTPUT = Lengths("fixed", 65_536, 65_536)


def body_form(options: RunOptions, found: Found) -> BodyForm:
    """What goes into each body beside the prompt."""
    prompts = options.prompts
    return BodyForm(
        model=found.target.model,
        is_chat=options.server.endpoint == "chat",
        is_ignore_eos=found.has_ignore_eos if prompts.ignore_eos is None else prompts.ignore_eos,
        has_running_usage=found.has_running_usage,
        temperature=prompts.temperature,
        extra=prompts.extra,
    )


def prompt_source(
    options: PromptOptions, found: Found, random: np.random.Generator, *, is_chat: bool
) -> PromptSource:
    """Raises UsageError for a file that cannot be used."""
    output = options.output_tokens or DEFAULT_OUTPUT
    if options.prompt_file is not None:
        return Listed(read_texts(options.prompt_file, is_whole=options.is_whole_file), output, random)
    if options.sharegpt is not None:
        rows = read_sharegpt(options.sharegpt, is_chat=is_chat)
        if options.output_tokens is not None:
            rows = [type(row)(row.content, row.prompt_tokens, 0) for row in rows]
        return Listed(rows, output, random)
    return random_source(options, found, random, options.prompt_tokens, output, is_chat=is_chat)


def random_source(
    options: PromptOptions,
    found: Found,
    random: np.random.Generator,
    prompt_tokens: Lengths,
    output: Lengths,
    *,
    is_chat: bool,
) -> PromptSource:
    """Token ids, or words where the endpoint or the server has no ids, or text is asked for."""
    if is_chat or options.is_text or found.ids is None:
        return RandomWords(found.tokens_per_word, prompt_tokens, output, random)
    return RandomIds(found.ids, prompt_tokens, output, random)
