"""JSON in pieces: the same text as at once, and no piece is made of more than a slice."""

import json
from collections.abc import Iterator

import pytest

from remuda.server import sliced_json
from remuda.server.sliced_json import Sliced, encode, json_pieces


def noted(count: int, made: list[int]) -> Iterator[int]:
    for i in range(count):
        made.append(i)
        yield i


@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 15])
def test_pieces_are_the_whole_text(count: int) -> None:
    pieces = list(json_pieces({"a": Sliced(range(count), 7), "c": [Sliced([{"x": "é"}] * count, 2)], "d": 1.5}))
    wanted = {"a": list(range(count)), "c": [[{"x": "é"}] * count], "d": 1.5}
    assert json.loads(b"".join(pieces)) == wanted
    assert b"".join(pieces) == encode(
        {"a": Sliced(range(count), 3), "c": [Sliced([{"x": "é"}] * count, 9)], "d": 1.5}
    )


def test_a_piece_is_made_when_it_is_asked_for() -> None:
    made: list[int] = []
    pieces = json_pieces([Sliced(noted(100, made), 7)])
    before = 0
    for _ in pieces:
        assert len(made) - before <= 7
        before = len(made)
    assert len(made) == 100


def test_without_long_lists_there_is_one_piece() -> None:
    assert list(json_pieces({"a": [1, 2]})) == [b'{"a":[1,2]}']


def test_what_is_no_json_is_an_error() -> None:
    for function in (encode, lambda value: list(json_pieces(value))):
        with pytest.raises(TypeError, match="object is not for JSON"):
            function([object()])


def test_a_text_cannot_pass_for_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands for a list while the rest is encoded is not to be guessed."""
    holes: list[str] = []
    token_hex = sliced_json.secrets.token_hex
    monkeypatch.setattr(sliced_json.secrets, "token_hex", lambda n: holes.append(token_hex(n)) or holes[-1])
    for _ in range(2):
        list(json_pieces([1]))
    assert len(set(holes)) == 2
    assert all(len(hole) == 32 for hole in holes)
