"""The ledger between processes: every ordinal is given once, whoever is killed meanwhile."""

from __future__ import annotations

import random
from collections.abc import Iterator
from time import monotonic

import pytest

from tests.integration.shm_rows.actors import patient
from tests.support.actor import StartActor
from tests.support.fake_env import SilentMetrics
from tpo_mp.errors import Shed
from tpo_mp.shm.ledger import LEAST_ROWS, SharedLedger
from tpo_mp.shm.rows import RowTable

TIMES = 400


@pytest.fixture
def table(platform: str) -> Iterator[RowTable]:
    """A table that children inherit."""
    made = RowTable.create(LEAST_ROWS)
    yield made
    made.close()


def test_every_ordinal_is_given_once(table: RowTable, actor: StartActor) -> None:
    """Three processes count one name: together they hear 1 to 1200, each once."""
    fds = (table.fd, table.locks_fd)
    actors = [actor("ordinals", *fds, LEAST_ROWS, TIMES, fds=fds) for _ in range(3)]
    for one in actors:
        assert one.said() == "ready"
    for one in actors:
        one.go_on()
    heard = [int(word) for one in actors for word in one.said().split()]
    assert sorted(heard) == list(range(1, 3 * TIMES + 1))


def test_the_killed_cost_at_most_their_own_count(
    table: RowTable, actor: StartActor, rng: random.Random
) -> None:
    """Five counters die at any moment: the count goes on, and by what they had counted or less."""
    fds = (table.fd, table.locks_fd)
    ledger = patient(table)
    last = 0
    for _ in range(5):
        one = actor("count_for_ever", *fds, LEAST_ROWS, fds=fds)
        assert one.said() == "ready"
        for _ in range(rng.randrange(1, 50)):
            found = ledger.ordinal("name")
            assert found > last
            last = found
        one.kill()
    found = ledger.ordinal("name")
    assert found > last
    assert ledger.ordinal("name") == found + 1


def test_a_stopped_holder_is_told_of_at_once(table: RowTable, actor: StartActor) -> None:
    """No wrong count and no hang while it stands still; its death frees the name."""
    fds = (table.fd, table.locks_fd)
    holder = actor("hold_row", *fds, LEAST_ROWS, 8, fds=fds)
    assert holder.said() == "held"
    ledger = SharedLedger(table, SilentMetrics())
    with pytest.raises(Shed):
        ledger.ordinal("name")
    holder.kill()
    assert ledger.ordinal("name") == 1


def test_a_watch_sees_whole_states_in_order_beside_writers(
    table: RowTable, actor: StartActor
) -> None:
    """Two processes write one name as fast as they can: four equal numbers, never fewer."""
    fds = (table.fd, table.locks_fd)
    watch = SharedLedger(table, SilentMetrics()).watch("watched", "other")
    writers = [actor("write_for_ever", *fds, LEAST_ROWS, 0, fds=fds) for _ in range(2)]
    assert [one.said() for one in writers] == ["ready"] * 2
    last, changes = 0.0, 0
    deadline = monotonic() + 60
    while changes < 300:
        seen, other = watch.peek()
        assert len(set(seen)) == 1
        assert seen[0] >= last
        assert other == (0.0, 0.0, 0.0, 0.0)
        changes += seen[0] > last
        last = seen[0]
        assert monotonic() < deadline
    for one in writers:
        one.kill()


def test_a_watch_goes_on_after_writers_killed_in_the_middle(
    table: RowTable, actor: StartActor, rng: random.Random
) -> None:
    """At any line of a write: a state there was since the look before, then the newest one.

    Of a row that its writer left torn nothing newer than at the look before may be known.
    """
    fds = (table.fd, table.locks_fd)
    ledger = SharedLedger(table, SilentMetrics())
    watch = ledger.watch("watched")
    before = 0.0
    for _ in range(6):
        # Within the first updates: one is some 30 lines.
        victim = actor("write_for_ever", *fds, LEAST_ROWS, rng.randrange(40, 200), fds=fds)
        assert victim.said() == "ready"
        victim.process.wait()
        (seen,) = watch.peek()
        assert len(set(seen)) == 1
        mended = ledger.update("watched", lambda cells: cells)
        assert before <= seen[0] <= mended[0]
        assert watch.peek() == (mended,)
        before = mended[0]
