"""The stream of an answer: released, paused, cancelled, struck by a fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.support.fake_net import Collected
from tpo_mp.simulator.orders import FaultOrder
from tpo_mp.simulator.source import AtOnce, SimulatedStream, broken

FRAMES = [(b"start ", False), (b"a ", True), (b"b ", True), (b"c ", True), (b"end", False)]


class ByHand:
    """A pace that a test drives."""

    def __init__(self) -> None:
        self.stopped = False

    def begin(self, release: Callable[[int], None]) -> None:
        """Keep the key."""
        self.release = release

    def stop(self) -> None:
        """Note the end."""
        self.stopped = True


def never(seconds: float, then: Callable[[], None]) -> Callable[[], None]:
    """An alarm that does not ring."""
    return lambda: None


def stream(pace: ByHand | AtOnce, fault: FaultOrder | None = None) -> SimulatedStream:
    """A stream of three tokens."""
    return SimulatedStream(iter(FRAMES), pace, fault, never)


def test_tokens_go_when_they_are_released() -> None:
    """What is no token goes with what stands before it; the end comes once."""
    pace, sink = ByHand(), Collected()
    stream(pace).attach(sink)
    assert sink.text == b"start "
    pace.release(1)
    assert sink.text == b"start a "
    pace.release(5)
    assert sink.text == b"start a b c end"
    assert sink.ends == [None]
    assert pace.stopped


def test_what_may_go_together_leaves_in_one_write() -> None:
    """And nothing is rendered before it may go."""
    rendered: list[bytes] = []

    def frames() -> Iterator[tuple[bytes, bool]]:
        for frame in FRAMES:
            rendered.append(frame[0])
            yield frame

    pace, sink = ByHand(), Collected()
    SimulatedStream(frames(), pace, None, never).attach(sink)
    assert rendered == [b"start ", b"a "]
    pace.release(2)
    assert sink.chunks == [b"start ", b"a b "]
    whole = Collected()
    stream(AtOnce()).attach(whole)
    assert whole.chunks == [b"start a b c end"]


def test_paused_stream_keeps_what_is_released() -> None:
    """And gives it when it goes on."""
    pace, sink = ByHand(), Collected()
    made = stream(pace)
    made.attach(sink)
    made.pause()
    pace.release(9)
    assert sink.text == b"start "
    made.resume()
    assert sink.text == b"start a b c end"


def test_cancelled_stream_is_silent() -> None:
    """The pace is told, the sink is not."""
    pace, sink = ByHand(), Collected()
    made = stream(pace)
    made.attach(sink)
    made.cancel()
    made.cancel()
    pace.release(9)
    assert sink.text == b"start "
    assert sink.ends == []
    assert pace.stopped


def test_fault_meets_the_token_it_names() -> None:
    """Tokens before it went; one that never comes changes nothing."""
    sink = Collected()
    stream(AtOnce(), FaultOrder("disconnect", 2)).attach(sink)
    assert sink.text == b"start a b "
    assert sink.ends != [None]
    late = Collected()
    stream(AtOnce(), FaultOrder("disconnect", 9)).attach(late)
    assert late.ends == [None]


def test_broken_event_stays_one_event() -> None:
    """So that a reader meets bad JSON, not a bad stream."""
    assert broken(b'data: {"a": "b"}\n\n').count(b"\n\n") == 1
    assert broken(b'{"a": "b"}') == b'{"a": '
