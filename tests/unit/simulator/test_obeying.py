"""What of the orders comes before a byte."""

from __future__ import annotations

import pytest

from tpo_mp.errors import ConnectionCut
from tpo_mp.simulator.obeying import TOO_LATE, beginning, in_time
from tpo_mp.simulator.orders import STALL_S, ErrorOrder, FaultOrder, Orders, fault_of


def ordered(words: str, *, streamed: bool = True, delay_s: float = 0.0) -> Orders:
    """The fault in these words."""
    return Orders(fault=fault_of(words, "x"), delay_s=delay_s)


@pytest.mark.parametrize(
    ("words", "wait_s", "reason"),
    [
        ("refuse", 0, ConnectionCut.RESET),
        ("reset", 0, ConnectionCut.RESET),
        ("disconnect", 0, "simulated_disconnect"),
        ("hang", STALL_S, "simulated_disconnect"),
        ("stall", STALL_S, "simulated_disconnect"),
        ("hang; for=3", 3, None),
        ("slow; for=3", 3, None),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_connection_ends_or_waits(
    words: str, wait_s: float, reason: str | None, streamed: bool
) -> None:
    """Whole or streamed; a delay comes on top."""
    begin = beginning(ordered(words, delay_s=0.25), streamed=streamed)
    assert begin.wait_s == wait_s + 0.25
    assert begin.left.delay_s == begin.wait_s
    assert (begin.end.reason if begin.end else None) == reason
    if reason is None:
        assert begin.left.fault is None


@pytest.mark.parametrize("words", ["disconnect_after=2", "reset_after=2", "stall_after=2; for=1"])
def test_what_comes_after_tokens_waits_for_a_stream(words: str) -> None:
    """A whole answer has no middle: it meets the fault at once."""
    streamed = beginning(ordered(words), streamed=True)
    assert (streamed.wait_s, streamed.end) == (0, None)
    assert streamed.left.fault == fault_of(words, "x")
    whole = beginning(ordered(words), streamed=False)
    assert whole.end is not None or whole.wait_s == 1


def test_error_within_is_the_whole_answer_of_one_that_is_not_streamed() -> None:
    """A server error."""
    begin = beginning(ordered("error_after=2"), streamed=False)
    assert begin.left.error == ErrorOrder(500)
    assert begin.left.fault is None
    assert beginning(ordered("error_after=2"), streamed=True).left.error is None


def test_errors_keep_their_delay() -> None:
    """Refused, but not at once."""
    begin = beginning(Orders(error=ErrorOrder(429), delay_s=2.0), streamed=False)
    assert (begin.wait_s, begin.end, begin.left.error) == (2.0, None, ErrorOrder(429))
    assert beginning(Orders(fault=FaultOrder("split")), streamed=True).wait_s == 0


def test_what_would_come_too_late_is_an_error_by_then() -> None:
    """An error that was to come then is that one too; a cut keeps its time."""
    orders = (Orders(delay_s=9), Orders(delay_s=9, error=ErrorOrder(429)), ordered("slow; for=9"))
    for late in orders:
        begin = in_time(beginning(late, streamed=True), 8)
        assert (begin.wait_s, begin.end, begin.left.error) == (8, None, TOO_LATE)
        assert begin.left.fault is None
        just = beginning(late, streamed=True)
        assert in_time(just, 9) == just
    hang = beginning(ordered("hang"), streamed=True)
    assert in_time(hang, 8) == hang
