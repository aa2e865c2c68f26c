"""What the rows of a backend say."""

from __future__ import annotations

from tpo_mp.shm.standing import Fitness, drain_cells, health_cells, read_standing

NOTHING = (0.0, 0.0, 0.0, 0.0)


def test_what_is_written_is_read() -> None:
    """State, since when, until when, and why."""
    row = read_standing(health_cells(Fitness.DOWN, 3.0, 9.0, "connect"), NOTHING)
    assert (row.state, row.since, row.until, row.why) == (Fitness.DOWN, 3.0, 9.0, "connect")
    assert row.standing(8.0) is Fitness.DOWN


def test_what_is_bad_and_old_is_not_believed() -> None:
    """A backend that was down when nobody asked any more may be asked again."""
    down = read_standing(health_cells(Fitness.DOWN, 3.0, 9.0, "connect"), NOTHING)
    assert down.standing(9.1) is Fitness.UNKNOWN
    ready = read_standing(health_cells(Fitness.READY, 3.0, 9.0, ""), NOTHING)
    assert ready.standing(99.0) is Fitness.READY


def test_drained_is_drained_whatever_was_found() -> None:
    """Until it is taken back."""
    found = health_cells(Fitness.DOWN, 3.0, 9.0, "connect")
    assert read_standing(found, drain_cells(0.0, on=True)).standing(4.0) is Fitness.DRAINING
    assert read_standing(found, drain_cells(5.0, on=False)).standing(4.0) is Fitness.DOWN


def test_nonsense_is_unknown() -> None:
    """A number nobody wrote."""
    assert read_standing((17.0, 0.0, 0.0, 99.0), NOTHING).standing(1.0) is Fitness.UNKNOWN
