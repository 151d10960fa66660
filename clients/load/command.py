"""`remuda load`: the command. It needs the extra `load`; the modules that use it are imported when it runs."""

import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cyclopts import App, Parameter
from rich.console import Console

from remuda.clients.load.errors import LoadError, UsageError
from remuda.clients.load.flags import LoadFlags, LongContextFlags, OutputFlags, PromptFlags, ServerFlags
from remuda.clients.load.options import OutputOptions, RunOptions
from remuda.clients.report.results import LoadResult
from remuda.clients.report.units import printable

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

app = App(name="load", help="Load-test an OpenAI-compatible server, or show what long contexts cost it.")

_SERVER, _LOAD, _PROMPTS, _LONG, _OUTPUT = (
    ServerFlags(),
    LoadFlags(),
    PromptFlags(),
    LongContextFlags(),
    OutputFlags(),
)
_FLAT: Final = Parameter(name="*")


@app.default
def load(
    *,
    compare: Annotated[
        tuple[Path, ...],
        Parameter(
            consume_multiple=True, negative=(), show_default=False, help="Lay results side by side; no load."
        ),
    ] = (),
    server: Annotated[ServerFlags, _FLAT] = _SERVER,
    load: Annotated[LoadFlags, _FLAT] = _LOAD,
    prompts: Annotated[PromptFlags, _FLAT] = _PROMPTS,
    long: Annotated[LongContextFlags, _FLAT] = _LONG,
    output: Annotated[OutputFlags, _FLAT] = _OUTPUT,
) -> int:
    """Load-test an OpenAI-compatible server, or show what long contexts cost it."""
    try:
        _check_extra()
        if compare:
            return _compare(compare, output.html)
        from remuda.clients.load.flag_options import options_of

        return _run(options_of(server, load, prompts, long, output))
    except UsageError as error:
        return _complain(error, EXIT_USAGE)
    except LoadError as error:
        return _complain(error, EXIT_FAILED)
    except OSError as error:
        # Of a file to be written: what goes wrong with the server is in the result.
        return _complain(LoadError(f"cannot write {error.filename}: {error.strerror}"), EXIT_FAILED)


def _run(options: RunOptions) -> int:
    from remuda.clients.load.run import run_load
    from remuda.clients.report.kv import kv_shape
    from remuda.clients.report.summary import print_summary

    ended = run_load(options, Console(stderr=True))
    result = msgspec.structs.replace(ended.result, kv=kv_shape(ended.result.target.info, *options.kv))
    _write(result, options.output)
    print_summary(result, Console())
    if ended.is_interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if ended.is_failed else 0


def _write(result: LoadResult, output: OutputOptions) -> None:
    """JSON first: of all files it has everything."""
    from remuda.clients.report.results_file import write_result
    from remuda.clients.report.tables import write_csv

    if output.json is not None:
        write_result(result, output.json)
    if output.csv is not None:
        write_csv(result, output.csv)
    if output.html is not None:
        # It draws with matplotlib, which takes a second to import.
        from remuda.clients.report.page import write_html

        write_html([result], output.html)


def _compare(paths: tuple[Path, ...], html: Path | None) -> int:
    from remuda.clients.report.compare import print_comparison
    from remuda.clients.report.reading import ResultError, read_result

    if len(paths) < 2:
        raise UsageError("--compare needs two results or more")
    try:
        results = [read_result(path) for path in paths]
    except ResultError as error:
        raise UsageError(str(error)) from error
    print_comparison(results, Console())
    if html is not None:
        from remuda.clients.report.page import write_html

        write_html(results, html)
    return 0


def _check_extra() -> None:
    missing = [name for name in ("aiohttp", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise LoadError(f"{' and '.join(missing)} not installed: pip install 'remuda[load]'")


def _complain(error: LoadError, exit_code: int) -> int:
    print(f"remuda: {printable(' '.join(str(error).split()))}", file=sys.stderr)
    return exit_code
