"""Streams written in pieces: the same bytes, other boundaries, in their time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.fake_net import Collected
from tpo_mp.errors import BackendFailure, ConnectionCut
from tpo_mp.simulator.orders import STALL_S, fault_of
from tpo_mp.simulator.slow_writes import HELD_BYTES, SlowWrites, events_in, halves
from tpo_mp.types import Sink

EVENTS = [b"data: one\n\n", "data: zw\u00f6lf\n\n".encode(), b"data: three\n\n"]
WHOLE = b"".join(EVENTS)


class Source:
    """A stream that a test speaks for."""

    def __init__(self) -> None:
        self.sink: Sink | None = None
        self.paused = False
        self.cancelled = False

    def attach(self, sink: Sink) -> None:
        """Keep the listener."""
        self.sink = sink

    def pause(self) -> None:
        """Note it."""
        self.paused = True

    def resume(self) -> None:
        """Note it."""
        self.paused = False

    def cancel(self) -> None:
        """Note it."""
        self.cancelled = True


class Moments:
    """Waits that ring when they are told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, seconds: float, then: Callable[[], None]) -> Callable[[], None]:
        """Wait; what is answered gives it up."""
        entry = (seconds, then)
        self.waiting.append(entry)
        return lambda: (entry in self.waiting and self.waiting.remove(entry)) or None

    def ring(self) -> float:
        """Let the first one ring."""
        seconds, then = self.waiting.pop(0)
        then()
        return seconds


class Scene:
    """A slow writer between a source and a sink."""

    def __init__(self, words: str) -> None:
        self.source, self.sink = Source(), Collected()
        self.moments, self.later = Moments(), Moments()
        self.writes = SlowWrites(self.source, fault_of(words, "x"), self.moments, self.later)
        self.writes.attach(self.sink)

    def through(self) -> None:
        """Let all waits ring."""
        while self.moments.waiting:
            self.moments.ring()


def test_trickle_is_a_few_bytes_at_a_time() -> None:
    """One write, then the pause, then the next; the end after the last."""
    scene = Scene("trickle; bytes=4; every=0.2")
    scene.writes.data(WHOLE)
    scene.writes.end(None)
    assert scene.sink.chunks == [WHOLE[:4]]
    assert scene.moments.ring() == 0.2
    assert scene.sink.chunks == [WHOLE[:4], WHOLE[4:8]]
    assert scene.sink.ends == []
    scene.through()
    assert scene.sink.text == WHOLE
    assert scene.sink.ends == [None]
    assert scene.later.waiting == []


def test_split_cuts_inside_characters() -> None:
    """And in the middle of events without one that has several bytes."""
    scene = Scene("split")
    scene.writes.data(WHOLE)
    scene.writes.end(None)
    scene.through()
    assert scene.sink.text == WHOLE
    assert len(scene.sink.chunks) == 6
    with pytest.raises(UnicodeDecodeError):
        scene.sink.chunks[2].decode()
    assert b"".join(scene.sink.chunks[2:4]).decode()


def test_coalesced_events_leave_in_groups() -> None:
    """What is left over goes with the end, whatever batches they came in."""
    scene = Scene("coalesce; events=2")
    for event in EVENTS:
        scene.writes.data(event)
    assert scene.sink.chunks == [EVENTS[0] + EVENTS[1]]
    scene.writes.end(None)
    scene.through()
    assert scene.sink.chunks == [EVENTS[0] + EVENTS[1], EVENTS[2]]
    assert scene.sink.ends == [None]
    together = Scene("coalesce; events=2")
    together.writes.data(WHOLE)
    together.writes.end(None)
    together.through()
    assert together.sink.chunks == scene.sink.chunks


def test_error_comes_after_what_was_said() -> None:
    """Nothing is lost before it."""
    scene, error = Scene("trickle; bytes=8; every=1"), BackendFailure("broke")
    scene.writes.data(WHOLE)
    scene.writes.end(error)
    scene.through()
    assert scene.sink.text == WHOLE
    assert scene.sink.ends == [error]


def test_paused_client_stops_the_source_too() -> None:
    """Nothing is written meanwhile; then all goes on."""
    scene = Scene("trickle; bytes=8; every=1")
    scene.writes.data(WHOLE)
    scene.writes.pause()
    assert scene.source.paused
    scene.through()
    assert scene.sink.chunks == [WHOLE[:8]]
    scene.writes.resume()
    scene.through()
    assert not scene.source.paused
    assert scene.sink.text == WHOLE


def test_resume_with_nothing_held_lets_the_source_go_on() -> None:
    """Or the stream would never end."""
    scene = Scene("split")
    scene.writes.pause()
    scene.writes.resume()
    assert not scene.source.paused


def test_fast_source_waits_for_slow_writes() -> None:
    """What is held is bounded."""
    scene = Scene("trickle; bytes=1024; every=1")
    scene.writes.data(b"x" * (HELD_BYTES + 2048))
    assert scene.source.paused
    while scene.source.paused:
        scene.moments.ring()
    assert len(scene.sink.text) > HELD_BYTES // 2


def test_cancelled_stream_is_silent() -> None:
    """The source is told, and nothing waits any more."""
    scene = Scene("trickle; bytes=1; every=1")
    scene.writes.data(WHOLE)
    scene.writes.cancel()
    scene.writes.cancel()
    assert scene.source.cancelled
    assert (scene.moments.waiting, scene.later.waiting) == ([], [])
    assert scene.sink.ends == []
    assert scene.sink.text == WHOLE[:1]


def test_trickle_that_would_never_end_is_cut() -> None:
    """After as long as a stall."""
    scene = Scene("trickle; bytes=1; every=60")
    scene.writes.data(WHOLE)
    assert scene.later.ring() == STALL_S
    assert [type(end) for end in scene.sink.ends] == [ConnectionCut]
    assert scene.source.cancelled


def test_pieces_are_the_whole() -> None:
    """However an event or a batch is taken apart."""
    assert list(events_in(WHOLE)) == EVENTS
    assert list(events_in(WHOLE[:-1])) == [*EVENTS[:2], EVENTS[2][:-1]]
    for event in (*EVENTS, b"x", b"ab"):
        assert b"".join(halves(event)) == event
        assert all(halves(event))
