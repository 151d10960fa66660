"""Turns a conversation into a prompt by the checkpoint's own jinja2 template. No torch, no tokenizing."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn

import jinja2
import jinja2.meta

from remuda.engine.errors import CheckpointError, InvalidRequestError
from remuda.engine.template_budget import TemplateLimitError, limited
from remuda.engine.template_sandbox import TemplateEnvironment

MAX_TEMPLATE_CHARS: Final = 2**20
MAX_PROMPT_CHARS: Final = 2**25

# What one rendering may cost in the units of template_budget.py: fixed, per message, per character.
_BASE_UNITS: Final = 2**25
_UNITS_PER_MESSAGE: Final = 2**16
_UNITS_PER_CHAR: Final = 32
_MAX_SECONDS: Final = 5.0

_MAX_REASON_CHARS: Final = 500
_STRFTIME: Final = re.compile(r"(?:[^%]|%-?[A-Za-z%]){0,100}")

# A template is a program: these are what a mistake in it, or a message that it did not foresee, can raise.
_RENDER_ERRORS: Final = (
    jinja2.TemplateError,
    TemplateLimitError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """A compiled chat template, to be used by any number of threads."""

    def __init__(self, source: str, bos_token: str | None = None, eos_token: str | None = None) -> None:
        """Compile `source`; the tokens are its variables `bos_token` and `eos_token`.

        Raises CheckpointError if it is not a template, or uses what the sandbox does not offer.
        """
        if len(source) > MAX_TEMPLATE_CHARS:
            raise CheckpointError(
                f"the chat template has {len(source)} characters, the limit is {MAX_TEMPLATE_CHARS}"
            )
        environment = TemplateEnvironment()
        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        try:
            self._template = environment.from_string(source)
            # Whether the template tells the model of tools; to one that does not, they must be told as text.
            self.knows_tools = "tools" in jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(f"the chat template is wrong at line {error.lineno}: {error.message}") from error
        except (RecursionError, SyntaxError, ValueError, MemoryError) as error:
            raise CheckpointError(f"the chat template cannot be compiled: {error}") from error
        self._tokens = {"bos_token": bos_token or "", "eos_token": eos_token or ""}

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        add_generation_prompt: bool = True,
        variables: Mapping[str, bool | int | float | str] | None = None,
        tools: Sequence[dict[str, Any]] | None = None,
    ) -> str:
        """The prompt for a conversation: dicts with `role`, `content` and what else the template reads.

        variables: more that the template may read; they hide none of its own. tools: the functions that the model
        may call, as objects of the OpenAI API.

        Raises InvalidRequestError when the template refuses the messages, fails on them, writes more than
        MAX_PROMPT_CHARS characters, or asks for unreasonable work.
        """
        num_chars = sum(_num_chars(message) for message in (*messages, *(tools or ())))
        units = _BASE_UNITS + _UNITS_PER_MESSAGE * len(messages) + _UNITS_PER_CHAR * num_chars
        chunks = self._template.generate(
            {
                **(variables or {}),
                "messages": list(messages),
                "add_generation_prompt": add_generation_prompt,
                "tools": None if tools is None else list(tools),
                "documents": None,
                **self._tokens,
            }
        )
        written: list[str] = []
        length = 0
        try:
            with limited(units, _MAX_SECONDS):
                for chunk in chunks:
                    length += len(chunk)
                    if length > MAX_PROMPT_CHARS:
                        raise TemplateLimitError(f"it writes more than {MAX_PROMPT_CHARS} characters")
                    written.append(chunk)
        except _RefusedError as error:
            raise _error(str(error)) from error
        except _RENDER_ERRORS as error:
            raise _error(f"the chat template cannot render these messages: {error}") from error
        return "".join(written)


class _RefusedError(jinja2.TemplateError):
    """The template itself turned the messages down."""


def _num_chars(value: object) -> int:
    """Characters of all strings in a value."""
    num_chars, level = 0, [value]
    while level:
        item = level.pop()
        if isinstance(item, str):
            num_chars += len(item)
        elif isinstance(item, dict):
            level += [*item, *item.values()]
        elif isinstance(item, list):
            level += item
    return num_chars


def _raise_exception(message: object) -> NoReturn:
    raise _RefusedError(str(message))


def _strftime_now(pattern: str) -> str:
    if not _STRFTIME.fullmatch(pattern):
        raise TemplateLimitError("strftime_now takes up to 100 characters, and no widths")
    return datetime.now().strftime(pattern)


def _error(reason: str) -> InvalidRequestError:
    return InvalidRequestError(reason[:_MAX_REASON_CHARS], param="messages")
