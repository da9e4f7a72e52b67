"""The event-stream parser, against the specification's examples and a plain reading of whole texts."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afdc.sdk import sse
from afdc.sdk.sse import Message, OversizedError, SseParser


def whole(data: bytes) -> list[Message]:
    """The specification's algorithm on a text that is all there (WHATWG HTML, 9.2.6), written another way."""
    text = data.decode(errors="replace").removeprefix("\ufeff")
    ended = re.sub(r"\r\n|\r", "\n", text)
    last_id, found = "", []
    *blocks, _ = re.split(r"(?<![^\n])\n", ended)  # an empty line ends a block
    for block in blocks:
        event, lines = "", []
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            value = value[1:] if value.startswith(" ") else value
            if name == "data":
                lines.append(value)
            elif name == "event":
                event = value
            elif name == "id" and "\0" not in value:
                last_id = value
        if lines:
            found.append(Message(last_id, event or "message", "\n".join(lines)))
    return found


def parse(*pieces: bytes) -> list[Message]:
    parser = SseParser()
    return [message for piece in pieces for message in parser.feed(piece)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = [*sorted(place % (len(data) + 1) for place in places), len(data)]
    starts = [0, *ends[:-1]]
    return [data[start:end] for start, end in zip(starts, ends, strict=True)]


LINES = st.sampled_from(
    [
        b"data: one",
        b"data:two",
        b"data",
        b"data:",
        b"data:  spaced",
        b": ping",
        b":",
        b"event: round",
        b"event",
        b"id: 7",
        b"id: \x00",
        b"id",
        b"retry: 250",
        b"retry: soon",
        b"unknown: x",
        b"data: a:b: c",
        "data: \u00e9\u2028\U0001f600\x85\x0b".encode(),
        b"data: \xff\xc3",
        b"",
        b"",
    ]
)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
STREAMS = st.tuples(
    st.sampled_from([b"", b"\xef\xbb\xbf"]), st.lists(st.tuples(LINES, ENDS).map(b"".join), max_size=30).map(b"".join)
).map(b"".join)


@given(STREAMS, st.lists(st.integers(0, 10_000), max_size=12))
def test_cutting_anywhere_changes_nothing(data: bytes, places: list[int]) -> None:
    assert parse(*cut(data, places)) == parse(data) == parse(*(bytes([byte]) for byte in data))


@given(STREAMS)
def test_a_plain_reading_says_the_same(data: bytes) -> None:
    assert parse(data) == whole(data)


@given(st.binary(max_size=200), st.lists(st.integers(0, 10_000), max_size=5))
def test_any_bytes_are_survived(data: bytes, places: list[int]) -> None:
    assert parse(*cut(data, places)) == parse(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [Message("", "message", "YHOO\n+2\n10")]),
        (
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            [
                Message("1", "message", "first event"),
                *(Message("", "message", x) for x in ("second event", " third event")),
            ],
        ),
        (b"data\n\ndata\ndata\n\ndata:", [Message("", "message", ""), Message("", "message", "\n")]),
        (b"data:test\n\ndata: test\n\n", [Message("", "message", "test")] * 2),
        (b"event: add\ndata: 1\n\ndata: 2\n\n", [Message("", "add", "1"), Message("", "message", "2")]),
        (b"data: never ended\n", []),
    ],
)
def test_examples_of_the_specification(data: bytes, expected: list[Message]) -> None:
    assert parse(data) == expected


def test_reconnection_time() -> None:
    parser = SseParser()
    parser.feed(b"retry: 250\nretry: x\nretry: -1\n")
    assert parser.retry_ms == 250


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_MESSAGE_BYTES", 1000)
    parser = SseParser()
    for _ in range(1000):
        assert parser.feed(b": a ping of some length\n") == []
    parser.feed(b"data: x\n\n")
    parser.feed(b"data: 0123456789\n" * 60)
    with pytest.raises(OversizedError):
        parser.feed(b"data: 0123456789\n" * 10)
