"""Makes checked options of the flags of `remuda load`, and what a result may show of them: never a key."""

import os
import re
import secrets
import sys
from dataclasses import replace
from typing import Any, Final

import msgspec

from remuda.clients.keys import KEY_ENVIRONMENT, KEY_RULE, is_key
from remuda.clients.load.errors import UsageError
from remuda.clients.load.flags import (
    LoadFlags,
    LongContextFlags,
    OutputFlags,
    PromptFlags,
    ServerFlags,
)
from remuda.clients.load.lengths import Lengths
from remuda.clients.load.options import (
    LoadOptions,
    LongContextOptions,
    OutputOptions,
    PromptOptions,
    RunOptions,
    ServerOptions,
)
from remuda.clients.load.target import base_url, http_parts
from remuda.clients.load.values import Sweep

# A name, and mostly a password, before the host of a URL.
_USER: Final = re.compile(r"(?<=://)[^/@\s]*(?=@)")
MAX_CONTEXT: Final = 1_000_000
# Short enough to be typed again.
_MAX_SEED: Final = 10**6
_Scalar = str | int | float | bool | None


def options_of(
    server: ServerFlags, load: LoadFlags, prompts: PromptFlags, long: LongContextFlags, output: OutputFlags
) -> RunOptions:
    """Raises UsageError for flags that contradict each other. Without a seed one is drawn, as settings say."""
    seed = secrets.randbelow(_MAX_SEED) if prompts.seed is None else _at_least_0(prompts.seed, "--seed")
    options = RunOptions(
        server=ServerOptions(
            url=server.url,
            model=server.model,
            endpoint=server.endpoint,
            metrics_url=server.metrics_url,
            timeout=server.timeout,
            key=_key(server.api_key or os.environ.get(KEY_ENVIRONMENT) or None),
        ),
        prompts=PromptOptions(
            prompt_tokens=prompts.prompt_tokens,
            output_tokens=prompts.output_tokens,
            is_text=prompts.text,
            prompt_file=prompts.prompt_file,
            is_whole_file=prompts.whole_file,
            sharegpt=prompts.sharegpt,
            vocab_size=prompts.vocab_size,
            ignore_eos=prompts.ignore_eos,
            temperature=prompts.temperature,
            extra=_extra(prompts.extra_body),
            seed=seed,
        ),
        load=LoadOptions(
            concurrency=load.concurrency,
            rates=load.rate,
            process=load.arrivals,
            sweep=load.sweep,
            num_requests=load.num_requests,
            duration=load.duration,
            ramp=load.ramp or 0.0,
            warmup=_at_least_0(load.warmup, "--warmup"),
            max_in_flight=load.max_in_flight,
            objective=load.slo,
            has_ceiling=load.ceiling,
        ),
        output=_output(output),
        long_context=_long(long),
        kv=(output.kv_layers, output.kv_width, output.kv_bytes),
        command=without_keys(sys.argv[1:]),
        settings=_settings(server, load, replace(prompts, seed=seed), long),
    )
    base_url(server.url)
    if server.metrics_url is not None:
        http_parts(server.metrics_url, "--metrics-url")
    options.check()
    return options


def without_keys(arguments: list[str]) -> tuple[str, ...]:
    """A command line as it may be shown: `--api-key` and `--api_key` without what they give, no users in URLs."""
    shown = []
    hides_next = False
    for argument in arguments:
        name, is_joined, _ = argument.partition("=")
        if hides_next:
            shown.append("***")
            hides_next = False
        elif name.replace("_", "-") == "--api-key":
            shown.append(f"{name}=***" if is_joined else name)
            hides_next = not is_joined
        else:
            shown.append(_without_user(argument))
    return tuple(shown)


def _without_user(text: str) -> str:
    return _USER.sub("***", text)


def _key(key: str | None) -> str | None:
    if key is not None and not is_key(key):
        raise UsageError(f"--api-key or {KEY_ENVIRONMENT}: {KEY_RULE}")
    return key


def _output(flags: OutputFlags) -> OutputOptions:
    directory = flags.out
    if directory is None:
        return OutputOptions(flags.json, flags.csv, flags.html)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {directory}: {error.strerror}") from error
    return OutputOptions(
        json=flags.json or directory / "load.json",
        csv=flags.csv or directory / "load.csv",
        html=flags.html or directory / "load.html",
    )


def _long(flags: LongContextFlags) -> LongContextOptions | None:
    if not flags.long_context:
        if flags != LongContextFlags():
            raise UsageError("--lengths, --sequences, --window, --settle and --rounds go with --long-context")
        return None
    if flags.lengths[-1] > MAX_CONTEXT:
        raise UsageError(f"--lengths: {flags.lengths[-1]} is above {MAX_CONTEXT}")
    return LongContextOptions(flags.lengths, flags.sequences, flags.settle, flags.window, flags.rounds)


def _extra(text: str | None) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text) if text is not None else {}
    except msgspec.DecodeError as error:
        raise UsageError(f"--extra-body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError("--extra-body is not a JSON object")
    return found


def _at_least_0(value: int, name: str) -> int:
    if value < 0:
        raise UsageError(f"{name} must be 0 or more, not {value}")
    return value


def _settings(*flags: ServerFlags | LoadFlags | PromptFlags | LongContextFlags) -> dict[str, _Scalar]:
    given = {name: value for group in flags for name, value in vars(group).items() if name != "api_key"}
    return {name: _shown(value) for name, value in given.items()}


def _shown(value: object) -> _Scalar:
    if isinstance(value, str):
        return _without_user(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Lengths):
        return str(value.a) if value.shape == "fixed" else f"{value.shape}:{value.a}:{value.b}"
    if isinstance(value, Sweep):
        return f"{value.of}={','.join(f'{v:g}' for v in value.values) or 'auto'}"
    if isinstance(value, dict):
        return ",".join(f"{name}={seconds:g}s" for name, seconds in value.items())
    if isinstance(value, tuple) and isinstance(value[0], float):
        return ":".join(f"{rate:g}" for rate in dict.fromkeys(value))
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)
