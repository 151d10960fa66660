"""The conversation, its file, and the commands that change it."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from remuda.clients.chat.conversation import Conversation, ConversationFileError, Message, load, named_file
from remuda.clients.chat.line_input import history_path, read_message
from remuda.clients.chat.slash import Command, CommandError, changed_params, parse_command


def talk() -> Conversation:
    """Two turns."""
    conversation = Conversation(model="m", system="Be kind.", params={"seed": 1})
    for prompt, answer in (("Hi", "Hello"), ("Why?", "So.")):
        conversation.ask(prompt)
        conversation.end_turn(answer)
    return conversation


def test_turns() -> None:
    conversation = talk()
    roles = [message.role for message in conversation.chat_messages()]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert conversation.take_back() == "Why?"
    assert [message.content for message in conversation.messages] == ["Hi", "Hello"]
    conversation.ask("Again")
    conversation.end_turn("")
    assert len(conversation.messages) == 2
    assert conversation.take_back() == "Hi"
    assert conversation.take_back() is None


def test_transcript() -> None:
    conversation = Conversation()
    conversation.ask("Once")
    assert conversation.transcript() == "Once"
    conversation.end_turn(" upon")
    conversation.ask("a time")
    assert conversation.transcript() == "Once upon\na time"
    conversation.end_turn(".\n")
    conversation.ask("The end")
    assert conversation.transcript() == "Once upon\na time.\nThe end"


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    talk().save(path)
    assert load(path) == talk()
    longer = talk()
    longer.messages.append(Message("user", "More"))
    longer.save(path)
    assert load(path) == longer
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"notes",
        b"\xff",
        b"[]",
        b"{}",
        b'{"schema": "remuda.chat/2"}',
        b'{"schema": "remuda.chat/1", "messages": [{"role": "king", "content": ""}]}',
        b'{"model": "m", "messages": []}',
    ],
)
def test_other_files_are_neither_loaded_nor_replaced(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(body)
    with pytest.raises(ConversationFileError, match="is no saved conversation"):
        load(path)
    with pytest.raises(ConversationFileError, match="is no saved conversation"):
        talk().save(path)
    assert path.read_bytes() == body


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConversationFileError, match="No such file"):
        load(tmp_path / "nothing")
    with pytest.raises(ConversationFileError, match="Is a directory"):
        load(tmp_path)
    with pytest.raises(ConversationFileError, match=r"cannot write .*No such file"):
        talk().save(tmp_path / "nowhere" / "talk.json")
    with pytest.raises(ConversationFileError, match=r"cannot write .*File name too long"):
        talk().save(tmp_path / ("x" * 300))
    with pytest.raises(ConversationFileError, match=r"there is no home directory for ~nobody-of-this-name/x"):
        named_file("~nobody-of-this-name/x")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_may_not_be_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(ConversationFileError, match=r"cannot write .*Permission denied"):
        talk().save(tmp_path / "talk.json")


def test_what_is_no_text_cannot_be_saved(tmp_path: Path) -> None:
    conversation = talk()
    conversation.system = "\udcff"
    with pytest.raises(ConversationFileError, match="is no text"):
        conversation.save(tmp_path / "talk.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("message", "command"),
    [
        ("hello", None),
        ("//hello", None),
        (" /reset", None),
        ("/reset", Command("/reset", "")),
        ("/reset ", Command("/reset", "")),
        ("/save  my file.json ", Command("/save", "my file.json")),
        ("/params", Command("/params", "")),
        ("/params a=1 b=2", Command("/params", "a=1 b=2")),
    ],
)
def test_commands(message: str, command: Command | None) -> None:
    assert parse_command(message) == command


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ("/nonsense", "there is no command /nonsense; /help lists them"),
        ("/", "there is no command /"),
        ("/save", "/save needs a file"),
        ("/load  ", "/load needs a file"),
        ("/exit now", "/exit takes nothing, not 'now'"),
    ],
)
def test_commands_that_cannot_be_meant(message: str, complaint: str) -> None:
    with pytest.raises(CommandError, match=complaint):
        parse_command(message)


@pytest.mark.parametrize(
    ("argument", "changed"),
    [
        ("", {"seed": 1}),
        ("temperature=0.5 top_k=3", {"seed": 1, "temperature": 0.5, "top_k": 3}),
        ("seed=", {}),
        ("nothing=", {"seed": 1}),
        ("""stop='["a b", "c"]' ignore_eos=true""", {"seed": 1, "stop": ["a b", "c"], "ignore_eos": True}),
        ("stop=END seed=2", {"stop": "END", "seed": 2}),
    ],
)
def test_params(argument: str, changed: dict[str, Any]) -> None:
    before = {"seed": 1}
    assert changed_params(before, argument) == changed
    assert before == {"seed": 1}


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("temperature", "takes name=value, not 'temperature'"),
        ("=1", "takes name=value"),
        ("a-b=1", "takes name=value"),
        ("stop='x", "No closing quotation"),
        ("model=other", "cannot set model"),
        ("stream=false", "cannot set stream"),
    ],
)
def test_params_that_cannot_be_meant(argument: str, complaint: str) -> None:
    with pytest.raises(CommandError, match=complaint):
        changed_params({}, argument)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["hello"], "hello"),
        (["a\\", "b\\", "c"], "a\nb\nc"),
        (["a\\", ""], "a\n"),
        (['"""', "a", "", "b", '"""'], "a\n\nb"),
        (['"""a', 'b"""'], "a\nb"),
        (['"""a""" '], "a"),
        (['say """a"""'], 'say """a"""'),
    ],
)
def test_messages_of_several_lines(lines: list[str], message: str) -> None:
    left = iter(lines)
    assert read_message(lambda prompt: next(left)) == message
    assert list(left) == []


def test_the_history_is_in_the_state_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert history_path() == tmp_path / ".local/state/remuda/chat_history"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert history_path() == tmp_path / ".local/state/remuda/chat_history"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert history_path() == tmp_path / "state/remuda/chat_history"
