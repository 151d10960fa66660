"""What a chat request may say about the rendering of its prompt. The rendering is engine/chat_template.py's."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from remuda.engine.errors import InvalidRequestError

TemplateValue = bool | int | float | str

# Variables that models' templates read and that cannot make a prompt say what no template foresaw.
ALLOWED_VARIABLES: Final = ("enable_thinking", "reasoning_effort", "thinking")
MAX_VALUE_CHARS: Final = 100


@dataclass(frozen=True)
class TemplateOptions:
    """add_generation_prompt: the prompt ends with the beginning of the assistant's message.

    continue_final_message: it ends with the last message's text, for the model to go on with.
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: Mapping[str, TemplateValue] = field(default_factory=dict)

    def prompt(self, render: Callable[[str], str], final_content: str) -> str:
        """The prompt, cut after the last message's text where the model is to continue that.

        render: gives the prompt with another text in the place of the last message's, `final_content`.
        Raises InvalidRequestError where there is no such text to continue.
        """
        whole = render(final_content)
        if not self.continue_final_message:
            return whole
        # Templates may strip a message; what they keep of the space after it stays.
        for content in (final_content, final_content.rstrip()) if final_content.strip() else ():
            # The text itself may stand in other messages too, or in what the template writes after it.
            mark = secrets.token_hex(16)
            before, found, _ = render(content + mark).rpartition(mark)
            if found and whole.startswith(before):
                return before
        reason = "the last message is empty, or the chat template does not show it as it stands"
        raise InvalidRequestError(f"continue_final_message: {reason}", param="continue_final_message")


def template_options(
    add_generation_prompt: bool | None, continue_final_message: bool | None, variables: Mapping[str, Any] | None
) -> TemplateOptions:
    """The options of a request's fields. Raises InvalidRequestError for what cannot be honoured."""
    if continue_final_message and add_generation_prompt:
        message = "continue_final_message and add_generation_prompt exclude each other"
        raise InvalidRequestError(message, param="continue_final_message")
    for name, value in (variables or {}).items():
        _check_variable(f"chat_template_kwargs.{name[:MAX_VALUE_CHARS]}", name, value)
    return TemplateOptions(
        add_generation_prompt=not continue_final_message and add_generation_prompt is not False,
        continue_final_message=bool(continue_final_message),
        variables={name: value for name, value in (variables or {}).items() if value is not None},
    )


def _check_variable(place: str, name: str, value: object) -> None:
    if name not in ALLOWED_VARIABLES:
        message = f"{place} is not a variable that requests may set; those are {', '.join(ALLOWED_VARIABLES)}"
        raise InvalidRequestError(message, param=place)
    if value is not None and not isinstance(value, TemplateValue):
        raise InvalidRequestError(f"{place} must be a boolean, a number or a string", param=place)
    if isinstance(value, str) and len(value) > MAX_VALUE_CHARS:
        message = f"{place} may have {MAX_VALUE_CHARS} characters, it has {len(value)}"
        raise InvalidRequestError(message, param=place)
