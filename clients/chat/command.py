"""The command `remuda chat`: its flags. What it does is imported when it is called, as that takes a moment."""

from typing import Annotated, Any, Final

from cyclopts import App, Group, Parameter

from remuda.clients.errors import ClientError, InvalidArgumentError
from remuda.clients.keys import KEY_ENVIRONMENT
from remuda.clients.settings import DEFAULT_URL

EXIT_FAILED, EXIT_USAGE = 1, 2
_SAMPLING: Final = Group.create_ordered("Sampling")

# Its help stands in server/cli.py, which mounts it by its path.
app = App(name="chat", result_action="return_value")


def _whole(kind: Any, tokens: Any) -> int:
    """cyclopts would round 1.5 to 2."""
    try:
        return int(tokens[0].value)
    except ValueError as error:
        raise ValueError(f"{tokens[0].value[:40]!r} is not a whole number") from error


@app.default
def chat(
    *,
    url: Annotated[str, Parameter(help="The server; any that is OpenAI-compatible.")] = DEFAULT_URL,
    model: Annotated[str | None, Parameter(help="The model's name; by default the server's first.")] = None,
    system: Annotated[str | None, Parameter(help="The system message.")] = None,
    prompt: Annotated[
        str | None,
        Parameter(
            name=["--prompt", "-p"],
            help="Ask this alone and leave. Without a terminal the question is read from standard input.",
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        Parameter(
            show_default=False,
            help=f"Others on the machine see it in `ps`: prefer {KEY_ENVIRONMENT} in the environment.",
        ),
    ] = None,
    temperature: Annotated[float | None, Parameter(group=_SAMPLING, help="0 is greedy.")] = None,
    top_p: Annotated[
        float | None, Parameter(group=_SAMPLING, help="Keep the likeliest tokens of this mass.")
    ] = None,
    top_k: Annotated[int | None, Parameter(group=_SAMPLING, converter=_whole, help="Keep so many tokens.")] = None,
    min_p: Annotated[
        float | None, Parameter(group=_SAMPLING, help="Leave out tokens below this share of the likeliest.")
    ] = None,
    max_tokens: Annotated[
        int | None, Parameter(group=_SAMPLING, converter=_whole, help="Most tokens of an answer.")
    ] = None,
    seed: Annotated[int | None, Parameter(group=_SAMPLING, converter=_whole, help="By default random.")] = None,
    stop: Annotated[
        tuple[str, ...],
        Parameter(group=_SAMPLING, negative=(), show_default=False, help="End at this text; repeat for more."),
    ] = (),
) -> int:
    """Chat with a served model in the terminal."""
    from remuda.clients.chat.one_shot import notify
    from remuda.clients.chat.start import start

    given = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "max_tokens": max_tokens,
        "seed": seed,
        "stop": list(stop) or None,
    }
    params = {name: value for name, value in given.items() if value is not None}
    try:
        return start(url, api_key, model, system, prompt, params)
    except InvalidArgumentError as error:
        notify(str(error))
        return EXIT_USAGE
    except ClientError as error:
        notify(str(error))
        return EXIT_FAILED
