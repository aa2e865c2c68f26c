"""A stream in the middle: what goes through it, and what does not after its end."""

from __future__ import annotations

from tests.support.fake_net import Collected, HeldStream
from tpo_mp.errors import BackendFailure
from tpo_mp.pipeline.between import Between


def test_bytes_go_down_and_pauses_go_up() -> None:
    """One end comes through, and nothing after it."""
    held, sink = HeldStream(), Collected()
    between = Between(held)
    between.attach(sink)
    between.pause()
    between.resume()
    held.data(b"a")
    error = BackendFailure("cut")
    held.end(error)
    between.data(b"late")
    between.end(None)
    assert (sink.text, sink.ends) == (b"a", [error])
    assert held.told[-2:] == ["pause", "resume"]


def test_a_reader_who_left_hears_nothing() -> None:
    """And the origin is told to stop."""
    held, sink = HeldStream(), Collected()
    between = Between(held)
    between.attach(sink)
    between.cancel()
    between.data(b"late")
    between.end(None)
    assert (sink.text, sink.ends, held.told[-1]) == (b"", [], "cancel")
