"""Rows under death: a stopped holder delays nobody, a dead one leaves nothing half-written."""

from __future__ import annotations

import random
from collections.abc import Iterator
from time import monotonic

import pytest

from tests.support.actor import StartActor
from tpo_mp.shm.rows import PAYLOAD_BYTES, RowTable

ROWS = 4
OLD = b"o" * PAYLOAD_BYTES
NEW = b"n" * PAYLOAD_BYTES
MENDED = b"m" * PAYLOAD_BYTES


@pytest.fixture
def table(platform: str) -> Iterator[RowTable]:
    """A table that children inherit."""
    made = RowTable.create(ROWS)
    yield made
    made.close()


def test_a_stopped_holder_makes_the_answer_conservative_at_once(
    table: RowTable, actor: StartActor
) -> None:
    """Nobody waits for a stopped process: an asker is told "no" in less than 50 ms.

    The median is judged: this machine may take the asker itself off the processor for longer.
    """
    fds = (table.fd, table.locks_fd)
    holder = actor("hold_row", *fds, ROWS, 1, fds=fds)
    assert holder.said() == "held"
    holder.stop()
    waits = []
    for _ in range(50):
        asked_at = monotonic()
        with table.lock(1) as held:
            assert held is None
        waits.append(monotonic() - asked_at)
    assert sorted(waits)[25] < 0.05
    assert table.contended == 50
    with table.lock(2) as held:
        assert held is not None, "other rows are free"
    assert table.read(1) is not None, "reading needs no lock"
    holder.kill()
    with table.lock(1) as held:
        assert held is not None, "the kernel dropped the dead process's lock"


def test_another_process_is_refused_as_well(table: RowTable, actor: StartActor) -> None:
    """The lock is between processes, in both directions."""
    fds = (table.fd, table.locks_fd)
    with table.lock(0) as held:
        assert held is not None
        other = actor("hold_row", *fds, ROWS, 0, fds=fds)
        assert other.said() == "refused"


def test_a_holder_killed_in_a_write_is_mended_by_the_next(
    table: RowTable, actor: StartActor
) -> None:
    """SIGKILL at every line of the write: then the old row, the new one, or the repair."""
    fds, outcomes = (table.fd, table.locks_fd), set()
    for event in range(1, 30):
        with table.lock(3) as held:
            assert held is not None
            held.write(OLD)
        victim = actor("tear_row", *fds, ROWS, 3, event, fds=fds)
        survived = victim.said() == "survived"
        victim.process.wait()
        seen = table.read(3)
        with table.lock(3, lambda _: MENDED) as held:
            assert held is not None
            assert held.repaired == (seen is None)
            assert held.read() == (MENDED if seen is None else seen)
        assert table.read(3) == (MENDED if seen is None else seen)
        outcomes.add(seen)
        if survived:
            break
    assert survived
    assert outcomes == {OLD, NEW, None}
    assert table.repaired >= 2


def test_no_update_is_lost_between_processes(table: RowTable, actor: StartActor) -> None:
    """Three processes add to one row; the sum is exact."""
    fds = (table.fd, table.locks_fd)
    counters = [actor("count_row", *fds, ROWS, 0, 500, fds=fds) for _ in range(3)]
    for counter in counters:
        assert counter.said() == "ready"
    for counter in counters:
        counter.go_on()
    for counter in counters:
        assert counter.said() == "done"
    found = table.read(0)
    assert found is not None
    assert int.from_bytes(found, "little") == 1500


def test_a_reader_never_sees_a_mixture(table: RowTable, actor: StartActor) -> None:
    """Against a process that writes all the time: one byte, 56 times, or ``None``."""
    fds = (table.fd, table.locks_fd)
    writer = actor("flip_row", *fds, ROWS, 2, fds=fds)
    assert writer.said() == "ready"
    seen = set[int]()
    while len(seen) < 200:
        found = table.read(2)
        if found is not None:
            assert len(set(found)) == 1
            seen.add(found[0])


def test_a_killed_writer_never_blocks_the_row(
    table: RowTable, actor: StartActor, rng: random.Random
) -> None:
    """Kill a busy writer at any moment, five times: the next holder always has a whole row."""
    fds = (table.fd, table.locks_fd)
    for _ in range(5):
        writer = actor("flip_row", *fds, ROWS, 2, fds=fds)
        assert writer.said() == "ready"
        for _ in range(rng.randrange(2000)):
            table.read(2)
        writer.kill()
        with table.lock(2) as held:
            assert held is not None
            assert len(set(held.read())) == 1
