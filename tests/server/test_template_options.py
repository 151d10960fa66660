"""What requests may tell the chat template, and how a message is continued."""

from collections.abc import Callable
from typing import Any

import openai
import pytest

from remuda.engine.chat_template import ChatTemplate
from remuda.engine.errors import InvalidRequestError
from remuda.server.template_options import TemplateOptions, template_options
from tests.server.fake_info import ASSISTANT, BOS, END, USER
from tests.server.fakes import FakeEngine, ids

ASK: Any = {"role": "user", "content": "Hi"}
BEGUN: Any = {"role": "assistant", "content": "Well"}


def chat(client: openai.OpenAI, messages: list[Any], **extra: Any) -> Any:
    return client.chat.completions.create(model="fake", messages=messages, extra_body=extra)


@pytest.mark.parametrize(
    ("messages", "extra", "prompt"),
    [
        ([ASK], {}, [USER, *ids("Hi"), END, ASSISTANT]),
        ([ASK], {"add_generation_prompt": True}, [USER, *ids("Hi"), END, ASSISTANT]),
        ([ASK], {"add_generation_prompt": False}, [USER, *ids("Hi"), END]),
        ([ASK, BEGUN], {"continue_final_message": True}, [USER, *ids("Hi"), END, ASSISTANT, *ids("Well")]),
        (
            [ASK, BEGUN],
            {"continue_final_message": True, "add_generation_prompt": False},
            [USER, *ids("Hi"), END, ASSISTANT, *ids("Well")],
        ),
        ([ASK], {"continue_final_message": False}, [USER, *ids("Hi"), END, ASSISTANT]),
    ],
    ids=str,
)
def test_prompts(
    client: openai.OpenAI, engine: FakeEngine, messages: list[Any], extra: dict[str, Any], prompt: list[int]
) -> None:
    chat(client, messages, **extra)
    assert engine.requests[0].prompt.tolist() == [BOS, *prompt]


@pytest.mark.parametrize(
    ("messages", "extra", "param"),
    [
        ([ASK], {"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ([ASK, {**BEGUN, "content": " "}], {"continue_final_message": True}, "continue_final_message"),
        ([ASK], {"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs.messages"),
        ([ASK], {"chat_template_kwargs": {"bos_token": "x"}}, "chat_template_kwargs.bos_token"),
        ([ASK], {"chat_template_kwargs": {"thinking": ["x"]}}, "chat_template_kwargs.thinking"),
        ([ASK], {"chat_template_kwargs": {"thinking": "x" * 101}}, "chat_template_kwargs.thinking"),
        ([ASK], {"chat_template_kwargs": []}, "chat_template_kwargs"),
        ([ASK], {"chat_template": "{{ 1 }}"}, "chat_template"),
    ],
    ids=str,
)
def test_refused(client: openai.OpenAI, messages: list[Any], extra: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, messages, **extra)
    assert caught.value.param == param


def test_variables_reach_the_template_and_hide_none_of_its_own() -> None:
    template = ChatTemplate("{{ bos_token }}{{ thinking }}{{ enable_thinking is none }}", "<bos>")
    options = template_options(None, None, {"thinking": 3, "enable_thinking": None})
    assert options.variables == {"thinking": 3}
    variables: dict[str, Any] = {**options.variables, "bos_token": "x"}
    assert template.render([], variables=variables) == "<bos>3False"


CHATML = "<|im_start|>user\nyes: no<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"


@pytest.mark.parametrize(
    ("template", "strips", "content", "expected"),
    [
        ("<u>yes<a>{}<end>", False, "yes", "<u>yes<a>yes"),
        ("<u>yes<a>{}<end>", False, " yes ", "<u>yes<a> yes "),
        ("<u>yes<a>{}<end>", True, " yes ", "<u>yes<a>yes"),
        # The text as it was sent stands in another message alone.
        ("<u>yes: no<a>{}<end>", True, "yes: ", "<u>yes: no<a>yes:"),
        (CHATML, True, "end", CHATML.partition("{}")[0] + "end"),
        (CHATML, False, "m", CHATML.partition("{}")[0] + "m"),
    ],
)
def test_where_a_message_is_cut(template: str, strips: bool, content: str, expected: str) -> None:
    def render(text: str) -> str:
        return template.format(text.strip() if strips else text)

    assert TemplateOptions(continue_final_message=True).prompt(render, content) == expected
    assert TemplateOptions().prompt(render, content) == render(content)


@pytest.mark.parametrize("show", [str.upper, lambda _: "say it", lambda text: text[:20]])
def test_a_message_that_the_template_does_not_show(show: Callable[[str], str]) -> None:
    with pytest.raises(InvalidRequestError, match="does not show it"):
        TemplateOptions(continue_final_message=True).prompt(lambda text: f"<a>{show(text)}<end>", "say it")
