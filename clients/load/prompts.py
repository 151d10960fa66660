"""What requests ask: random token ids, random words, lines of a file, conversations of a ShareGPT file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from remuda.clients.load.errors import UsageError
from remuda.clients.load.lengths import Lengths
from remuda.clients.load.words import WORDS

Message = dict[str, str]
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Prompt:
    """content: token ids, a text, or the messages of a chat. prompt_tokens: 0 where only the server can say."""

    content: list[int] | str | list[Message]
    prompt_tokens: int
    max_tokens: int


class PromptSource(Protocol):
    """Prompts without end."""

    def draw(self) -> Prompt:
        """The next one."""
        ...


@dataclass(frozen=True)
class RandomIds:
    """ids: those that may come up."""

    ids: np.ndarray
    prompt_tokens: Lengths
    output_tokens: Lengths
    random: np.random.Generator

    def draw(self) -> Prompt:
        """Fresh ids; another source of the same seed draws the same ones."""
        num_tokens = self.prompt_tokens.draw(self.random)
        content = self.ids[self.random.integers(0, len(self.ids), num_tokens)].tolist()
        return Prompt(content, num_tokens, self.output_tokens.draw(self.random))


@dataclass(frozen=True)
class RandomWords:
    """tokens_per_word: by which words are counted to come near the wanted length; `usage` has the true one."""

    tokens_per_word: float
    prompt_tokens: Lengths
    output_tokens: Lengths
    random: np.random.Generator

    def draw(self) -> Prompt:
        """Words in a random order."""
        num_words = max(round(self.prompt_tokens.draw(self.random) / self.tokens_per_word), 1)
        chosen = self.random.integers(0, len(WORDS), num_words).tolist()
        return Prompt(" ".join(WORDS[i] for i in chosen), 0, self.output_tokens.draw(self.random))


@dataclass
class Listed:
    """Prompts that were read before, each as often as the others. max_tokens of 0 is drawn from output_tokens."""

    prompts: Sequence[Prompt]
    output_tokens: Lengths
    random: np.random.Generator
    _order: list[int] | None = None

    def draw(self) -> Prompt:
        """In a random order, then again in another one."""
        if not self._order:
            self._order = self.random.permutation(len(self.prompts)).tolist()
        found = self.prompts[self._order.pop()]
        return Prompt(found.content, 0, found.max_tokens or self.output_tokens.draw(self.random))


def read_texts(path: Path, *, is_whole: bool) -> list[Prompt]:
    """Each line that is not empty (they end at newlines alone), or the whole file. Raises UsageError."""
    text = _read(path)
    texts = [text] if is_whole else [line for line in text.split("\n") if line.strip()]
    if not any(text.strip() for text in texts):
        raise UsageError(f"{path}: there is no prompt in it")
    return [Prompt(text, 0, 0) for text in texts]


def read_sharegpt(path: Path, *, is_chat: bool) -> list[Prompt]:
    """A list of `{"conversations": [{"from": "human", "value": …}, {"from": "gpt", …}]}`.

    Chats: what was said before the last answer. Completions: the first turn. max_tokens: that answer's length at
    four characters a token. Conversations without a question and an answer are left out. Raises UsageError.
    """
    try:
        rows = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    if not isinstance(rows, list):
        raise UsageError(f"{path}: not a list of conversations")
    found = []
    for i, row in enumerate(rows):
        try:
            prompt = _conversation(row, is_chat)
        except UnicodeEncodeError as error:
            place = f"conversation {i + 1}: half a surrogate pair at character {error.start}"
            raise UsageError(f"{path}: {place} of a turn, which no request can hold") from error
        if prompt is not None:
            found.append(prompt)
    if not found:
        raise UsageError(f"{path}: no conversation in it has a question and an answer")
    return found


def _conversation(row: Any, is_chat: bool) -> Prompt | None:
    """None without a question and an answer. Raises UnicodeEncodeError for a text that is none in UTF-8."""
    turns = row.get("conversations") if isinstance(row, dict) else None
    if not isinstance(turns, list):
        return None
    messages = [
        {"role": _ROLES[turn["from"]], "content": turn["value"]}
        for turn in turns
        if isinstance(turn, dict) and _is_said(turn.get("from"), turn.get("value"))
    ]
    for message in messages:
        message["content"].encode()
    questions = [i for i, message in enumerate(messages) if message["role"] == "user"]
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not questions or not answers or answers[-1] < questions[0]:
        return None
    if is_chat:
        answer = answers[-1]
        content: str | list[Message] = messages[:answer]
    else:
        answer = next(i for i in answers if i > questions[0])
        content = messages[questions[0]]["content"]
    return Prompt(content, 0, max(len(messages[answer]["content"]) // 4, 1))


def _is_said(who: Any, text: Any) -> bool:
    return isinstance(who, str) and who in _ROLES and isinstance(text, str)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from error
