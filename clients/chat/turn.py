"""One answer: its stream is read into a view, timed, and ended by Ctrl-C or an error without losing what came."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from remuda.clients.answers import Usage
from remuda.clients.chat.conversation import Conversation
from remuda.clients.chat.interrupts import Interrupts
from remuda.clients.chat.sanitize import clean
from remuda.clients.chat.served import NO_TEMPLATE_NOTICE, AnswerStream, Served
from remuda.clients.chat.terminal import without_echo
from remuda.clients.errors import ClientError


class View(Protocol):
    """Where an answer is shown. Text comes sanitised."""

    def add(self, text: str) -> None:
        """New text."""

    def show_status(self, stats: "TurnStats") -> None:
        """How far the answer is."""


@dataclass
class TurnStats:
    """Times in seconds, from when the question was sent.

    num_pieces: events with text, which are about as many as tokens. usage: exact, where the server tells.
    """

    first_text: float | None = None
    last_text: float | None = None
    num_pieces: int = 0
    usage: Usage | None = None
    finish_reason: str | None = None

    @property
    def num_tokens(self) -> int:
        """Of the answer; without usage, of pieces."""
        return self.usage.completion_tokens if self.usage is not None else self.num_pieces

    @property
    def tokens_per_s(self) -> float | None:
        """After the first one."""
        if self.first_text is None or self.last_text is None or self.num_tokens < 2:
            return None
        elapsed = self.last_text - self.first_text
        return (self.num_tokens - 1) / elapsed if elapsed > 0 else None

    @property
    def context(self) -> int | None:
        """Tokens of the conversation so far, the answer included."""
        return None if self.usage is None else self.usage.prompt_tokens + self.usage.completion_tokens


@dataclass
class Turn:
    """How an answer has ended; `text` is as the model wrote it."""

    text: str
    stats: TurnStats
    error: ClientError | None = None
    is_stopped: bool = False


def answer(
    served: Served,
    conversation: Conversation,
    new_view: Callable[[], contextlib.AbstractContextManager[View]],
    interrupts: Interrupts,
    notify: Callable[[str], None],
) -> Turn:
    """The answer to the last message. Where the model proves to have no chat template, its completion."""
    turn = _shown(served, conversation, new_view, interrupts)
    if served.falls_back(turn.error):
        notify(NO_TEMPLATE_NOTICE)
        turn = _shown(served, conversation, new_view, interrupts)
    return turn


def _shown(
    served: Served,
    conversation: Conversation,
    new_view: Callable[[], contextlib.AbstractContextManager[View]],
    interrupts: Interrupts,
) -> Turn:
    try:
        stream = served.ask(conversation)
    except ClientError as error:
        return Turn("", TurnStats(), error)
    with without_echo(), interrupts.watching(), new_view() as view:
        return run_turn(stream, view, interrupts)


def run_turn(
    stream: AnswerStream, view: View, interrupts: Interrupts, clock: Callable[[], float] = time.monotonic
) -> Turn:
    """Read the stream to its end, or to the first interrupt, which closes it."""
    stats, start = TurnStats(), clock()
    error: ClientError | None = None
    is_stopped = False
    view.show_status(stats)
    try:
        while True:
            with interrupts.waiting():
                chunk = next(stream, None)
            if chunk is None:
                break
            for _, _, reason in chunk.pieces():
                stats.finish_reason = reason or stats.finish_reason
            stats.usage = chunk.usage or stats.usage
            if chunk.text:
                stats.last_text = clock() - start
                stats.first_text = stats.last_text if stats.first_text is None else stats.first_text
                stats.num_pieces += 1
                view.add(clean(chunk.text))
            view.show_status(stats)
    except ClientError as caught:
        error = caught
    except KeyboardInterrupt:
        is_stopped = True
    finally:
        stream.close()
    return Turn(stream.received.text, stats, error, is_stopped)
