"""One question, from `-p` or a pipe: the answer alone goes to stdout, everything else to stderr."""

import os
import sys
from collections.abc import Callable

from rich.console import Console

from remuda.clients.chat.conversation import Conversation
from remuda.clients.chat.interrupts import Interrupts
from remuda.clients.chat.sanitize import clean_line
from remuda.clients.chat.served import NO_TEMPLATE_NOTICE, Served
from remuda.clients.chat.turn import answer
from remuda.clients.chat.views import MarkdownView, PlainView
from remuda.clients.errors import InvalidArgumentError

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130


def ask_once(served: Served, conversation: Conversation) -> int:
    """Stream the answer to the last message; the exit code. Raises InvalidArgumentError for parameters."""
    if not served.has_chat_template:
        notify(NO_TEMPLATE_NOTICE)
    try:
        turn = answer(served, conversation, _view(), Interrupts(), notify)
    except BrokenPipeError:
        # Whoever read it has enough. Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    if isinstance(turn.error, InvalidArgumentError):
        raise turn.error
    if turn.error is not None:
        notify(str(turn.error))
        return EXIT_FAILED
    return EXIT_INTERRUPTED if turn.is_stopped else 0


def notify(message: str) -> None:
    """One line on stderr."""
    print(f"remuda: {clean_line(message)}", file=sys.stderr)


def _view() -> Callable[[], MarkdownView | PlainView]:
    console = Console(highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        return lambda: MarkdownView(console)
    return lambda: PlainView(sys.stdout)
