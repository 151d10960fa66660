"""Calls in a text: the same however the text is cut, whole or as it comes, and nothing of it lost."""

import json
import random
import time
from typing import Any

import pytest

from remuda.server.tool_calls import MAX_HELD_CHARS, CallArguments, CallScanner, CallStart, TextPiece
from remuda.server.tool_parsers import ToolCallParser

NAMES = ("get_weather", "f")
WEATHER = '{"name": "get_weather", "arguments": {"city": "Zürich }", "days": [1, {"a": "\\"{"}]}}'


def tagged(call: str) -> str:
    return f"<tool_call>\n{call}\n</tool_call>"


def gathered(
    pieces: list[str], name: str = "hermes", max_calls: int | None = None, *, is_cut: bool = False
) -> tuple[str, list[Any]]:
    """The text, and the calls as (name, arguments); checks the order of events."""
    parser = ToolCallParser(name, NAMES, max_calls)
    events = [event for piece in pieces for event in parser.push(piece)] + parser.finish(is_cut=is_cut)
    calls: list[list[str]] = []
    for event in events:
        if isinstance(event, CallStart):
            assert event.index == len(calls)
            calls.append([event.name, ""])
        elif isinstance(event, CallArguments):
            assert event.index == len(calls) - 1
            calls[-1][1] += event.text
    text = "".join(event.text for event in events if isinstance(event, TextPiece))
    return text, [tuple(call) for call in calls]


def cuts(text: str) -> list[list[str]]:
    rng = random.Random(text)
    found = [[text], list(text)]
    for _ in range(8):
        places = sorted(rng.randrange(len(text) + 1) for _ in range(4))
        found.append([text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)])
    return found


F = ("f", "{}")
A = ("f", '{"a":1}')
GARBAGE = (
    '<tool_call> </tool_call> {"name":"f" ,"arguments":{"a":1} } { " , : [ ] {"name":"g","arguments":{}} '
    'hello "parameters":{"x":"}"} ; \\ <tool "arguments":"{}" {"arguments":{"q":"\\u00e9\\""},"name":"f"} '
    'null "name":"f"'
)
ARGUMENTS = json.loads(WEATHER)["arguments"]
HERMES: list[tuple[str, str, list[Any]]] = [
    ("", "", []),
    ("Just text.\n\n", "Just text.\n\n", []),
    ("a < b, <tool, <tool_call> and {", "a < b, <tool, <tool_call> and {", []),
    (tagged('{"name": "f", "arguments": {}}'), "", [F]),
    ("  \n" + tagged('{"name": "f", "arguments": {}}') + "\n", "", [F]),
    ("Let me see.\n" + tagged('{"name": "f", "arguments": {}}'), "Let me see.", [F]),
    ("\n".join([tagged('{"name": "f", "arguments": {"a": 1}}')] * 2), "", [("f", '{"a": 1}')] * 2),
    (tagged('{"arguments": {"a": [1]}, "name": "f"}'), "", [("f", '{"a": [1]}')]),
    (tagged('{"id": "x", "arguments": {"a": 1}, "k": {"b": 2}, "name": "f", "z": 1}'), "", [("f", '{"a": 1}')]),
    (tagged('{"name": "f"}'), "", [F]),
    (tagged('{"name": "f", "arguments": "{\\"a\\": 1}"}'), "", [("f", '{"a": 1}')]),
    (tagged('{"name": "f", "parameters": {"a": 1}}'), "", [("f", '{"a": 1}')]),
    ('<tool_call>{"name":"f","arguments":{}}</tool_call>bye', "bye", [F]),
    ('<tool_call>{"name":"f","arguments":{}} bye', "bye", [F]),
    ('<tool_call>{"name":"f","arguments":{"a', "", [("f", '{"a')]),
    ('<tool_call>{"name":"f","argu', '<tool_call>{"name":"f","argu', []),
    (tagged('{"name": "unknown", "arguments": {}}'), tagged('{"name": "unknown", "arguments": {}}'), []),
    (tagged('{"name": "f", "arguments": [1]}'), tagged('{"name": "f", "arguments": [1]}'), []),
    (tagged('{"name": "f", "arguments": "no"}'), tagged('{"name": "f", "arguments": "no"}'), []),
    (tagged('{"name": 5, "arguments": {}}'), tagged('{"name": 5, "arguments": {}}'), []),
    (tagged("not json"), tagged("not json"), []),
    # The brace of the object itself is missing.
    (tagged('{"name":"f","arguments":{"a":1}') + "\n" + tagged('{"name":"f"}') + "\nOk.", "\nOk.", [A, F]),
    ('<tool_call>{"name":"f","arguments":{"a":1}', "", [A]),
    ('<tool_call>{"name":"f","arguments":{"a":1} bye', "bye", [A]),
    (tagged('{"arguments":{"a":1}, "name":"f"') + "bye", "bye", [A]),
    # Once complete, the arguments do not change.
    (tagged('{"name":"f","arguments":{"a":1},"arguments":{"b":2}}') + "bye", "bye", [A]),
    (tagged('{"name":"f","arguments":{"a":1},"k":-1.5e3,"l":[{}],"m":null}') + "bye", "bye", [A]),
    ("x " + tagged('{"a": 1}') + " y", "x " + tagged('{"a": 1}') + " y", []),
    ("x\n" + tagged('{"a": 1}') + "\n" + tagged('{"name": "f"}'), "x\n" + tagged('{"a": 1}'), [F]),
    (" " * 300 + "x", " " * 300 + "x", []),
]
LLAMA: list[tuple[str, str, list[Any]]] = [
    ("Just text {", "Just text {", []),
    ('{"name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
    (' {"name": "f", "parameters": {}}; {"name": "f", "arguments": {"b": 2}} ', "", [F, ("f", '{"b": 2}')]),
    ('{"name": "f", "parameters": {"a":1}; {"name": "f", "parameters": {}}', "", [A, F]),
    ('{"answer": 42}', '{"answer": 42}', []),
    ('Look: {"name": "f", "parameters": {}}', 'Look: {"name": "f", "parameters": {}}', []),
]


@pytest.mark.parametrize(
    ("name", "text", "shown", "calls"),
    [("hermes", *case) for case in HERMES] + [("llama3_json", *case) for case in LLAMA],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_calls_are_found_however_the_text_is_cut(name: str, text: str, shown: str, calls: list[Any]) -> None:
    for pieces in cuts(text):
        assert gathered(pieces, name) == (shown, calls), pieces


def test_arguments_are_those_of_the_model_byte_for_byte() -> None:
    for pieces in cuts(tagged(WEATHER)):
        _, ((name, arguments),) = gathered(pieces)
        assert name == "get_weather"
        assert arguments in WEATHER
        assert json.loads(arguments) == ARGUMENTS


def test_arguments_come_as_soon_as_they_are_there() -> None:
    parser = ToolCallParser("hermes", NAMES)
    assert parser.push('<tool_call>{"name": "f", "arguments":') == []
    assert parser.push(" {") == [CallStart(0, "f"), CallArguments(0, "{")]
    assert parser.push('"a": ') == [CallArguments(0, '"a": ')]
    assert parser.push("1}}</tool") == [CallArguments(0, "1}")]
    assert parser.push("_call>") == []
    assert parser.finish() == []


def test_text_is_held_back_only_where_it_may_be_a_mark() -> None:
    parser = ToolCallParser("hermes", NAMES)
    assert parser.push("Hello") == [TextPiece("Hello")]
    assert parser.push(" <tool_") == []
    assert parser.push("box>") == [TextPiece(" <tool_box>")]
    assert parser.push(" ") == []
    assert parser.finish() == [TextPiece(" ")]


def test_calls_over_the_limit_are_left_out() -> None:
    text = "\n".join(tagged(f'{{"name": "f", "arguments": {{"a": {i}}}}}') for i in range(3))
    for pieces in cuts(text):
        assert gathered(pieces, max_calls=1) == ("", [("f", '{"a": 0}')])


def test_a_call_whose_arguments_are_complete_counts() -> None:
    parser = ToolCallParser("hermes", NAMES)
    parser.push('<tool_call>{"name": "f", "arguments": {"a": 1')
    parser.finish()
    assert parser.num_calls == 0
    parser.push("}")
    parser.finish()
    assert parser.num_calls == 1


def test_what_is_held_back_has_a_limit() -> None:
    longest = '{"a": "' + "x" * (MAX_HELD_CHARS - len('{"a": "'))
    for pieces in ([longest, '"}'], [longest[:-1], longest[-1], '"}'], [longest + '"}']):
        scanner = CallScanner(0, NAMES)
        rest = "".join(scanner.push(piece)[1] if not scanner.has_failed else piece for piece in pieces)
        assert (scanner.raw, scanner.has_failed, rest) == (longest, True, '"}')
        assert gathered(["<tool_call>", *pieces]) == (f'<tool_call>{longest}"}}', [])
    scanner = CallScanner(0, NAMES)
    scanner.push('{"name": "f", "arguments": {"a": "')
    assert scanner.push("x" * MAX_HELD_CHARS) == ([CallArguments(0, "x" * MAX_HELD_CHARS)], "")


@pytest.mark.parametrize("name", ["hermes", "llama3_json"])
@pytest.mark.parametrize("max_calls", [None, 1])
def test_garbage_is_the_same_however_it_is_cut(name: str, max_calls: int | None) -> None:
    rng = random.Random(5)
    parts = [*GARBAGE.split(" "), " ", "\n", " " * 30]
    for _ in range(400):
        text = "".join(rng.choice(parts) for _ in range(rng.randint(1, 12)))
        whole, *others = (gathered(pieces, name, max_calls) for pieces in cuts(text))
        assert others == [whole] * len(others), text


@pytest.mark.parametrize("name", ["hermes", "llama3_json"])
@pytest.mark.parametrize("is_cut", [False, True])
def test_long_white_space_is_the_same_however_it_is_cut(name: str, is_cut: bool) -> None:
    """Around the limit of what belongs to a mark, and far beyond it."""
    rng = random.Random(6)
    spaces = [" " * n for n in (1, 200, 255, 256, 257, 300, 511, 512, 513)] + ["\n " * 400]
    call = '{"name":"f","arguments":{}}'
    parts = [*["<tool_call>", call, f"<tool_call>{call}</tool_call>"] * 2, '{"name":"f"', ";", "x", "<tool_"]
    num_calls = 0
    for _ in range(300):
        text = "".join(rng.choice(parts if i % 2 else ["", *spaces]) for i in range(rng.randint(2, 8)))
        whole, *others = (gathered(pieces, name, is_cut=is_cut) for pieces in cuts(text))
        assert others == [whole] * len(others), text
        num_calls += len(whole[1])
    assert num_calls > 10


@pytest.mark.parametrize(
    ("text", "shown", "calls"),
    [
        (" " * 256 + tagged('{"name": "f"}'), "", [F]),
        (" " * 300 + tagged('{"name": "f"}'), " " * 44, [F]),
        ("<tool_call>" + " " * 256 + '{"name": "f"}', "", [F]),
        ("<tool_call>" + " " * 257 + '{"name": "f"}', "<tool_call>" + " " * 257 + '{"name": "f"}', []),
    ],
)
def test_white_space_belongs_to_a_mark_up_to_a_limit(text: str, shown: str, calls: list[Any]) -> None:
    for pieces in cuts(text):
        assert gathered(pieces) == (shown, calls), pieces


@pytest.mark.parametrize(
    ("text", "shown", "calls"),
    [
        ("Hi <tool_", "Hi <tool_", []),
        ("Hi <tool_call>", "Hi", []),
        ('Hi\n<tool_call>\n{"na', "Hi", []),
        ('<tool_call>{"name": "f', "", []),
        ('<tool_call>{"name": "f"', "", [("f", "")]),
        ('<tool_call>{"name": "f", "arguments"', "", [("f", "")]),
        ('<tool_call>{"name": "f", "arguments": {"a', "", [("f", '{"a')]),
        ('<tool_call>{"arguments": {"a": 1}, "na', "", []),
        ('<tool_call>{"name": "unknown", "arg', '<tool_call>{"name": "unknown", "arg', []),
        (tagged('{"name":"f","arguments":{"a":1}}') + '\n<tool_call>{"name": "f"', "", [A, ("f", "")]),
        (tagged('{"name": "f"}') + " Hi", " Hi", [F]),
    ],
)
def test_the_beginning_of_a_call_is_no_text_where_the_answer_is_cut(
    text: str, shown: str, calls: list[Any]
) -> None:
    for pieces in cuts(text):
        assert gathered(pieces, is_cut=True) == (shown, calls), pieces


def test_a_cut_call_beyond_the_limit_of_calls_is_left_out() -> None:
    text = tagged('{"name":"f","arguments":{"a":1}}') + '\n<tool_call>{"name": "f"'
    for pieces in cuts(text):
        assert gathered(pieces, max_calls=1, is_cut=True) == ("", [A])


def test_a_cut_object_without_a_mark_may_be_an_answer() -> None:
    for text in ('{"name": "f"', '{"answer": 4', " {"):
        for pieces in cuts(text):
            assert gathered(pieces, "llama3_json", is_cut=True) == (text, [])


def test_garbage_never_raises_and_text_without_calls_is_kept() -> None:
    rng = random.Random(1)
    parts = [
        "<tool_call>",
        "</tool_call>",
        '{"name": "f"',
        ', "arguments": {',
        "}",
        '"',
        "\\",
        "[",
        "]",
        " ",
        "é",
        ":",
    ]
    for _ in range(400):
        text = "".join(rng.choice(parts) for _ in range(rng.randrange(1, 25)))
        results = [gathered(pieces) for pieces in cuts(text)]
        assert all(result == results[0] for result in results[1:]), text
        if not results[0][1]:
            assert results[0][0] == text


@pytest.mark.parametrize("name", ["hermes", "llama3_json"])
@pytest.mark.parametrize("text", ["\n", "<tool_call>\n", " ;"])
def test_white_space_costs_no_more_than_letters(name: str, text: str) -> None:
    """Of the model's text a client may choose a great deal; a search that goes back over it takes minutes."""

    def work(text: str) -> float:
        begin = time.thread_time()
        assert gathered([text], name)[0] == text
        return time.thread_time() - begin

    num_chars = 20_000
    letters = work("y" * num_chars)
    assert work(text + "\n" * num_chars + "x") < 100 * letters + 0.1
