"""A stream in the middle: what goes through it, and what does not after its end."""

from __future__ import annotations

from tests.support.fake_net import Collected, HeldStream
from tpo_mp.errors import BackendFailure, TpoError
from tpo_mp.pipeline.between import Between, Spliced


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


class Chain(Spliced):
    """Goes on when the test says so."""

    stopped = 0

    def stop_looking(self) -> None:
        """Count it."""
        self.stopped += 1

    def data(self, chunk: bytes) -> None:
        """Pass it on."""
        if self._sink is not None:
            self._sink.data(chunk)

    def end(self, error: TpoError | None) -> None:
        """There is none until the test gives one."""
        self._origin = None


def test_the_next_stream_is_met_as_the_reader_is() -> None:
    """Paused, if it is; and only the one that is followed is told anything."""
    first, second, sink = HeldStream(), HeldStream(), Collected()
    chain = Chain(first)
    chain.attach(sink)
    first.data(b"a")
    first.end(BackendFailure("cut"))
    chain.pause()
    chain.follow(second)
    assert second.told == ["pause"]
    chain.resume()
    second.data(b"b")
    assert sink.text == b"ab"
    chain.cancel()
    second.data(b"late")
    assert (sink.text, second.told[-1], chain.stopped) == (b"ab", "cancel", 0)
    assert "cancel" not in first.told


def test_who_leaves_between_two_ends_the_search() -> None:
    """And nothing else, since nothing flows."""
    held = HeldStream()
    chain = Chain(held)
    chain.attach(Collected())
    held.end(BackendFailure("cut"))
    chain.cancel()
    assert (chain.stopped, "cancel" in held.told) == (1, False)
