"""The stream of an answer: released, paused, cancelled, struck by a fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.support.fake_net import Collected
from tpo_mp.errors import ConnectionCut
from tpo_mp.simulator.fault_frames import cut
from tpo_mp.simulator.orders import FaultOrder
from tpo_mp.simulator.source import SimulatedStream, WholeAnswer
from tpo_mp.simulator.timing import AT_ONCE, Pace

FRAMES = [(b"start ", False), (b"a ", True), (b"b ", True), (b"c ", True), (b"end", False)]


class ByHand:
    """A pace that a test drives."""

    def __init__(self) -> None:
        self.stopped = 0

    def begin(self, release: Callable[[int], None]) -> None:
        """Keep the key."""
        self.release = release

    def stop(self) -> None:
        """Note the end."""
        self.stopped += 1


def never(seconds: float, then: Callable[[], None]) -> Callable[[], None]:
    """An alarm that does not ring."""
    return lambda: None


def started(
    pace: Pace, frames: Iterator[tuple[bytes, int]] | None = None, fault: FaultOrder | None = None
) -> tuple[SimulatedStream, Collected]:
    """A stream of three tokens, with a sink from its first token on."""
    made, sink = SimulatedStream(frames or iter(FRAMES), pace, fault, never), Collected()
    made.start(lambda: made.attach(sink))
    return made, sink


def test_tokens_go_when_they_are_released() -> None:
    """The first with what stands before it; the end comes once, and the pace hears of it once."""
    pace = ByHand()
    _, sink = started(pace)
    assert sink.text == b""
    pace.release(1)
    assert sink.text == b"start a "
    pace.release(5)
    assert sink.text == b"start a b c end"
    assert sink.ends == [None]
    assert pace.stopped == 1


def test_whole_answer_is_ready_with_its_last_token() -> None:
    """Once; and one given up never."""
    pace, told = ByHand(), []
    WholeAnswer(pace, 3).start(lambda: told.append("ready"))
    pace.release(2)
    assert told == []
    pace.release(1)
    pace.release(1)
    assert told == ["ready"]
    assert pace.stopped == 1
    given_up = WholeAnswer(pace, 1)
    given_up.start(lambda: told.append("never"))
    given_up.cancel()
    pace.release(1)
    assert told == ["ready"]
    assert pace.stopped == 2


def test_what_may_go_together_leaves_in_one_write() -> None:
    """And nothing is rendered before it may go."""
    rendered: list[bytes] = []

    def frames() -> Iterator[tuple[bytes, int]]:
        for frame in FRAMES:
            rendered.append(frame[0])
            yield frame

    pace = ByHand()
    _, sink = started(pace, frames())
    assert rendered == []
    pace.release(1)
    assert rendered == [b"start ", b"a ", b"b "]
    pace.release(2)
    assert sink.chunks == [b"start a ", b"b c end"]
    _, whole = started(AT_ONCE)
    assert whole.chunks == [b"start a b c end"]


def test_paused_stream_keeps_what_is_released() -> None:
    """And gives it when it goes on."""
    pace = ByHand()
    made, sink = started(pace)
    pace.release(1)
    made.pause()
    pace.release(9)
    assert sink.text == b"start a "
    made.resume()
    assert sink.text == b"start a b c end"


def test_cancelled_stream_is_silent() -> None:
    """The pace is told once, the sink is not; one without a sink yet never has one."""
    pace = ByHand()
    made, sink = started(pace)
    pace.release(1)
    made.cancel()
    made.cancel()
    pace.release(9)
    assert sink.text == b"start a "
    assert sink.ends == []
    assert pace.stopped == 1
    early, sink = started(pace)
    early.cancel()
    pace.release(9)
    assert sink.text == b""


def test_stall_meets_the_token_it_names() -> None:
    """Tokens before it went; one that never comes changes nothing."""
    _, sink = started(AT_ONCE, fault=FaultOrder("stall", 2))
    assert sink.text == b"start a b "
    assert sink.ends == []
    _, late = started(AT_ONCE, fault=FaultOrder("stall", 9))
    assert late.ends == [None]


def test_error_that_the_frames_end_with_is_heard() -> None:
    """After all that went before it, in time."""

    def frames() -> Iterator[tuple[bytes, int]]:
        yield from FRAMES[:3]
        raise cut()

    pace = ByHand()
    _, sink = started(pace, frames())
    pace.release(1)
    assert sink.ends == []
    pace.release(1)
    assert sink.text == b"start a b "
    assert [type(end) for end in sink.ends] == [ConnectionCut]
    assert pace.stopped == 1
