"""What `/` commands mean: their names, their arguments, and `/params`. Carries nothing out."""

import shlex
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from remuda.clients.errors import ClientError

HELP: Final = {
    "/reset": "forget the conversation; the system message and the parameters stay",
    "/retry": "ask the last question again",
    "/save FILE": "write the conversation to a file",
    "/load FILE": "go on with a saved conversation",
    "/params [NAME=VALUE …]": "show or set fields of the requests, as temperature=0.5; NAME= unsets one",
    "/stats": "tokens and times of this session, and the size of the state",
    "/exit": "leave; so do Ctrl-D, and Ctrl-C twice",
    "/help": "this list",
}
_NAMES: Final = {usage.split()[0]: usage for usage in HELP}
# What the chat itself sends.
_RESERVED: Final = frozenset({"model", "messages", "prompt", "stream", "stream_options", "n", "echo", "tools"})


class CommandError(ClientError):
    """A command that cannot be meant."""


@dataclass(frozen=True)
class Command:
    """name: with its slash. argument: the rest of the line."""

    name: str
    argument: str


def parse_command(message: str) -> Command | None:
    """None where the message is for the model; `//` at its beginning stands for a slash. Raises CommandError."""
    if not message.startswith("/") or message.startswith("//"):
        return None
    name, _, argument = message.partition(" ")
    argument = argument.strip()
    if name not in _NAMES:
        raise CommandError(f"there is no command {name[:40]}; /help lists them, // begins a message with a slash")
    takes_file, takes_nothing = "FILE" in _NAMES[name], " " not in _NAMES[name]
    if takes_file and not argument:
        raise CommandError(f"{name} needs a file: {_NAMES[name]}")
    if takes_nothing and argument:
        raise CommandError(f"{name} takes nothing, not {argument[:40]!r}")
    return Command(name, argument)


def changed_params(params: dict[str, Any], argument: str) -> dict[str, Any]:
    """`params` with `name=value …` set; values are JSON, or else text. Raises CommandError."""
    changed = dict(params)
    try:
        words = shlex.split(argument)
    except ValueError as error:
        raise CommandError(f"/params: {error}") from None
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise CommandError(f"/params takes name=value, not {word[:40]!r}")
        if name in _RESERVED:
            raise CommandError(f"/params cannot set {name}, which the chat itself sends")
        if value:
            changed[name] = parse_value(value)
        else:
            changed.pop(name, None)
    return changed


def parse_value(text: str) -> Any:
    """JSON, or else the text itself."""
    try:
        return msgspec.json.decode(text)
    except msgspec.MsgspecError:
        return text
