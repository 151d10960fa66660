"""The flags of `remuda load`, in groups. What they mean together is checked in flag_options.py."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Group, Parameter, Token

from remuda.clients.keys import KEY_ENVIRONMENT
from remuda.clients.load.arrivals import Process
from remuda.clients.load.lengths import Lengths, parse_lengths
from remuda.clients.load.values import (
    Sweep,
    parse_count,
    parse_counts,
    parse_objective,
    parse_rates,
    parse_seconds,
    parse_sweep,
)

_SERVER = Group.create_ordered("Server")
_LOAD = Group.create_ordered("Load")
_PROMPTS = Group.create_ordered("Prompts")
_LONG = Group.create_ordered("Long context")
_OUTPUT = Group.create_ordered("Results")
_DEFAULT_PROMPT: Final = Lengths("fixed", 512, 512)


def _by(parse: Callable[[str], Any], metavar: str, group: Group, help_: str) -> Parameter:
    """A flag whose value `parse` reads; what it raises is a usage error of one line."""

    def convert(_: Any, tokens: tuple[Token, ...]) -> Any:
        return parse(tokens[0].value)

    # Without n_tokens cyclopts would look for a token for each field of a dataclass.
    return Parameter(
        group=group,
        help=help_,
        converter=convert,
        n_tokens=1,
        accepts_keys=False,
        negative=(),
        show_default=False,
        metavar=metavar,
    )


@dataclass(frozen=True)
class ServerFlags:
    """Who is loaded."""

    url: Annotated[str, Parameter(group=_SERVER, help="Of any OpenAI-compatible server.")] = (
        "http://127.0.0.1:8000"
    )
    model: Annotated[str | None, Parameter(group=_SERVER, help="By default the first of /v1/models.")] = None
    endpoint: Annotated[Literal["completions", "chat"], Parameter(group=_SERVER, help="What is asked.")] = (
        "completions"
    )
    api_key: Annotated[
        str | None, Parameter(group=_SERVER, help=f"Better in the environment, as {KEY_ENVIRONMENT}.")
    ] = field(default=None, repr=False)
    metrics_url: Annotated[str | None, Parameter(group=_SERVER, help="By default URL/metrics.")] = None
    timeout: Annotated[
        float | None,
        _by(parse_seconds, "TIME", _SERVER, "For one request; 10 minutes, with --long-context a day."),
    ] = None


@dataclass(frozen=True)
class LoadFlags:
    """How much at a time, and how long."""

    concurrency: Annotated[
        int | None, _by(parse_count, "N", _LOAD, "Closed loop: so many requests at a time; 8 by default.")
    ] = None
    rate: Annotated[
        tuple[float, float] | None,
        _by(parse_rates, "R", _LOAD, "Open loop: requests per second, or START:END over --duration."),
    ] = None
    arrivals: Annotated[Process, Parameter(group=_LOAD, help="Of an open loop.")] = "poisson"
    sweep: Annotated[
        Sweep | None,
        _by(
            parse_sweep,
            "SWEEP",
            _LOAD,
            "concurrency=1,2,4 or rate=1,2,4; =auto: doubled until the server is full.",
        ),
    ] = None
    num_requests: Annotated[int | None, _by(parse_count, "N", _LOAD, "Of each load.")] = None
    duration: Annotated[
        float | None, _by(parse_seconds, "TIME", _LOAD, "Of each load; 30 s unless --num-requests is given.")
    ] = None
    ramp: Annotated[float | None, _by(parse_seconds, "TIME", _LOAD, "Over which a load rises from nothing.")] = (
        None
    )
    warmup: Annotated[
        int,
        Parameter(
            group=_LOAD, help="Requests before the first load, or rounds of the shortest length, not counted."
        ),
    ] = 1
    max_in_flight: Annotated[
        int | None, _by(parse_count, "N", _LOAD, "Of an open loop; what waits for its turn is late by that.")
    ] = None
    slo: Annotated[
        dict[str, float] | None,
        _by(parse_objective, "SLO", _LOAD, "What a good request keeps, as ttft=500ms,itl=50ms,e2e=10s."),
    ] = None
    ceiling: Annotated[bool, Parameter(group=_LOAD, help="Measure first what this client can read.")] = True


@dataclass(frozen=True)
class PromptFlags:
    """What is asked."""

    prompt_tokens: Annotated[
        Lengths,
        _by(
            parse_lengths,
            "LENGTHS",
            _PROMPTS,
            "512 by default; or uniform:100:900, normal:512:100, lognormal:512:300.",
        ),
    ] = _DEFAULT_PROMPT
    output_tokens: Annotated[
        Lengths | None, _by(parse_lengths, "LENGTHS", _PROMPTS, "In the same forms; 128 by default.")
    ] = None
    text: Annotated[
        bool, Parameter(group=_PROMPTS, negative=(), help="Random words even where token ids can be sent.")
    ] = False
    prompt_file: Annotated[Path | None, Parameter(group=_PROMPTS, help="A text file, a prompt a line.")] = None
    whole_file: Annotated[
        bool, Parameter(group=_PROMPTS, negative=(), help="The whole --prompt-file is one prompt.")
    ] = False
    sharegpt: Annotated[Path | None, Parameter(group=_PROMPTS, help="A JSON file of conversations.")] = None
    vocab_size: Annotated[
        int | None, _by(parse_count, "N", _PROMPTS, "Of a server that has neither /info nor /tokenize.")
    ] = None
    ignore_eos: Annotated[
        bool | None, Parameter(group=_PROMPTS, help="Go on to --output-tokens; by default where it is known.")
    ] = None
    temperature: Annotated[float | None, Parameter(group=_PROMPTS, help="By default the server's own.")] = None
    extra_body: Annotated[str | None, Parameter(group=_PROMPTS, help="A JSON object of further fields.")] = None
    seed: Annotated[
        int | None, Parameter(group=_PROMPTS, help="Of prompts and arrivals; by default another one each run.")
    ] = None


@dataclass(frozen=True)
class LongContextFlags:
    """Contexts that grow."""

    long_context: Annotated[
        bool, Parameter(group=_LONG, negative=(), help="Sample gaps and memory at growing lengths of context.")
    ] = False
    lengths: Annotated[
        tuple[int, ...],
        _by(
            parse_counts, "LENGTHS", _LONG, "Prompts in tokens, up to 1M (k: thousand); 1k,4k,16k,64k by default."
        ),
    ] = (1_000, 4_000, 16_000, 64_000)
    sequences: Annotated[int, _by(parse_count, "N", _LONG, "That decode at a time; 16 by default.")] = 16
    window: Annotated[int, _by(parse_count, "N", _LONG, "Tokens of each that are sampled; 256 by default.")] = 256
    settle: Annotated[int, _by(parse_count, "N", _LONG, "Tokens of each before those; 8 by default.")] = 8
    rounds: Annotated[
        int, _by(parse_count, "N", _LONG, "Through all lengths, up and down in turns; 1 by default.")
    ] = 1


@dataclass(frozen=True)
class OutputFlags:
    """What is written beside the summary."""

    json: Annotated[Path | None, Parameter(group=_OUTPUT, help="Everything, as --compare reads it.")] = None
    csv: Annotated[Path | None, Parameter(group=_OUTPUT, help="A table.")] = None
    html: Annotated[Path | None, Parameter(group=_OUTPUT, help="A report with plots, in one file.")] = None
    out: Annotated[
        Path | None, Parameter(group=_OUTPUT, help="A directory for all three, load.json, load.csv and load.html.")
    ] = None
    kv_layers: Annotated[
        int | None, _by(parse_count, "N", _OUTPUT, "Layers of the Transformer in the report; from /info.")
    ] = None
    kv_width: Annotated[
        int | None, _by(parse_count, "N", _OUTPUT, "Its width of keys, heads by size; from /info.")
    ] = None
    kv_bytes: Annotated[int | None, _by(parse_count, "N", _OUTPUT, "Bytes of a value in its cache; 2.")] = None
