"""Grammars against brute force: a token is allowed where, and only where, some allowed text goes on with it."""

import random
from collections.abc import Callable

import numpy as np
import pytest

from remuda.engine import grammar_compiler
from remuda.engine.checkpoint.find import find_checkpoint
from remuda.engine.checkpoint.tokenizer_files import character_tokenizer
from remuda.engine.errors import InvalidRequestError
from remuda.engine.grammar import MAX_GRAMMAR_CHARS, MAX_REGEX_CHARS, Grammar, token_bytes
from remuda.engine.grammar_compiler import GrammarCompiler
from remuda.engine.guide import Guide, banned, masks
from remuda.engine.tokenizer import TokenIdTokenizer, Tokenizer, load_tokenizer

# Single bytes, pieces that overlap, half a character, one without text; not a multiple of 32.
TOKENS = [b"", *(bytes([b]) for b in b'abc"{}:,0123 \n-'), "é".encode(), "é".encode()[:1], "é".encode()[1:]]
TOKENS += [b"ab", b"abc", b"bc", b"aa", b'":', b'{"', b'"}', b"12", b"true", b"false", b"null", b"a\n"]
EOS, STOP = 0, TOKENS.index(b"-")
V = len(TOKENS)


def compiler_of(tokens: list[bytes] = TOKENS) -> GrammarCompiler:
    return GrammarCompiler(lambda: tokens)


def guide_of(grammar: Grammar, stop_ids: frozenset[int] = frozenset({EOS}), min_tokens: int = 0) -> Guide:
    return Guide(compiler_of().matcher(grammar), V, stop_ids, min_tokens)


def allowed(guide: Guide, num_tokens: int = 0) -> set[int]:
    return set(np.flatnonzero(~banned(masks([guide], [num_tokens])[0], V)).tolist())


def as_regex(texts: list[str]) -> Grammar:
    return Grammar("regex", "|".join(texts))


def as_lark(texts: list[str]) -> Grammar:
    return Grammar("grammar", "start: " + " | ".join(f'"{text}"' for text in texts))


def as_gbnf(texts: list[str]) -> Grammar:
    return Grammar("grammar", "root ::= " + " | ".join(f'"{text}"' for text in texts))


@pytest.mark.parametrize("write", [as_regex, as_lark, as_gbnf])
@pytest.mark.parametrize("seed", range(4))
def test_masks_are_those_of_brute_force(write: Callable[[list[str]], Grammar], seed: int) -> None:
    rng = random.Random(seed)
    texts = ["".join(rng.choice("abcé1 ") for _ in range(rng.randrange(1, 7))) for _ in range(12)]
    whole = {text.encode() for text in texts}
    for _ in range(6):
        guide, written = guide_of(write(texts)), b""
        while not guide.is_finished:
            following = {
                i for i, t in enumerate(TOKENS) if t and any(text.startswith(written + t) for text in whole)
            }
            may_end = {EOS} if written in whole else set()
            assert allowed(guide) == following | may_end
            token = rng.choice(sorted(following | may_end))
            if token == EOS:
                break
            written += TOKENS[token]
            guide.accept(token)
            assert guide.error is None
        assert written in whole
        assert guide.is_finished == (
            not any(t != written and t.startswith(written) for t in whole) and written != b""
        )


def test_every_stop_id_waits_for_a_complete_text() -> None:
    guide = guide_of(Grammar("regex", "ab(c|1)*"), frozenset({EOS, STOP}))
    assert allowed(guide).isdisjoint({EOS, STOP})
    guide.accept(TOKENS.index(b"ab"))
    assert allowed(guide) >= {EOS, STOP, TOKENS.index(b"c"), TOKENS.index(b"12")} - {TOKENS.index(b"12")}


def test_min_tokens_hold_stop_ids_back_unless_nothing_else_is_possible() -> None:
    guide = guide_of(Grammar("regex", "a{0,2}"), frozenset({EOS}), min_tokens=9)
    a, aa = TOKENS.index(b"a"), TOKENS.index(b"aa")
    assert allowed(guide, 0) == {a, aa}
    assert allowed(guide, 9) == {a, aa, EOS}
    empty = guide_of(Grammar("regex", ""), frozenset({EOS}), min_tokens=9)
    assert allowed(empty, 0) == {EOS}


def test_a_complete_text_without_stop_ids_is_finished() -> None:
    guide = guide_of(Grammar("regex", ""), frozenset())
    assert allowed(guide) == set(range(V))
    assert (guide.is_finished, guide.error) == (True, None)


def test_a_token_that_is_not_allowed_is_an_error_and_harms_no_other() -> None:
    first, second = (guide_of(Grammar("regex", "abc")) for _ in range(2))
    first.accept(TOKENS.index(b"1"))
    assert "grammar" in (first.error or "")
    assert "<state>" not in (first.error or "")
    second.accept(TOKENS.index(b"abc"))
    assert second.is_finished
    assert second.error is None


@pytest.mark.parametrize("vocab_size", [V, 32, 64])
def test_masks_of_several_are_those_of_each(vocab_size: int) -> None:
    """Also of one that fails, one that has ended, and one whose end is held back; nobody's changes another's."""
    tokens = [*TOKENS, *(bytes([i]) for i in range(128, 192))][:vocab_size]
    compiler = compiler_of(tokens)
    lark = Grammar("grammar", 'start: "a" ("b" | "c")*')
    texts = [
        (lark, b""),
        (lark, b"abc"),
        (Grammar("regex", "a?"), b"a"),
        (lark, b"11"),
        (lark, b"a"),
        (lark, b"ab"),
    ]

    def guides() -> list[Guide]:
        made = []
        for i, (grammar, text) in enumerate(texts):
            guide = Guide(compiler.matcher(grammar), vocab_size, frozenset({EOS, 3}), min_tokens=9 * (i == 4))
            for byte in text:
                guide.accept(tokens.index(bytes([byte])))
            made.append(guide)
        return made

    together, alone = guides(), guides()
    nums = [2] * len(texts)
    found = masks(together, nums)
    assert found.shape == (len(texts), -(-vocab_size // 32))
    for row, guide, same, num_tokens in zip(found, together, alone, nums, strict=True):
        assert (row == masks([same], [num_tokens])[0]).all()
        assert (guide.error, guide.is_finished) == (same.error, same.is_finished)
    assert [guide.error is None for guide in together] == [True, True, True, False, True, True]
    assert len({row.tobytes() for row in found}) > 3


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar("regex", "a(?=b)"), "look-around"),
        (Grammar("regex", "(a"), "unclosed"),
        (Grammar("regex", "[" * 400), "."),
        (Grammar("regex", "(" * 2000 + ")" * 2000), "."),
        (Grammar("regex", "x"), "."),
        (Grammar("grammar", "start: missing"), "missing"),
        (Grammar("grammar", "root ::= ("), "."),
        (Grammar("grammar", '%llguidance {"no_forcing": false}\nstart: "a"'), "%llguidance"),
        (Grammar("grammar", ""), "."),
        (Grammar("grammar", "start: <|end|>"), "special token"),
        (Grammar("json_schema", '{"type": "array", "uniqueItems": true}'), "uniqueItems"),
        (Grammar("json_schema", '{"type": "foo"}'), "foo"),
        (Grammar("json_schema", '{"$ref": "#/$defs/none"}'), "does not exist"),
        (Grammar("json_schema", '{"$ref": "http://127.0.0.1/schema"}'), "."),
        (Grammar("json_schema", '{"oneOf": [{"type": "string"}, {"minLength": 1}]}'), "oneOf"),
        (Grammar("json_schema", '{"type": "array", "uniqueItems": true, "x-guidance": {"lenient": true}}'), "."),
        (Grammar("json_schema", "[]"), "object"),
        (Grammar("json_schema", '{"not": ' * 2000 + "{}" + "}" * 2000), "."),
        (Grammar("json_schema", "{"), "."),
    ],
    ids=lambda value: value.text[:30] if isinstance(value, Grammar) else "",
)
def test_bad_grammars_are_refused_and_good_ones_before_and_after_work(grammar: Grammar, reason: str) -> None:
    compiler = compiler_of()
    good = Grammar("regex", "abc")
    assert compiler.matcher(good).is_accepting() is False
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match=reason) as caught:
            compiler.matcher(grammar)
        assert caught.value.param == "grammar"
        assert str(caught.value).startswith("grammar: ")
        assert len(str(caught.value)) < 400
    assert compiler.matcher(good).consume_token(TOKENS.index(b"abc"))
    assert compiler.matcher(Grammar("regex", "ab")).consume_token(TOKENS.index(b"ab"))


@pytest.mark.parametrize(("kind", "limit"), [("regex", MAX_REGEX_CHARS), ("grammar", MAX_GRAMMAR_CHARS)])
def test_limits_of_size(kind: str, limit: int) -> None:
    Grammar(kind, "a" * limit)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match=f"limit of {limit}") as caught:
        Grammar(kind, "a" * (limit + 1), "structured_outputs")  # type: ignore[arg-type]
    assert caught.value.param == "structured_outputs"


@pytest.mark.parametrize("grammar", [("yaml", "a"), ("regex", None), ("regex", "\ud800")])
def test_what_is_no_grammar(grammar: tuple[object, object]) -> None:
    with pytest.raises(InvalidRequestError):
        Grammar(*grammar)  # type: ignore[arg-type]


def test_the_cache_is_bounded_and_gives_fresh_matchers(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = compiler_of()
    for i in range(3 * grammar_compiler.MAX_CACHED):
        compiler.matcher(Grammar("regex", f"ab{i}"))
        assert compiler.num_cached <= grammar_compiler.MAX_CACHED
    first = compiler.matcher(Grammar("regex", "ab1"))
    assert first.consume_token(TOKENS.index(b"ab"))
    assert compiler.matcher(Grammar("regex", "ab1")).consume_token(TOKENS.index(b"ab"))
    monkeypatch.setattr(grammar_compiler, "MAX_CACHED_CHARS", 50)
    for i in range(30):
        compiler.matcher(Grammar("regex", f"a{i:09}"))
    assert compiler.num_cached == 5
    # One that is larger than all may be is kept as long as it is the last.
    compiler.matcher(Grammar("regex", "a" * 60))
    assert compiler.num_cached == 1
    with pytest.raises(InvalidRequestError):
        compiler.matcher(Grammar("regex", "(" * 51))
    assert compiler.num_cached == 1


def test_a_model_without_a_tokenizer() -> None:
    compiler = GrammarCompiler(lambda: token_bytes(TokenIdTokenizer(), 50))
    with pytest.raises(InvalidRequestError, match="no tokenizer"):
        compiler.matcher(Grammar("regex", "a"))


def test_bytes_of_the_demo_model() -> None:
    tokenizer = load_tokenizer(find_checkpoint("demo"))
    found = token_bytes(tokenizer, 2050)
    assert found is not None
    assert len(found) == 2050
    assert found[:4] == [b""] * 4
    assert found[2048:] == [b"", b""]
    text = 'Once upon a time {"é": 1}'
    assert b"".join(found[i] for i in tokenizer.encode(text)) == text.encode()


def test_bytes_of_a_model_of_characters() -> None:
    tokenizer = Tokenizer(character_tokenizer({"\n": 0, "a": 1, "é": 2, " ": 3, "<": 4}))
    found = token_bytes(tokenizer, 8)
    assert found == [b"\n", b"a", "é".encode(), b" ", b"<", b"", b"", b""]
    compiler = compiler_of(found)
    # No end token, and none is needed.
    guide = Guide(compiler.matcher(Grammar("regex", "aé{1,2}<")), 8, frozenset())
    for token, following in ((1, {2}), (2, {2, 4}), (2, {4})):
        guide.accept(token)
        assert set(np.flatnonzero(~banned(masks([guide], [1])[0], 8)).tolist()) == following
    guide.accept(4)
    assert guide.is_finished
    with pytest.raises(InvalidRequestError, match="no text that this model can write"):
        compiler.matcher(Grammar("regex", "[0-9]+"))
