"""The parser of server-sent events: the same events however the bytes are cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuda.clients.errors import BadAnswerError
from remuda.clients.sse import Event, EventParser

STREAMS = [
    (b'data: {"a":1}\n\n', [Event(b'{"a":1}')]),
    (b"data: a\n\ndata: b\n\n", [Event(b"a"), Event(b"b")]),
    (b"data: a\r\n\r\ndata: b\r\n\r\n", [Event(b"a"), Event(b"b")]),
    (b"data: a\r\rdata: b\r\r", [Event(b"a"), Event(b"b")]),
    (b"data: a\r\n\ndata: b\n\r\n", [Event(b"a"), Event(b"b")]),
    (b"data:a\n\n", [Event(b"a")]),
    (b"data:  a\n\n", [Event(b" a")]),
    (b"data: a\ndata: b\n\n", [Event(b"a\nb")]),
    (b"data\n\n", [Event(b"")]),
    (b"data: a: b\n\n", [Event(b"a: b")]),
    (b"event: done\ndata: a\nid: 7\nretry: 3\n\n", [Event(b"a", b"done")]),
    (b"data: a\nevent: done\n\ndata: b\n\n", [Event(b"a", b"done"), Event(b"b")]),
    (b": keep-alive\n\ndata: a\n\n", [Event(b"a")]),
    (b": keep-alive\ndata: a\n\n", [Event(b"a")]),
    (b"event: nothing\n\ndata: a\n\n", [Event(b"a")]),
    (b"\n\n\ndata: a\n\n\n\n\ndata: b\n\n", [Event(b"a"), Event(b"b")]),
    (b"\xef\xbb\xbfdata: a\n\n", [Event(b"a")]),
    ("data: naïve 🐎\n\n".encode(), [Event("naïve 🐎".encode())]),
    (b"data: a\n\ndata: cut off\n", [Event(b"a")]),
    (b"data: a\n\ndata: cut", [Event(b"a")]),
    (b"datum: a\n\nnonsense\n\n", []),
    (b"", []),
]


@pytest.mark.parametrize(("stream", "events"), STREAMS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_do_not_depend_on_the_cuts(stream: bytes, events: list[Event], size: int) -> None:
    parser = EventParser()
    found = [event for i in range(0, len(stream), size) for event in parser.feed(stream[i : i + size])]
    assert found == events


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), min_size=1), max_size=5),
    st.sampled_from([b"\n", b"\r", b"\r\n"]),
    st.data(),
)
def test_what_is_written_is_read(texts: list[str], end: bytes, data: st.DataObject) -> None:
    stream = b"".join(b"data: " + text.encode() + end + end for text in texts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)))) | {0, len(stream)})
    parser = EventParser()
    found = [event.data for a, b in itertools.pairwise(cuts) for event in parser.feed(stream[a:b])]
    assert found == [text.encode() for text in texts]


def test_an_event_is_given_as_soon_as_it_ends() -> None:
    parser = EventParser()
    assert parser.feed(b"data: a\r\n\r") == [Event(b"a")]
    assert parser.feed(b"\ndata: b\n\n") == [Event(b"b")]


@pytest.mark.parametrize("piece", [b"data: " + b"x" * 50, b"x" * 30 + b"\n"])
def test_an_event_without_end_is_refused(piece: bytes) -> None:
    parser = EventParser(max_event_bytes=200)
    while_short = 200 // len(piece)
    for _ in range(while_short):
        assert parser.feed(piece) == []
    with pytest.raises(BadAnswerError, match="longer than the limit of 200 bytes"):
        parser.feed(piece)
