"""Chat templates: what they see, what they may use, and the demo's own."""

from datetime import datetime
from typing import Any

import pytest

from remuda.engine.chat_template import MAX_TEMPLATE_CHARS, ChatTemplate
from remuda.engine.checkpoint.find import find_checkpoint
from remuda.engine.errors import CheckpointError, InvalidRequestError
from remuda.engine.tokenizer import Tokenizer, load_tokenizer

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
SYSTEM, USER, ASSISTANT = (
    {"role": role, "content": content}
    for role, content in [("system", "Be kind."), ("user", "Hi <b>&\n"), ("assistant", " Hello! ")]
)


def render(source: str, messages: list[dict[str, Any]] | None = None, *, prompt: bool = True) -> str:
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    return template.render([USER] if messages is None else messages, add_generation_prompt=prompt)


def test_chatml() -> None:
    text = "<|im_start|>user\nHi <b>&\n<|im_end|>\n<|im_start|>assistant\n Hello! <|im_end|>\n"
    assert render(CHATML, [USER, ASSISTANT], prompt=False) == text
    assert render(CHATML, [USER, ASSISTANT]) == text + "<|im_start|>assistant\n"


def test_llama2() -> None:
    text = "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi <b>& [/INST] Hello! </s><s>[INST] Hi <b>& [/INST]"
    assert render(LLAMA2, [SYSTEM, USER, ASSISTANT, USER]) == text
    with pytest.raises(InvalidRequestError, match=r"^Conversation roles must alternate") as caught:
        render(LLAMA2, [USER, USER])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("{% if tools %}t{% endif %}{% if documents %}d{% endif %}", ""),
        ("{% if tools is defined and tools is not none %}t{% endif %}{% if nothing is defined %}n{% endif %}", ""),
        ("  {% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),
        ("{{ {'é': [1, 2.5, none, true], '<b>': '\\n'} | tojson }}", '{"é": [1, 2.5, null, true], "<b>": "\\n"}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        (
            "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{{ loop.last }}{{ loop.length }}{% endfor %}",
            "a1True1",
        ),
        ("{% for i in 'abc' %}{{ loop.previtem }}{{ loop.nextitem }},{% endfor %}", "b,ac,b,"),
        ("{% for i in [] %}x{% else %}none{% endfor %}", "none"),
        ("{% for i in missing %}x{% endfor %}", ""),
        ("{% for i in [[1, [2]], 3] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}", "123"),
        ("{% generation %}said{% endgeneration %}", "said"),
        ("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        (
            "{% macro m(a, b='x') %}{{ a }}{{ b }}{{ varargs }}{% endmacro %}{{ m(1) }}{{ m(1, 2, 3) }}",
            "1x()12(3,)",
        ),
        ("{% set t %}a{{ 1 }}{% endset %}{{ t | upper }}", "A1"),
        ("{% set a, b = 1, 'x' %}{{ a ~ b ~ none }}", "1xNone"),
        ("{{ 'abcd'[1:] }}{{ 'abcd'[:-1] }}{{ 'abcd'[::2] }}{{ [1, 2, 3][1:2] }}", "bcdabcac[2]"),
        ("{{ 'a-b'.split('-') | join('+') }}{{ ', '.join(['x', 'y']) }}", "a+bx, y"),
        ("{{ 'aXbX'.replace('X', '--', 1) }}{{ 'aXb' | replace('X', '') }}", "a--bXab"),
        (
            "{{ '%s is %02d' % ('a', 5) }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ '-' * 3 }}{{ [0] * 2 }}",
            "a is 0531024---[0, 0]",
        ),
        (
            "{{ [3, 1] | sort | first }}{{ [1, 2] | sum }}{{ 2.5 | round(1) }}{{ 'a b' | title | trim }}",
            "132.5A B",
        ),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ messages | map(attribute='role') | join(',') }}{{ 'a\nb' | indent(2) }}", "usera\n  b"),
        ("{{ '<&>' | e }}{{ '<' | safe }}{{ 3 | string + 'x' }}{{ missing | default('d') }}", "&lt;&amp;&gt;<3xd"),
        ("{{ messages[0].content | trim | length }}{{ messages[-1]['role'] }}{{ messages[0].nothing }}", "7user"),
        (
            "{{ 'a' in 'abc' }}{{ 1 is odd }}{{ ('a', 'b') | last }}{{ dict(a=1)['a'] }}{{ cycler(1, 2).next() }}",
            "TrueTrueb11",
        ),
    ],
)
def test_what_templates_use(source: str, expected: str) -> None:
    assert render(source) == expected


def test_strftime_now() -> None:
    assert render("{{ strftime_now('%d %B %Y') }}") in {f"{datetime.now():%d %B %Y}", "midnight"}
    assert render("{{ strftime_now('%-d%%') }}").endswith("%")


def test_the_default_prompt_ends_with_the_assistants_turn() -> None:
    assert ChatTemplate(CHATML).render([USER]).endswith("<|im_start|>assistant\n")
    assert ChatTemplate("[{{ bos_token }}]").render([USER]) == "[]"


def test_messages_are_not_changed_and_values_may_nest() -> None:
    message = {"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    assert render("{{ messages[0].tool_calls[0].function.arguments | tojson }}", [message]) == '{"a": 1}'


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("{% for %}", "wrong at line 1: Expected an expression"),
        ("\n\n{{ x", "wrong at line 3"),
        ("{{ x | nonsense }}", "No filter named 'nonsense'"),
        ("{% do x %}", "Encountered unknown tag 'do'"),
        ("x" * (MAX_TEMPLATE_CHARS + 1), "the limit is 1048576"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "cannot be compiled"),
        ("{{ " + "9" * 5000 + " }}", "cannot be compiled"),
    ],
)
def test_templates_that_are_wrong(source: str, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        ChatTemplate(source)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("{{ messages[9].content }}", "has no element 9"),
        ("{{ missing.content }}", "'missing' is undefined"),
        ("{{ messages[0].content + 1 }}", "cannot render these messages"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ [1, 'a'] | sort }}", "not supported between"),
        ("{{ 'x' | int + [] }}", "cannot render these messages"),
        ("{% include 'other' %}", "no loader"),
        ("{{ raise_exception('no ' + messages[0].role) }}", "^no user$"),
        ("{{ raise_exception('long ' * 1000) }}", "^long "),
    ],
)
def test_failures_are_about_the_messages(source: str, match: str) -> None:
    with pytest.raises(InvalidRequestError, match=match) as caught:
        render(source)
    assert caught.value.param == "messages"
    assert len(str(caught.value)) <= 500


@pytest.fixture(scope="module")
def demo() -> tuple[ChatTemplate, Tokenizer]:
    tokenizer = load_tokenizer(find_checkpoint("demo"))
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.chat_template is not None
    return ChatTemplate(tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token), tokenizer


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ("u", "<|user|>U0<|end|>"),
        ("uau", "<|user|>U0<|end|><|assistant|>A1<|end|><|user|>U2<|end|>"),
        ("su", "<|user|>S0\nU1<|end|>"),
        ("ssu", "<|user|>S0\nS1\nU2<|end|>"),
        ("suau", "<|user|>S0\nU1<|end|><|assistant|>A2<|end|><|user|>U3<|end|>"),
        ("uasu", "<|user|>U0<|end|><|assistant|>A1<|end|><|user|>S2\nU3<|end|>"),
        ("s", "<|user|>S0<|end|>"),
    ],
)
def test_demo_template(demo: tuple[ChatTemplate, Tokenizer], roles: str, expected: str) -> None:
    names = {"s": "system", "u": "user", "a": "assistant"}
    messages = [{"role": names[role], "content": f"{role.upper()}{i}"} for i, role in enumerate(roles)]
    template, tokenizer = demo
    assert template.render(messages, add_generation_prompt=False) == "<|endoftext|>" + expected
    prompt = template.render(messages)
    assert prompt == "<|endoftext|>" + expected + "<|assistant|>"
    ids = tokenizer.encode(prompt)
    assert (ids[0], ids[-1], ids.count(0)) == (0, 2, 1)
    assert ids == tokenizer.encode(prompt.removeprefix("<|endoftext|>"), add_bos=True)


def test_demo_template_refuses_other_roles(demo: tuple[ChatTemplate, Tokenizer]) -> None:
    with pytest.raises(InvalidRequestError, match="roles system, user and assistant, not tool"):
        demo[0].render([{"role": "tool", "content": "x"}])


def test_tools() -> None:
    knowing = ChatTemplate("{% for t in tools or [] %}{{ t.function.name }};{% endfor %}{{ messages|length }}")
    assert knowing.knows_tools
    tool = {"type": "function", "function": {"name": "f"}}
    assert knowing.render([USER], tools=[tool, tool]) == "f;f;1"
    assert knowing.render([USER]) == "1"
    assert not ChatTemplate(CHATML).knows_tools
    assert not ChatTemplate("{% set tools = [] %}{{ tools|length }}").knows_tools
