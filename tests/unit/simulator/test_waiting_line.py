"""Places in a line, whoever died in it."""

from __future__ import annotations

from tests.support.fake_env import FakeLedger
from tpo_mp.simulator.waiting_line import WaitingLine


def test_a_line_holds_so_many_whatever_process_they_came_by() -> None:
    """Two views of one ledger; a place given back is another's."""
    ledger = FakeLedger()
    line, other = WaitingLine(ledger, 2), WaitingLine(ledger, 2)
    assert line.join("k", 100.0, 5.0)
    assert other.join("k", 100.0, 5.0)
    assert not line.join("k", 101.0, 5.0)
    assert line.join("another", 101.0, 5.0)
    other.leave("k")
    assert line.join("k", 101.0, 5.0)


def test_who_died_in_line_is_forgotten_when_it_would_be_empty() -> None:
    """Not before: who waits longest holds the line open."""
    line = WaitingLine(FakeLedger(), 1)
    assert line.join("k", 100.0, 5.0)
    line.stay("k", 120.0)
    assert not line.join("k", 119.0, 5.0)
    assert line.join("k", 121.0, 5.0)
    line.leave("k")
    line.leave("k")
    assert line.join("k", 122.0, 5.0)
    assert not line.join("k", 122.0, 5.0)
