"""Incremental text: the deltas are the decoded whole, no character is split, stop strings are cut at any token."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from remuda.engine.sampling_params import SamplingParams
from remuda.engine.text_stream import TextDelta, TextStream
from remuda.engine.tokenizer import TokenIdTokenizer, Tokenizer
from tests.engine.tokenizer_data import byte_fallback, byte_level, characters, id_of, word_pieces

BYTE_LEVEL, BYTE_FALLBACK, CHARACTERS, WORD_PIECES = (
    Tokenizer(make()) for make in (byte_level, byte_fallback, characters, word_pieces)
)
ALL = {"bytes": BYTE_LEVEL, "fallback": BYTE_FALLBACK, "characters": CHARACTERS, "pieces": WORD_PIECES}

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
SCRIPTS = "naïve 漢字 e\u0301 👩\u200d👩\u200d👧 \u0000 \ufffd ok"
# Pieces of few letters, so that stop strings overlap, repeat and nearly match.
LETTERS = st.text("ab漢", max_size=24)
STOPS = st.lists(st.text("ab漢", min_size=1, max_size=5), min_size=1, max_size=4).map(tuple)


def params(**changes: object) -> SamplingParams:
    return SamplingParams(**({"max_tokens": 1_000_000} | changes))  # type: ignore[arg-type]


def run(stream: TextStream, ids: Sequence[int], reason: str = "length") -> list[TextDelta]:
    """Push one id at a time, then finish."""
    deltas = [stream.push([token]) for token in ids]
    return [*deltas, stream.push([], reason)]  # type: ignore[arg-type]


def text_of(deltas: Sequence[TextDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def byte_ids(text: str) -> list[int]:
    """One token a byte."""
    table = {BYTE_LEVEL.token_bytes(i): i for i in range(256)}
    return [table[bytes([byte])] for byte in text.encode()]


def cut(text: str, ends: Sequence[int]) -> list[str]:
    """`text` cut at the given places, taken modulo its length."""
    places = sorted({0, len(text), *(end % (len(text) + 1) for end in ends)})
    return [text[start:end] for start, end in pairwise(places)]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("skip", [True, False])
@settings(deadline=None)
@given(data=st.data())
def test_deltas_are_the_decoded_whole(name: str, skip: bool, data: st.DataObject) -> None:
    tokenizer = ALL[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=40))
    if name == "fallback":
        # Where bytes are not UTF-8 this decoder replaces the valid ones among them too; see below.
        words = st.sampled_from([i for i in range(tokenizer.vocab_size + 2) if not tokenizer.is_byte_token(i)])
        characters = st.characters(codec="utf-8").map(lambda character: [3 + byte for byte in character.encode()])
        pieces = data.draw(st.lists(st.one_of(words.map(lambda word: [word]), characters), max_size=20))
        ids = [token for piece in pieces for token in piece]
    whole = tokenizer.decode(ids, skip)
    deltas = run(TextStream(tokenizer, params(skip_special_tokens=skip)), ids)
    assert text_of(deltas) == whole
    assert [delta.token_ids_consumed for delta in deltas] == [1] * len(ids) + [0]
    batch = TextStream(tokenizer, params(skip_special_tokens=skip)).push(ids, "length")
    assert batch == TextDelta(whole, len(ids), False)


@pytest.mark.parametrize("name", ["bytes", "fallback"])
@settings(deadline=None)
@given(text=TEXT)
@example(SCRIPTS)
def test_characters_are_never_split(name: str, text: str) -> None:
    tokenizer = ALL[name]
    ids = byte_ids(text) if name == "bytes" else [3 + byte for byte in text.encode()]
    shown = ""
    # After some other token, so that a first space stays.
    for delta in run(TextStream(tokenizer, params(), prompt_ids=[80]), ids):
        shown += delta.text
        assert text.startswith(shown)
    assert shown == text


def test_fallback_keeps_valid_characters_among_invalid_bytes() -> None:
    ids = [3 + byte for byte in b"\xff" + "é".encode() + b"\xe2\x82"]
    assert text_of(run(TextStream(BYTE_FALLBACK, params()), ids)) == "\ufffdé\ufffd"


def test_an_unfinished_character_comes_with_the_finish() -> None:
    stream = TextStream(BYTE_LEVEL, params())
    deltas = run(stream, byte_ids("a😀")[:-1])
    assert [delta.text for delta in deltas] == ["a", "", "", "", "\ufffd"]


def test_invalid_bytes_come_at_once_and_nothing_piles_up() -> None:
    """10,000 bytes that begin no character: each is shown when the next one comes."""
    (continuation,) = byte_ids("é")[1:]
    stream = TextStream(BYTE_LEVEL, params(stop=("zz",)))
    shown = [stream.push([continuation]).text for _ in range(10_000)]
    assert shown == ["\ufffd"] * 10_000
    assert stream.push([], "length").text == ""


def test_first_piece_continues_the_prompt() -> None:
    hello, world = (id_of(byte_fallback(), text) for text in ("▁hello", "▁world"))
    assert text_of(run(TextStream(BYTE_FALLBACK, params()), [world])) == "world"
    assert text_of(run(TextStream(BYTE_FALLBACK, params(), [hello]), [world])) == " world"
    assert text_of(run(TextStream(BYTE_LEVEL, params(), byte_ids("x漢")[:-1]), byte_ids("漢字")[2:])) == "漢字"
    assert text_of(run(TextStream(TokenIdTokenizer(), params(), [4]), [5, 6])) == " token_id:5 token_id:6"


def test_token_ids_as_text() -> None:
    deltas = run(TextStream(TokenIdTokenizer(), params()), [5, 0, 99])
    assert [delta.text for delta in deltas] == ["token_id:5", " token_id:0", " token_id:99", ""]
    assert text_of(deltas) == TokenIdTokenizer().decode([5, 0, 99])


def first_stop(text: str, stops: Sequence[str]) -> str | None:
    """The definition: of all matches the one that ends first, of those the longest; the text before it."""
    matches = [(i + len(stop), i) for stop in stops for i in range(len(text)) if text.startswith(stop, i)]
    return text[: min(matches)[1]] if matches else None


@settings(deadline=None)
@given(text=LETTERS, stops=STOPS, ends=st.lists(st.integers(0, 100)))
def test_stop_strings_at_any_split(text: str, stops: tuple[str, ...], ends: list[int]) -> None:
    """Cut the text into pushes anywhere, even inside characters: the same answer."""
    expected = first_stop(text, stops)
    ids = byte_ids(text)
    stream = TextStream(BYTE_LEVEL, params(stop=stops))
    shown, pushed, stopped = "", 0, False
    for piece in cut("x" * len(ids), ends):
        delta = stream.push(ids[pushed : pushed + len(piece)])
        shown += delta.text
        # What is shown is never taken back.
        assert (text if expected is None else expected).startswith(shown)
        if delta.stopped:
            stopped = True
            consumed = ids[: pushed + delta.token_ids_consumed]
            assert first_stop(BYTE_LEVEL.decode(consumed), stops) is not None
            assert first_stop(BYTE_LEVEL.decode(consumed[:-1]), stops) is None
            break
        assert delta.token_ids_consumed == len(piece)
        pushed += len(piece)
    if not stopped:
        shown += stream.push([], "length").text
    assert stopped == (expected is not None)
    assert shown == (text if expected is None else expected)
    if stopped:
        assert stream.push(ids, "length") == TextDelta("", 0, False)


@settings(deadline=None)
@given(text=LETTERS, stops=STOPS)
def test_only_what_may_still_become_a_stop_string_is_held(text: str, stops: tuple[str, ...]) -> None:
    backend, stream = characters(), TextStream(CHARACTERS, params(stop=stops))
    shown = seen = ""
    for character in text:
        delta = stream.push([id_of(backend, character)])
        if delta.stopped:
            return
        shown, seen = shown + delta.text, seen + character
        held = seen.removeprefix(shown)
        beginnings = [stop[:i] for stop in stops for i in range(1, len(stop)) if seen.endswith(stop[:i])]
        assert held == max(beginnings, key=len, default="")


@pytest.mark.parametrize(
    ("stops", "text", "shown"),
    [
        (("bc", "abcd"), "xabcd", "xa"),
        (("bc", "abc"), "xabc", "x"),
        (("aab",), "aaaab", "aa"),
        (("\n\n",), "a\nb\n\nc", "a\nb"),
        (("漢字",), "漢漢字", "漢"),
        (("e",), "e\u0301", ""),
        (("\ufffd",), "a\ufffdb", "a"),
        (("zz",), "az", "az"),
    ],
)
def test_stop_string_examples(stops: tuple[str, ...], text: str, shown: str) -> None:
    deltas = run(TextStream(BYTE_LEVEL, params(stop=stops)), byte_ids(text))
    assert text_of(deltas) == shown
    assert any(delta.stopped for delta in deltas) == (shown != text)


def test_a_stop_string_that_the_finish_completes() -> None:
    stream = TextStream(BYTE_LEVEL, params(stop=("\ufffd",)))
    ids = byte_ids("a漢")[:-1]
    assert stream.push(ids) == TextDelta("a", 3, False)
    assert stream.push([], "length") == TextDelta("", 0, True)


def test_min_tokens() -> None:
    """A stop string counts from the token on that makes min_tokens of them, also where it began before."""
    ids = byte_ids("a.b..c.")
    expected = {1: "a", 2: "a", 3: "a.b", 4: "a.b", 5: "a.b.", 6: "a.b..c", 7: "a.b..c"}
    for min_tokens, shown in expected.items():
        deltas = run(TextStream(BYTE_LEVEL, params(stop=(".",), min_tokens=min_tokens)), ids)
        assert text_of(deltas) == shown, min_tokens
        whole = TextStream(BYTE_LEVEL, params(stop=(".",), min_tokens=min_tokens)).push(ids, "length")
        assert whole.text == shown, min_tokens
    across = TextStream(BYTE_LEVEL, params(stop=("..",), min_tokens=5))
    assert across.push(ids) == TextDelta("a.b", 5, True)


def test_the_stop_token_adds_no_text() -> None:
    ids = [*byte_ids("ab"), 258]
    for skip in (True, False):
        stream = TextStream(BYTE_LEVEL, params(skip_special_tokens=skip, stop=("b<|end|>",)))
        assert stream.push(ids, "stop", 258) == TextDelta("ab", 3, False)
    ordinary = TextStream(BYTE_LEVEL, params())
    assert ordinary.push(byte_ids("ab"), "stop", byte_ids("b")[0]) == TextDelta("a", 2, False)


def test_text_held_for_a_stop_string_comes_with_the_stop_token() -> None:
    stream = TextStream(BYTE_LEVEL, params(stop=("bcd",)))
    assert stream.push(byte_ids("abc")) == TextDelta("a", 3, False)
    assert stream.push([258], "stop", 258) == TextDelta("bc", 1, False)


def test_stop_strings_see_special_tokens_where_they_are_shown() -> None:
    ids = [*byte_ids("a"), 258, *byte_ids("b")]
    assert text_of(run(TextStream(BYTE_LEVEL, params(stop=("<|end|>",), skip_special_tokens=False)), ids)) == "a"
    assert text_of(run(TextStream(BYTE_LEVEL, params(stop=("<|end|>",))), ids)) == "ab"


def test_after_the_finish_nothing_comes() -> None:
    stream = TextStream(BYTE_LEVEL, params())
    stream.push(byte_ids("a"), "length")
    assert stream.push(byte_ids("b"), "length") == TextDelta("", 0, False)


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_streams_do_not_share_state(make: Callable[[], tokenizers.Tokenizer]) -> None:
    tokenizer = Tokenizer(make())
    left, right = (TextStream(tokenizer, params(stop=("漢字漢",))) for _ in range(2))
    ids = tokenizer.encode("漢字 ab漢字")
    shown = ["", ""]
    for token in ids:
        shown[0] += left.push([token]).text
        shown[1] += right.push([token]).text
    assert shown[0] == shown[1]
    assert shown[0] + left.push([], "length").text == tokenizer.decode(ids)


@settings(deadline=None)
@given(text=LETTERS, stops=STOPS)
def test_the_stop_string_is_shown_where_that_is_asked_for(text: str, stops: tuple[str, ...]) -> None:
    shown = text_of(
        run(TextStream(BYTE_LEVEL, params(stop=stops, include_stop_str_in_output=True)), byte_ids(text))
    )
    ends = [i + len(stop) for stop in stops for i in range(len(text)) if text.startswith(stop, i)]
    assert shown == text[: min(ends, default=len(text))]


@pytest.mark.parametrize(("skip", "shown"), [(False, "ab<|end|>"), (True, "ab")])
def test_the_stop_token_is_shown_where_that_is_asked_for(skip: bool, shown: str) -> None:
    asked = params(skip_special_tokens=skip, include_stop_str_in_output=True)
    assert TextStream(BYTE_LEVEL, asked).push([*byte_ids("ab"), 258], "stop", 258) == TextDelta(shown, 3, False)
