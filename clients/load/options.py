"""What a run is asked to do, checked. The flags of the command make it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from remuda.clients.load.arrivals import Process
from remuda.clients.load.errors import UsageError
from remuda.clients.load.lengths import Lengths
from remuda.clients.load.values import Sweep


@dataclass(frozen=True)
class ServerOptions:
    """Who is loaded. key: never written anywhere. timeout: seconds for one request."""

    url: str
    model: str | None = None
    endpoint: Literal["completions", "chat"] = "completions"
    metrics_url: str | None = None
    timeout: float | None = None
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class PromptOptions:
    """Of text, prompt_file and sharegpt one at most; without any, random ids where they can be sent."""

    prompt_tokens: Lengths
    output_tokens: Lengths | None
    is_text: bool = False
    prompt_file: Path | None = None
    is_whole_file: bool = False
    sharegpt: Path | None = None
    vocab_size: int | None = None
    ignore_eos: bool | None = None
    temperature: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class LoadOptions:
    """How much at a time. rates: at the start and at the end of the run."""

    concurrency: int | None = None
    rates: tuple[float, float] | None = None
    process: Process = "poisson"
    sweep: Sweep | None = None
    num_requests: int | None = None
    duration: float | None = None
    ramp: float = 0.0
    warmup: int = 0
    max_in_flight: int | None = None
    objective: dict[str, float] | None = None
    has_ceiling: bool = True


@dataclass(frozen=True)
class LongContextOptions:
    """As of `--long-context`; None of them is used without it."""

    lengths: tuple[int, ...]
    num_sequences: int
    settle: int
    window: int
    rounds: int


@dataclass(frozen=True)
class OutputOptions:
    """Files to write, None for those that are not wanted."""

    json: Path | None = None
    csv: Path | None = None
    html: Path | None = None


@dataclass(frozen=True)
class RunOptions:
    """All of it. command: the arguments that are written to the result, without keys."""

    server: ServerOptions
    prompts: PromptOptions
    load: LoadOptions
    output: OutputOptions
    long_context: LongContextOptions | None = None
    kv: tuple[int | None, int | None, int | None] = (None, None, None)
    command: tuple[str, ...] = ()
    settings: dict[str, str | int | float | bool | None] = field(default_factory=dict)

    def check(self) -> None:
        """Raise UsageError where options contradict each other."""
        load, prompts = self.load, self.prompts
        _at_most_one(
            {
                "--concurrency": load.concurrency is not None,
                "--rate": load.rates is not None,
                "--sweep": load.sweep is not None,
                "--long-context": self.long_context is not None,
            }
        )
        _at_most_one(
            {
                "--text": prompts.is_text,
                "--prompt-file": prompts.prompt_file is not None,
                "--sharegpt": prompts.sharegpt is not None,
                "--vocab-size": prompts.vocab_size is not None,
            }
        )
        is_open = load.rates is not None or (load.sweep is not None and load.sweep.of == "rate")
        if load.max_in_flight is not None and not is_open:
            raise UsageError("--max-in-flight goes with --rate or --sweep rate=…; a closed loop has --concurrency")
        if load.rates is not None and load.rates[0] != load.rates[1] and load.duration is None:
            raise UsageError("--rate START:END needs --duration, over which it rises")
        if load.rates is not None and load.rates[0] != load.rates[1] and load.ramp:
            raise UsageError("--rate START:END and --ramp both say how the rate rises: give one")
        if self.long_context is not None and (prompts.prompt_file or prompts.sharegpt):
            raise UsageError(
                "--long-context makes its own prompts: --prompt-file and --sharegpt do not go with it"
            )
        if self.server.endpoint == "chat" and prompts.vocab_size:
            raise UsageError("--vocab-size is for token ids, which --endpoint chat cannot send")
        for path in (self.output.json, self.output.csv, self.output.html):
            if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
                raise UsageError(f"cannot write {path}: it is a directory, or its directory is not there")


def _at_most_one(given: dict[str, bool]) -> None:
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise UsageError(f"{' and '.join(names)} do not go together")
