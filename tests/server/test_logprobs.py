"""logprobs: token strings, offsets, and the three shapes."""

import json
import math
from typing import Any

import pytest

from remuda.engine.logprob_pieces import pack
from remuda.engine.tokenizer import TokenIdTokenizer
from remuda.engine.wire import TokenLogprobs
from remuda.server.logprobs import (
    TextOffsets,
    chat_logprobs,
    completion_logprobs,
    prompt_logprobs,
    token_string,
)
from remuda.server.sliced_json import encode
from tests.server.fake_info import BOS, END
from tests.server.fakes import TOKENIZER, ids


def test_token_strings() -> None:
    assert token_string(TOKENIZER, ids("H")[0]) == "H"
    assert token_string(TOKENIZER, END) == "<end>"
    assert [token_string(TOKENIZER, token) for token in ids("é")] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert token_string(TokenIdTokenizer(), 7) == "token_id:7"


@pytest.mark.parametrize("text", ["plain", "é😀 ü", "a\n\tb", "日本"])
def test_offsets_point_into_the_text(text: str) -> None:
    offsets = TextOffsets(TOKENIZER, TOKENIZER.special_ids)
    found = [offsets.advance(token) for token in [BOS, *ids(text), END]]
    starts = [0]
    for i in range(1, len(text.encode()) + 1):
        # Characters begun by the first i bytes.
        starts.append(sum(byte & 0xC0 != 0x80 for byte in text.encode()[:i]))
    assert found == [0, *starts]


def test_offsets_without_tokenizer() -> None:
    tokenizer = TokenIdTokenizer()
    offsets = TextOffsets(tokenizer, frozenset())
    text = tokenizer.decode([7, 10, 3])
    assert [text[offsets.advance(token) :] for token in (7, 10, 3)] == [text, text[10:], text[22:]]


def test_offsets_of_a_text_prompt() -> None:
    offsets = TextOffsets(TOKENIZER, TOKENIZER.special_ids)
    offsets.set_prompt(3, num_hidden=1)
    # <bos> was added, <end> is in the client's own text, the second <end> ends the answer.
    assert [offsets.advance(token) for token in (BOS, END, *ids("x"), END, *ids("y"))] == [0, 0, 5, 6, 6]


def plain(value: object) -> Any:
    """As a client reads it."""
    return json.loads(encode(value))


def test_completion_shape() -> None:
    h, i = ids("Hi")
    entries = [None, TokenLogprobs(i, -0.5, [(h, -0.25)])]
    output = [TokenLogprobs(h, -math.inf, [(i, -0.1), (h, -math.inf)])]
    offsets = TextOffsets(TOKENIZER, frozenset())
    assert plain(completion_logprobs([h, i], pack(entries), output, offsets, 1, TOKENIZER)) == {
        "tokens": ["H", "i", "H"],
        "token_logprobs": [None, -0.5, -9999.0],
        "top_logprobs": [None, {"H": -0.25, "i": -0.5}, {"i": -0.1, "H": -9999.0}],
        "text_offset": [0, 1, 2],
    }


def test_chat_shape() -> None:
    first, second = ids("é")
    entries = [TokenLogprobs(first, -0.5, [(first, -0.5), (second, -2.0)])]
    described = {"token": "bytes:\\xc3", "logprob": -0.5, "bytes": [0xC3]}
    assert plain(chat_logprobs(entries, 1, TOKENIZER)) == {
        "content": [{**described, "top_logprobs": [described]}],
        "refusal": None,
    }
    assert plain(chat_logprobs(entries, 0, TOKENIZER))["content"][0]["top_logprobs"] == []


def test_prompt_shape() -> None:
    h, i = ids("Hi")
    found = prompt_logprobs(pack([None, TokenLogprobs(i, -0.5, [(h, -0.25)])]), 1, TOKENIZER)
    assert plain(found) == [
        None,
        {
            str(i): {"logprob": -0.5, "rank": None, "decoded_token": "i"},
            str(h): {"logprob": -0.25, "rank": 1, "decoded_token": "H"},
        },
    ]
