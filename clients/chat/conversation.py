"""A conversation and its parameters, and the file that it is saved in. Asks nobody."""

import contextlib
import os
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from remuda.clients.answers import UNREADABLE
from remuda.clients.errors import ClientError

SCHEMA: Final = "remuda.chat/1"
Role = Literal["system", "user", "assistant"]


class ConversationFileError(ClientError):
    """A file that cannot be read or written as a conversation."""


class _Form(msgspec.Struct):
    """Looked at first, so that no other JSON passes for a conversation."""

    schema: Literal["remuda.chat/1"]


class Message(msgspec.Struct, frozen=True):
    """What one side has said."""

    role: Role
    content: str


class Conversation(msgspec.Struct, kw_only=True):
    """params: fields of the requests, by name. messages: in turns, the user's first, without the system's."""

    model: str = ""
    system: str | None = None
    params: dict[str, Any] = {}
    messages: list[Message] = []

    def ask(self, prompt: str) -> None:
        """The user's turn."""
        self.messages.append(Message("user", prompt))

    def end_turn(self, answer: str) -> None:
        """The answer, whole or in part; without any text the question is taken back, too."""
        if answer:
            self.messages.append(Message("assistant", answer))
        else:
            self.messages.pop()

    def take_back(self) -> str | None:
        """Take back the last question with its answer; returns the question, None where there is none."""
        questions = [place for place, message in enumerate(self.messages) if message.role == "user"]
        if not questions:
            return None
        prompt = self.messages[questions[-1]].content
        del self.messages[questions[-1] :]
        return prompt

    def chat_messages(self) -> list[Message]:
        """Of a chat request."""
        system = [] if self.system is None else [Message("system", self.system)]
        return system + self.messages

    def transcript(self) -> str:
        """The prompt for a model without a chat template: all texts, the user's each on a line of its own."""
        text = ""
        for message in self.chat_messages():
            needs_break = message.role == "user" and text and not text.endswith("\n")
            text += ("\n" if needs_break else "") + message.content
        return text

    def save(self, path: Path) -> None:
        """Write it, whole or not at all. Raises ConversationFileError; what is no conversation is not replaced."""
        try:
            if path.exists():
                load(path)
            self._write(path)
        except OSError as error:
            raise ConversationFileError(f"cannot write {path}: {error.strerror}") from None
        except UnicodeEncodeError:
            reason = "the system message or a parameter is no text"
            raise ConversationFileError(f"cannot write {path}: {reason}") from None

    def _write(self, path: Path) -> None:
        body = msgspec.json.format(msgspec.json.encode({"schema": SCHEMA, **msgspec.to_builtins(self)}), indent=2)
        draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            draft.write_bytes(body + b"\n")
            draft.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise


def named_file(name: str) -> Path:
    """The file of this name, which may begin with `~`. Raises ConversationFileError."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise ConversationFileError(f"there is no home directory for {name}") from None


def load(path: Path) -> Conversation:
    """Read what `save` has written. Raises ConversationFileError."""
    try:
        body = path.read_bytes()
        msgspec.json.decode(body, type=_Form)
        return msgspec.json.decode(body, type=Conversation)
    except OSError as error:
        raise ConversationFileError(f"cannot read {path}: {error.strerror}") from None
    except UNREADABLE as error:
        raise ConversationFileError(f"{path} is no saved conversation: {error}") from None
