"""Scores: added up over seats, kept through deaths, and forgotten by the hour."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_env import SilentSeries
from tpo_mp.errors import Fault
from tpo_mp.shm.rows import RowTable
from tpo_mp.shm.scores import LINES, LOCK_ROW, SLICE_S, ScoreSegment, SharedScore, SharedScores
from tpo_mp.types import TOOK_S, TryTally

SEATS = 3


@pytest.fixture
def segment() -> Iterator[ScoreSegment]:
    """Three seats."""
    made = ScoreSegment.create(SEATS)
    yield made
    made.close()


def line(segment: ScoreSegment, table: RowTable, seat: int, name: str = "a:m") -> SharedScore:
    """A seat's present occupant, which knows nothing but what lies in memory."""
    found = SharedScores(segment, table, seat).of(name)
    assert found is not None
    return found


def test_all_seats_count_in_one(segment: ScoreSegment, table: RowTable) -> None:
    """Whoever asks has what all have seen, and who comes after a dead one goes on."""
    one, two = line(segment, table, 0), line(segment, table, 1)
    one.good(0.3, 50.0)
    two.good(0.003, 51.0)
    two.bad("upstream_error", 52.5)
    one.busy(53.0)
    two.refused(54.0)
    successor = line(segment, table, 1)
    successor.good(9999.0, 55.0)
    for reader in (one, successor, line(segment, table, 2)):
        total = reader.total()
        assert total[:4] == (3, 1, 1, 1)
        assert total == reader.recent(60.0)
        assert [n for n, count in enumerate(total.times) if count] == [1, 9, len(TOOK_S)]
        assert reader.last_good_at() == 55.0
        assert reader.last_bad() == (52.5, "upstream_error")
    assert line(segment, table, 0, "a:n").total() == TryTally()


def test_a_window_forgets_by_the_slice(segment: ScoreSegment, table: RowTable) -> None:
    """Each seat by itself, also one that is silent; totals stay."""
    one, two = line(segment, table, 0), line(segment, table, 1)
    for n in range(10):
        one.good(0.1, n * SLICE_S + 1.0)
    two.bad("x", 5 * SLICE_S + 1.0)
    now = 9 * SLICE_S + 2.0
    assert one.recent(now)[:2] == (6, 1)
    assert one.recent(now, 1)[:2] == (1, 0)
    assert one.recent(now, 2)[:2] == (2, 0)
    assert one.recent(now + SLICE_S)[:2] == (5, 1)
    assert one.recent(now + 2 * SLICE_S)[:2] == (4, 0)
    assert one.recent(now + 6 * SLICE_S)[:2] == (0, 0)
    assert one.total()[:2] == (10, 1)


def test_a_mark_is_made_once_and_a_torn_one_is_none(segment: ScoreSegment, table: RowTable) -> None:
    """A successor in the same slice does not begin it again; one whose writer died is not used."""
    one = line(segment, table, 0)
    one.good(0.1, 1.0)
    successor = line(segment, table, 0)
    successor.good(0.1, 2.0)
    assert successor.recent(3.0).good == 2
    stamp = 8 + LINES * 2 + 37 + 30  # of the first slice, as it is drawn
    assert segment.words[stamp] == 1
    segment.words[stamp] = 0
    assert one.recent(3.0).good == 0
    line(segment, table, 0).good(0.1, 4.0)
    assert (one.recent(5.0).good, one.total().good) == (1, 3)


def test_a_torn_reason_is_none(segment: ScoreSegment, table: RowTable) -> None:
    """Its CRC tells."""
    one = line(segment, table, 0)
    one.bad("first", 1.0)
    at = bytes(segment.map).index(b"first")
    segment.map[at : at + 2] = b"xx"
    assert one.last_bad() == (1.0, "")
    one.bad("a reason that is longer than there is room for, é", 2.0)
    assert one.last_bad()[1] == "a reason that is longer than there is room f"


def test_there_is_a_cap_and_a_lock(segment: ScoreSegment, table: RowTable) -> None:
    """The 257th target is not scored; a name that cannot be given now is given later."""
    refused = SilentSeries()
    scores = SharedScores(segment, table, 0, refused)
    with table.lock(LOCK_ROW) as held:
        assert held is not None
    kept = [scores.of(f"b:{n}") for n in range(LINES)]
    assert None not in kept
    assert refused.value == 0
    for _ in range(3):
        assert scores.of("one:more") is None
    assert refused.value == 1
    assert scores.of("b:0") is scores.of("b:0")


def test_foreign_memory_is_refused(segment: ScoreSegment) -> None:
    """Another number of seats is another layout."""
    with pytest.raises(Fault):
        ScoreSegment.attach(segment.fd, SEATS + 1)


def test_quantiles_are_as_near_as_the_buckets() -> None:
    """And none of nothing."""
    assert TryTally().quantile_s(0.5) is None
    times = [0] * (len(TOOK_S) + 1)
    times[9], times[11] = 98, 2
    tally = TryTally(100, 0, 0, 0, tuple(times))
    assert TOOK_S[8] < (tally.quantile_s(0.5) or 0) < TOOK_S[9]
    assert TOOK_S[10] < (tally.quantile_s(0.99) or 0) <= TOOK_S[11]
    open_end = TryTally(1, 0, 0, 0, (0,) * len(TOOK_S) + (1,))
    assert open_end.quantile_s(0.5) == TOOK_S[-1]


def test_names_nobody_uses_are_given_back(segment: ScoreSegment, table: RowTable) -> None:
    """When there is need: kept by another living seat they are not, and begin again at nothing."""
    living = [0, 1]
    one, two = (SharedScores(segment, table, n, None, lambda: living) for n in (0, 1))
    for n in range(LINES):
        made = one.of(f"old:{n}")
        assert made is not None
        made.good(0.1, 50.0)
    del made
    theirs = [two.of(f"old:{n}") for n in range(LINES)]
    assert one.of("new:m") is None, "the other seat keeps all lines"
    assert theirs[3] is not None
    assert theirs[3].total().good == 1
    theirs[7] = None
    new = one.of("new:m")
    assert new is not None
    assert new.total() == TryTally()
    assert one.of("newer:m") is None
    living.remove(1)  # it was killed
    newer = one.of("newer:m")
    assert newer is not None
    assert newer.total() == TryTally()
    assert SharedScores(segment, table, 1, None, lambda: [0, 1]).of("newest:m") is not None
