"""Server-sent events: the same events whatever the newlines and wherever the cuts."""

from __future__ import annotations

import pytest

from tpo_mp.dialects import sse
from tpo_mp.dialects.sse import EventCutter
from tpo_mp.errors import BackendFailure

STREAM = (
    b": hello\n\n"
    b"event: ping\ndata: {}\n\n"
    b"id: 7\nretry: 10\ndata:no space\n\n"
    b"data: one\ndata: two\n\n"
    b"\n\n"
    b'data: {"text":"data: [DONE] \xe6\xbc\xa2 \xf0\x9f\x98\x80"}\n\n'
    b"event: empty\n\n"
    b"data: \n\n"
    b"data\n\n"
    b"event: hollow\ndata: \n\n"
    b"data: [DONE]\n\n"
)
EVENTS = [
    (b"ping", b"{}"),
    (b"", b"no space"),
    (b"", b"one\ntwo"),
    (b"", b'{"text":"data: [DONE] \xe6\xbc\xa2 \xf0\x9f\x98\x80"}'),
    (b"", b"[DONE]"),
]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_every_cut_gives_the_same_events(newline: bytes, bom: bytes) -> None:
    """Cut in two at every byte, with each kind of newline."""
    stream = bom + STREAM.replace(b"\n", newline)
    for cut in range(len(stream)):
        cutter = EventCutter()
        assert cutter.feed(stream[:cut]) + cutter.feed(stream[cut:]) == EVENTS


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_byte_by_byte_gives_the_same_events(newline: bytes) -> None:
    """The smallest reads there are."""
    cutter = EventCutter()
    stream = STREAM.replace(b"\n", newline)
    assert [e for i in range(len(stream)) for e in cutter.feed(stream[i : i + 1])] == EVENTS


def test_an_unfinished_event_does_not_count() -> None:
    """Without its blank line an event was cut off."""
    assert EventCutter().feed(b"data: half\n") == []


def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one long line nor many lines may grow without bound."""
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    for chunk in (b"data: " + b"x" * 30, b"data: " + b"x" * 30 + b"\n"):
        cutter = EventCutter()
        assert cutter.feed(chunk) + cutter.feed(chunk) == []
        with pytest.raises(BackendFailure) as refused:
            assert [cutter.feed(chunk) for _ in range(2)]
        assert refused.value.reason == "endless_reply"
