"""The command line: `remuda serve`, `convert`, `generate`. A wrong value is one line on stderr; exit 2."""

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.validators import Number

from remuda.engine.config import Backend, Device, Dtype, EngineConfig
from remuda.engine.errors import CheckpointError, ConfigError, InvalidRequestError, RemudaError
from remuda.engine.sampling_params import SamplingParams
from remuda.server.cli_safety import SafetyFlags
from remuda.server.sizes import parse_bytes, parse_whole

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

app = App(
    name="remuda",
    help="Serve recurrent language models over an OpenAI-compatible HTTP API.",
    version=lambda: version("remuda"),
    result_action="return_value",
)

# Imported when it is called: the other commands do without it.
app.command(
    "remuda.clients.load.command:app", name="load", help="Load-test a server, or show what long contexts cost it."
)

_HTTP = Group.create_ordered("HTTP")
_MODEL = Group.create_ordered("Model and device")
_CAPACITY = Group.create_ordered("Memory and batching")
_SAMPLING = Group.create_ordered("Sampling")

# cyclopts would round 1.5 to 2.
_WHOLE = Parameter(converter=lambda type_, tokens: parse_whole(tokens[0].value))

LogLevel = Literal["debug", "info", "warning", "error"]
Model = Annotated[
    str,
    Parameter(
        help="`demo`, a checkpoint directory, a training checkpoint `.pt`, or a hub repository `owner/name`."
    ),
]
_Device = Annotated[Device, Parameter(group=_MODEL, help="Where the model runs.")]
_Backend = Annotated[Backend, Parameter(group=_MODEL, help="Which kernels it runs on.")]
_Dtype = Annotated[Dtype, Parameter(group=_MODEL, help="Type of weights and activations.")]
_StateDtype = Annotated[Dtype, Parameter(group=_MODEL, help="Type of the recurrent states.")]
_Deterministic = Annotated[
    bool,
    Parameter(
        group=_MODEL,
        negative=(),
        help="The same bits for a request alone, in any batch, in any chunks; slower. GPU only.",
    ),
]
_Tokenizer = Annotated[
    str | None,
    Parameter(group=_MODEL, help="Tokenizer file, directory or hub repository, not the checkpoint's."),
]
_Threads = Annotated[
    int | None, _WHOLE, Parameter(group=_MODEL, help="CPU threads; by default one for each core.")
]
_Seed = Annotated[
    int | None,
    _WHOLE,
    Parameter(group=_MODEL, help="Seed of requests that bring none; by default a random one."),
]

_SAFETY = SafetyFlags()


@app.command
def serve(
    model: Model = "demo",
    /,
    *,
    host: Annotated[str, Parameter(group=_HTTP, help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int,
        _WHOLE,
        Parameter(group=_HTTP, validator=Number(gte=0, lte=65535), help="Port to listen on; 0: any free one."),
    ] = 8000,
    served_model_name: Annotated[
        tuple[str, ...],
        Parameter(
            group=_HTTP,
            negative=(),
            show_default=False,
            help="What requests call the model, by default its own name; repeat for more.",
        ),
    ] = (),
    max_body_mb: Annotated[
        float,
        Parameter(group=_HTTP, validator=Number(gt=0, lte=1024), help="Largest request body, in MiB."),
    ] = 8,
    api_workers: Annotated[
        int,
        _WHOLE,
        Parameter(group=_HTTP, validator=Number(gte=1, lte=64), help="Processes that serve HTTP."),
    ] = 1,
    drain_timeout: Annotated[
        float,
        Parameter(
            group=_HTTP,
            validator=Number(gte=0, lte=3600),
            help="Seconds that running requests may go on after SIGTERM.",
        ),
    ] = 15,
    max_stored_responses: Annotated[
        int,
        _WHOLE,
        Parameter(group=_HTTP, validator=Number(gte=0), help="Responses kept by /v1/responses; 0: none is kept."),
    ] = 10_000,
    max_stored_mb: Annotated[
        float,
        Parameter(group=_HTTP, validator=Number(gt=0, lte=2**20), help="Memory for kept responses, in MiB."),
    ] = 256,
    tool_call_parser: Annotated[
        Literal["hermes", "llama3_json", "none"],
        Parameter(group=_HTTP, help="How the model writes calls of tools; none: its own are not looked for."),
    ] = "hermes",
    log_level: Annotated[LogLevel, Parameter(group=_HTTP, help="Least level that is logged.")] = "info",
    device: _Device = "auto",
    backend: _Backend = "auto",
    dtype: _Dtype = "auto",
    state_dtype: _StateDtype = "auto",
    deterministic: _Deterministic = False,
    tokenizer: _Tokenizer = None,
    seed: _Seed = None,
    num_threads: _Threads = None,
    num_slots: Annotated[
        int | None,
        _WHOLE,
        Parameter(group=_CAPACITY, help="Sequences that run at a time; by default what memory holds."),
    ] = None,
    state_memory: Annotated[
        int | None,
        _WHOLE,
        Parameter(
            group=_CAPACITY,
            metavar="SIZE",
            converter=lambda type_, tokens: parse_bytes(tokens[0].value),
            help="Memory for states instead of a number of slots: 512MiB, 2GiB, 1e9.",
        ),
    ] = None,
    max_batch_tokens: Annotated[int | None, _WHOLE, Parameter(group=_CAPACITY, help="Tokens of one step.")] = None,
    prefill_chunk: Annotated[
        int | None, _WHOLE, Parameter(group=_CAPACITY, help="Tokens of one prompt in one step.")
    ] = None,
    gpu_memory_utilization: Annotated[
        float,
        Parameter(
            group=_CAPACITY,
            validator=Number(gt=0, lte=1),
            help="Share of a GPU's memory that may be used, by this process and others.",
        ),
    ] = 0.9,
    max_queue: Annotated[
        int, _WHOLE, Parameter(group=_CAPACITY, help="Requests that may wait for a slot.")
    ] = 4096,
    safety: Annotated[SafetyFlags, Parameter(name="*")] = _SAFETY,
) -> int:
    """Serve a model over HTTP."""
    config = EngineConfig(
        model=model,
        tokenizer=tokenizer,
        device=device,
        backend=backend,
        dtype=dtype,
        state_dtype=state_dtype,
        deterministic=deterministic,
        num_slots=num_slots,
        state_memory=state_memory,
        max_batch_tokens=max_batch_tokens,
        prefill_chunk=prefill_chunk,
        max_queue=max_queue,
        gpu_memory_utilization=gpu_memory_utilization,
        seed=seed,
        num_threads=num_threads,
    )
    from remuda.server.options import ServeOptions
    from remuda.server.serve import run_server

    options = ServeOptions(
        host=host,
        port=port,
        served_model_names=served_model_name,
        log_level=log_level,
        max_body_bytes=int(max_body_mb * 2**20),
        num_api_workers=api_workers,
        drain_timeout_s=drain_timeout,
        access=safety.access_policy(),
        limits=safety.request_limits(),
        tls=safety.tls_files(),
        max_connections=safety.max_connections,
        log_format=safety.log_format,
        has_access_log=safety.access_log,
        otlp_endpoint=safety.otlp_endpoint,
        max_stored_responses=max_stored_responses,
        max_stored_bytes=int(max_stored_mb * 2**20),
        tool_call_parser=tool_call_parser,
    )
    return run_server(options, config)


@app.command
def convert(
    src: Annotated[str, Parameter(help="A checkpoint in any form that `serve` takes.")],
    dst: Annotated[Path, Parameter(help="The directory to write; it must not exist, or be empty.")],
    /,
    *,
    tokenizer: Annotated[str | None, Parameter(help="Tokenizer file, directory or hub repository.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        Parameter(help="Type of the weights. By default as they are."),
    ] = None,
) -> int:
    """Write a checkpoint in the native form: config.json, safetensors, tokenizer."""
    from remuda.server.offline import run_convert

    return run_convert(src, dst, tokenizer=tokenizer, dtype=dtype)


@app.command
def generate(
    model: Model,
    /,
    *,
    prompt: Annotated[str, Parameter(help="The text to continue, or with --chat the user's message.")],
    chat: Annotated[bool, Parameter(negative=(), help="Render the prompt by the chat template.")] = False,
    max_tokens: Annotated[int, _WHOLE, Parameter(group=_SAMPLING, help="Most new tokens.")] = 256,
    temperature: Annotated[float, Parameter(group=_SAMPLING, help="0 is greedy.")] = 1.0,
    top_p: Annotated[float, Parameter(group=_SAMPLING, help="Keep the likeliest tokens of this mass.")] = 1.0,
    top_k: Annotated[int, _WHOLE, Parameter(group=_SAMPLING, help="Keep so many tokens; 0: all.")] = 0,
    min_p: Annotated[
        float, Parameter(group=_SAMPLING, help="Leave out tokens below this share of the likeliest.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, Parameter(group=_SAMPLING, help="Above 1: discourage tokens seen so far.")
    ] = 1.0,
    stop: Annotated[
        tuple[str, ...],
        Parameter(group=_SAMPLING, negative=(), show_default=False, help="End at this text; repeat for more."),
    ] = (),
    ignore_eos: Annotated[
        bool, Parameter(group=_SAMPLING, negative=(), help="Go on past the end-of-sequence token.")
    ] = False,
    seed: Annotated[int | None, _WHOLE, Parameter(group=_SAMPLING, help="By default a random one.")] = None,
    device: _Device = "auto",
    backend: _Backend = "auto",
    dtype: _Dtype = "auto",
    state_dtype: _StateDtype = "auto",
    deterministic: _Deterministic = False,
    tokenizer: _Tokenizer = None,
    num_threads: _Threads = None,
) -> int:
    """Continue one prompt in this process, without a server, and stream it to the terminal."""
    config = EngineConfig(
        model=model,
        tokenizer=tokenizer,
        device=device,
        backend=backend,
        dtype=dtype,
        state_dtype=state_dtype,
        deterministic=deterministic,
        num_slots=1,
        num_threads=num_threads,
    )
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop,
        ignore_eos=ignore_eos,
        seed=seed,
    )
    from remuda.server.offline import run_generate

    return run_generate(config, prompt, params, is_chat=chat)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        result: Any = app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _complain(str(error), EXIT_USAGE)
    except (ConfigError, CheckpointError, InvalidRequestError) as error:
        return _complain(str(error), EXIT_USAGE)
    except RemudaError as error:
        return _complain(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else 0


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def _complain(message: str, exit_code: int) -> int:
    print(f"remuda: {' '.join(message.split())}", file=sys.stderr)
    return exit_code
