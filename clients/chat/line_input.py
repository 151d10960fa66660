"""Messages from the keyboard: one line, or several, with a history in a file that only the user can read."""

import contextlib
import os
import readline
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

PROMPT: Final = "> "
MORE_PROMPT: Final = ". "
_QUOTES: Final = '"""'
_MAX_HISTORY: Final = 1000


def read_message(read_line: Callable[[str], str] = input) -> str:
    """One message. Raises EOFError and KeyboardInterrupt.

    A backslash at the end of a line goes on with the next; after a line that begins with three quotes, all is
    taken up to three quotes at the end of a line.
    """
    line = read_line(PROMPT)
    if line.startswith(_QUOTES):
        return _read_quoted(line.removeprefix(_QUOTES), read_line)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1].removesuffix("\\")
        lines.append(read_line(MORE_PROMPT))
    return "\n".join(lines)


def _read_quoted(first: str, read_line: Callable[[str], str]) -> str:
    lines = [first]
    while not lines[-1].rstrip().endswith(_QUOTES):
        lines.append(read_line(MORE_PROMPT))
    lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
    return "\n".join(lines).strip("\n")


def history_path() -> Path:
    """In the user's state directory, as XDG has it."""
    given = os.environ.get("XDG_STATE_HOME", "")
    # XDG: a relative path is to be ignored.
    base = Path(given) if Path(given).is_absolute() else Path.home() / ".local" / "state"
    return base / "remuda" / "chat_history"


@contextlib.contextmanager
def line_history(path: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Lines of earlier sessions at the arrow keys, and those of this one kept for later."""
    readline.clear_history()
    readline.set_history_length(_MAX_HISTORY)
    try:
        # Prompts are private.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.read_history_file(path)
    except OSError as error:
        warn(f"no history is kept: {path}: {error.strerror}")
        yield
        return
    try:
        yield
    finally:
        try:
            readline.write_history_file(path)
        except OSError as error:
            warn(f"the history was not written: {path}: {error.strerror}")
