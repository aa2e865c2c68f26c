"""The host's journal: the newest entries, whole, in order, whoever wrote them and died."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from functools import partial

import pytest

from tests.support.deaths import dies_at
from tests.support.fake_env import SilentSeries
from tpo_mp.errors import Fault, Shed
from tpo_mp.shm import journal as journal_file
from tpo_mp.shm.journal import DATA_BYTES, MOST_ENTRY_BYTES, JournalSegment, SharedJournal
from tpo_mp.shm.rows import RowTable


@pytest.fixture
def segment() -> Iterator[JournalSegment]:
    """The memory."""
    made = JournalSegment.create()
    yield made
    made.close()


@pytest.fixture
def dropped() -> SilentSeries:
    """What was left out."""
    return SilentSeries()


@pytest.fixture
def journal(segment: JournalSegment, table: RowTable, dropped: SilentSeries) -> SharedJournal:
    """One process's view."""
    return SharedJournal(segment, table, dropped)


def test_entries_come_back_in_order(
    journal: SharedJournal, segment: JournalSegment, table: RowTable
) -> None:
    """Those of all processes, until they are cleared."""
    other = SharedJournal(segment, table, SilentSeries())
    assert list(journal.entries()) == []
    for number in range(6):
        assert (journal, other)[number % 2].append(b"x" * number)
    assert list(journal.entries()) == list(other.entries()) == [b"x" * n for n in range(6)]
    other.clear()
    assert list(journal.entries()) == []
    assert journal.append(b"again")
    assert list(other.entries()) == [b"again"]


def test_the_oldest_give_way(journal: SharedJournal, rng: random.Random) -> None:
    """Ten times round: always the newest entries, as many as fit, none of them half."""
    written: list[bytes] = []
    while sum(map(len, written)) < 10 * DATA_BYTES:
        entry = b"%d:" % len(written) + bytes(rng.randrange(30_000))
        written.append(entry)
        assert journal.append(entry)
        if len(written) % 50 == 0:
            kept = list(journal.entries())
            assert kept == written[-len(kept) :]
            assert sum(map(len, kept)) > DATA_BYTES // 2


def test_an_entry_that_is_too_large_is_counted(
    journal: SharedJournal, dropped: SilentSeries
) -> None:
    """And keeps nothing else out."""
    assert journal.append(b"y" * MOST_ENTRY_BYTES)
    assert not journal.append(b"y" * (MOST_ENTRY_BYTES + 1))
    assert dropped.value == 1
    assert [len(entry) for entry in journal.entries()] == [MOST_ENTRY_BYTES]


def test_who_cannot_have_the_lock_leaves_the_entry_out(
    journal: SharedJournal, table: RowTable, dropped: SilentSeries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader is told to come back."""
    with monkeypatch.context() as patch:
        patch.setattr(table, "acquire", lambda _row, _wait_ns: False)
        assert not journal.append(b"entry")
        with pytest.raises(Shed):
            journal.entries()
        with pytest.raises(Shed):
            journal.clear()
    assert dropped.value == 1


def test_a_writer_that_dies_leaves_whole_entries(journal: SharedJournal, table: RowTable) -> None:
    """Whatever line it died at, also when the log is full and goes over its end."""
    entry = b"e" * 40_000
    for event in range(1, 2000):
        died = dies_at(event, partial(journal.append, entry), journal_file)
        table._held.clear()  # the kernel drops a dead process's locks
        kept = list(journal.entries())
        assert all(one == entry for one in kept)
        assert journal.append(entry)
        assert len(list(journal.entries())) >= min(len(kept), 20)
        if not died and len(kept) > 24:
            break


def test_another_segment_is_refused(segment: JournalSegment) -> None:
    """A foreign layout is not attached."""
    segment.words[1] = 99
    with pytest.raises(Fault, match="layout"):
        JournalSegment.attach(os.dup(segment.fd))
