"""From flags to a chat: the client, the model, and whether it is one question or a session at a terminal."""

import io
import sys
from typing import Any

from rich.console import Console

from remuda.clients.chat.conversation import Conversation
from remuda.clients.chat.one_shot import ask_once
from remuda.clients.chat.served import connect
from remuda.clients.client import Client
from remuda.clients.errors import InvalidArgumentError


def start(
    url: str,
    api_key: str | None,
    model: str | None,
    system: str | None,
    prompt: str | None,
    params: dict[str, Any],
) -> int:
    """Chat; the exit code. Raises ClientError where it cannot begin."""
    # A character that the terminal or file cannot hold is no reason to break off.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    with Client(url, api_key=api_key) as client:
        question = _question(prompt)
        served = connect(client, model)
        conversation = Conversation(model=served.model, system=system, params=params)
        if question is not None:
            conversation.ask(question)
            return ask_once(served, conversation)
        # readline is loaded for a session alone.
        from remuda.clients.chat.session import ChatSession

        return ChatSession(served, conversation, Console(highlight=False)).run()


def _question(prompt: str | None) -> str | None:
    """What is to be asked once; None: a session. Raises InvalidArgumentError where it is empty or no text."""
    if prompt is None and sys.stdin.isatty() and sys.stdout.isatty():
        return None
    try:
        question = prompt if prompt is not None else sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"standard input is not text in {error.encoding}") from None
    if not question.strip():
        where = "standard input" if prompt is None else "--prompt"
        raise InvalidArgumentError(f"the question is empty: there is no text in {where}")
    return question
