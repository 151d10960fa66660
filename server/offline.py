"""The commands that need no server, `remuda convert` and `remuda generate`. They import torch when called."""

import os
import sys
from itertools import chain
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import Progress

from remuda.engine.chat_template import ChatTemplate
from remuda.engine.checkpoint.find import find_checkpoint
from remuda.engine.config import EngineConfig
from remuda.engine.cores import engine_environment
from remuda.engine.errors import ConfigError
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.tokenizer import TokenIdTokenizer, Tokenizer
from remuda.engine.wire import EngineLoading
from remuda.server.loading_display import LoadingDisplay

_MB: Final = 1_000_000
# What a shell reports of a command that SIGPIPE ends.
EXIT_BROKEN_PIPE: Final = 128 + 13


def run_convert(src: str, dst: Path, *, tokenizer: str | None, dtype: str | None) -> int:
    """Convert, with a bar on a terminal, and say what was written."""
    from remuda.engine.checkpoint.convert import convert

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading weights", total=1.0)
        summary = convert(
            src,
            dst,
            tokenizer=tokenizer,
            dtype=dtype,
            progress=lambda fraction: progress.update(task, completed=fraction),
        )
    text = "with its tokenizer" if summary.has_tokenizer else "without a tokenizer: it serves token ids only"
    if summary.has_chat_template:
        text += " and chat template"
    print(
        f"remuda: wrote {summary.num_parameters:,} parameters ({summary.num_bytes / _MB:.1f} MB, "
        f"{summary.num_shards} file{'s' if summary.num_shards > 1 else ''}) to {summary.directory}, {text}",
        file=sys.stderr,
    )
    return 0


def run_generate(config: EngineConfig, prompt: str, params: SamplingParams, *, is_chat: bool) -> int:
    """Continue the prompt and write the text to stdout as it comes, until its reader has gone."""
    os.environ.update(engine_environment())
    from remuda.engine.engine import Engine

    find_checkpoint(config.model)
    with LoadingDisplay(sys.stderr) as display:

        def show(stage: str, fraction: float) -> None:
            display.update(EngineLoading(stage, fraction))

        engine = Engine(config, progress=show)
    text_or_ids: str | list[int] = _chat_ids(engine.tokenizer, prompt) if is_chat else prompt
    try:
        for text in chain(engine.generate_stream(text_or_ids, params), "\n"):
            sys.stdout.write(text)
            sys.stdout.flush()
    except BrokenPipeError:
        # What is still in the buffer is written at exit; there it must not fail again.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    return 0


def _chat_ids(tokenizer: Tokenizer | TokenIdTokenizer, message: str) -> list[int]:
    if tokenizer.chat_template is None:
        raise ConfigError("this model has no chat template; leave out --chat")
    template = ChatTemplate(tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token)
    rendered = template.render([{"role": "user", "content": message}])
    return tokenizer.encode(rendered, add_bos=False)
