"""The chat at a terminal: messages, commands, answers. An error is a line, and the conversation stays."""

from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from remuda.clients.chat.conversation import Conversation, load, named_file
from remuda.clients.chat.interrupts import Interrupts
from remuda.clients.chat.line_input import history_path, line_history, read_message
from remuda.clients.chat.sanitize import clean, clean_line
from remuda.clients.chat.served import NO_TEMPLATE_NOTICE, Served
from remuda.clients.chat.slash import HELP, Command, CommandError, changed_params, parse_command
from remuda.clients.chat.status import Totals, megabytes, status_line
from remuda.clients.chat.turn import TurnStats, answer
from remuda.clients.chat.views import MarkdownView, PlainView
from remuda.clients.errors import ClientError

EXIT_INTERRUPTED: Final = 130


class ChatSession:
    """One run of the chat, with its conversation."""

    def __init__(self, served: Served, conversation: Conversation, console: Console) -> None:
        self._served = served
        self._conversation = conversation
        self._console = console
        self._interrupts = Interrupts()
        self._totals = Totals()
        # A question that got no text for an answer, and was taken back.
        self._unanswered: str | None = None

    def run(self) -> int:
        """Until the user leaves; the exit code."""
        self._greet()
        with line_history(history_path(), self._complain):
            was_interrupted = False
            while True:
                try:
                    message = read_message()
                except EOFError:
                    self._console.print()
                    return 0
                except KeyboardInterrupt:
                    self._console.print()
                    if was_interrupted:
                        return EXIT_INTERRUPTED
                    was_interrupted = True
                    self._note("Ctrl-C again, Ctrl-D or /exit leaves")
                    continue
                except UnicodeDecodeError as error:
                    self._complain(f"what was typed is not text in {error.encoding}")
                    message = ""
                was_interrupted = False
                if not self._handle(message):
                    return 0

    def _handle(self, message: str) -> bool:
        """Carry out a command or answer a message. False: leave."""
        if not message.strip():
            return True
        try:
            command = parse_command(message)
            if command is None:
                self._answer(message[1:] if message.startswith("//") else message)
                return True
            return self._obey(command)
        except ClientError as error:
            self._complain(str(error))
        return True

    def _obey(self, command: Command) -> bool:
        match command.name:
            case "/exit":
                return False
            case "/help":
                self._list([f"{usage:<24}{meaning}" for usage, meaning in HELP.items()])
            case "/reset":
                self._conversation.messages.clear()
                self._unanswered = None
                self._note("the conversation is forgotten")
            case "/retry":
                self._retry()
            case "/save":
                self._conversation.save(named_file(command.argument))
                self._note(f"saved, {len(self._conversation.messages)} messages")
            case "/load":
                self._load(named_file(command.argument))
            case "/params":
                self._conversation.params = changed_params(self._conversation.params, command.argument)
                self._list(
                    [f"{name} = {value!r}" for name, value in self._conversation.params.items()] or ["none"]
                )
            case "/stats":
                self._list(self._totals.lines(self._served.model, self._served.state_bytes))
        return True

    def _retry(self) -> None:
        prompt = self._unanswered or self._conversation.take_back()
        if prompt is None:
            raise CommandError("there is nothing to ask again")
        self._answer(prompt)

    def _load(self, path: Path) -> None:
        found = load(path)
        model = self._served.model
        if found.model != model:
            self._note(f"it was held with {found.model}, and goes on with {model}")
        found.model = model
        self._conversation, self._unanswered = found, None
        self._note(f"loaded, {len(found.messages)} messages")

    def _answer(self, prompt: str) -> None:
        self._conversation.ask(prompt)
        turn = answer(self._served, self._conversation, self._new_view, self._interrupts, self._note)
        self._conversation.end_turn(turn.text)
        self._unanswered = None if turn.text else prompt
        self._totals.add(turn)
        if turn.text or turn.is_stopped:
            self._note(self._status(turn.stats, is_stopped=turn.is_stopped))
        if turn.error is not None:
            self._complain(str(turn.error))

    def _new_view(self) -> MarkdownView | PlainView:
        if self._console.is_dumb_terminal:
            return PlainView(self._console.file)
        return MarkdownView(self._console, self._status)

    def _status(self, stats: TurnStats, *, is_stopped: bool = False) -> str:
        return status_line(stats, self._served.state_bytes, is_stopped=is_stopped)

    def _greet(self) -> None:
        info = self._served.info
        parts = [f"{self._served.model} at {self._served.client.url}"]
        if info is not None:
            parts.append(f"state {megabytes(info.slot_bytes)}, however long the conversation")
        self._note(" · ".join([*parts, "/help lists the commands"]))
        if not self._served.has_chat_template:
            self._note(NO_TEMPLATE_NOTICE)

    def _list(self, lines: list[str]) -> None:
        for line in lines:
            self._console.print(Text(clean(line)))

    def _note(self, message: str) -> None:
        self._console.print(Text(clean_line(message), style="dim"))

    def _complain(self, message: str) -> None:
        self._console.print(Text(f"error: {clean_line(message)}", style="red"))
