"""The directory of a block: whole records in order, whatever the writer died of."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from tests.support.deaths import dies_at
from tpo_mp.shm import series
from tpo_mp.shm.segment import Segment
from tpo_mp.shm.series import (
    ARENA_HEADER,
    BLOCK_BYTES,
    BLOCK_HEADER,
    CELLS,
    DIRECTORY_BYTES,
    EPOCH_WORD,
    FIRST_CELL,
    USED_WORD,
    BlockView,
    SeriesEntry,
)  # fmt: skip

DIRECTORY_AT = ARENA_HEADER + BLOCK_HEADER + CELLS * 8


@pytest.fixture
def memory() -> Iterator[Segment]:
    """An arena of one seat."""
    made = Segment.create("arena", ARENA_HEADER + BLOCK_BYTES)
    yield made
    made.close()


def entry(first: int, name: str = "m", kind: series.Kind = "counter") -> SeriesEntry:
    """A record."""
    return SeriesEntry(name, "Help.", kind, (("stage", "rag"),), (), first)


def test_a_record_is_seen_by_another_view(memory: Segment) -> None:
    """Published here, read there, once and in order."""
    writer, reader = BlockView(memory.buf, 0).directory, BlockView(memory.buf, 0).directory
    for i in range(3):
        assert writer.append(entry(FIRST_CELL + i, f"m{i}"))
        reader.refresh()
        assert [found.name for found in reader.entries] == [f"m{n}" for n in range(i + 1)]
    assert reader.next_cell == FIRST_CELL + 3


def test_a_histogram_takes_a_cell_per_bound_and_two(memory: Segment) -> None:
    """Bounds, +Inf and the sum."""
    made = SeriesEntry("h", "", "histogram", (), (0.1, 1.0, 10.0), FIRST_CELL)
    directory = BlockView(memory.buf, 0).directory
    assert made.width == 5
    assert directory.append(made)
    assert directory.next_cell == FIRST_CELL + 5


def test_cells_and_directory_are_bounded(memory: Segment) -> None:
    """A series beyond the last cell, or a record beyond the last byte, is refused."""
    directory = BlockView(memory.buf, 0).directory
    assert not directory.append(entry(CELLS))
    assert not directory.append(entry(FIRST_CELL, "n" * DIRECTORY_BYTES))
    assert directory.used == 0
    assert memory.words[(ARENA_HEADER // 8) + USED_WORD] == 0


def test_a_writer_that_dies_publishes_whole_records_only(memory: Segment) -> None:
    """Whatever line it died at, the next occupant finds the records before, or one more."""
    for event in range(1, 100):
        view = BlockView(memory.buf, 0)
        view.words[USED_WORD] = 0
        before = entry(FIRST_CELL, "before")
        view.directory.refresh()
        assert view.directory.append(before)
        new = entry(FIRST_CELL + 1, f"new {event}")
        died = dies_at(event, partial(view.directory.append, new), series)
        successor = BlockView(memory.buf, 0).directory
        successor.refresh()
        assert successor.entries in ([before], [before, new])
        assert successor.append(entry(successor.next_cell, "after"))
        if not died:
            break
    assert not died


def test_a_damaged_record_ends_the_directory(memory: Segment) -> None:
    """No byte of a record may change unnoticed; what lies behind it is not guessed at."""
    directory = BlockView(memory.buf, 0).directory
    directory.append(entry(FIRST_CELL, "first"))
    second = directory.used
    directory.append(entry(FIRST_CELL + 1, "second"))
    directory.append(entry(FIRST_CELL + 2, "third"))
    for at in range(second, second + 24):
        memory.map[DIRECTORY_AT + at] ^= 0x81
        reader = BlockView(memory.buf, 0).directory
        reader.refresh()
        assert [found.name for found in reader.entries] == ["first"]
        memory.map[DIRECTORY_AT + at] ^= 0x81


def test_a_record_whose_bytes_arrive_late_is_read_later(memory: Segment) -> None:
    """``used`` seen before the record is "not yet", not the end."""
    writer, reader = BlockView(memory.buf, 0).directory, BlockView(memory.buf, 0).directory
    writer.append(entry(FIRST_CELL, "late"))
    memory.map[DIRECTORY_AT] ^= 1
    reader.refresh()
    assert reader.entries == []
    memory.map[DIRECTORY_AT] ^= 1
    reader.refresh()
    assert [found.name for found in reader.entries] == ["late"]


def test_a_cut_directory_is_read_anew_at_the_next_epoch(memory: Segment) -> None:
    """A reader's memory of what was cut does not survive the new occupant."""
    view, reader = BlockView(memory.buf, 0), BlockView(memory.buf, 0).directory
    view.directory.append(entry(FIRST_CELL, "kept"))
    view.directory.append(entry(FIRST_CELL + 1, "lost"))
    reader.refresh()
    memory.map[DIRECTORY_AT + view.directory.used - 8] ^= 0xFF
    successor = BlockView(memory.buf, 0)
    successor.directory.refresh()
    successor.directory.cut()
    successor.words[EPOCH_WORD] = 2
    successor.directory.refresh()
    successor.directory.append(entry(FIRST_CELL + 1, "next"))
    successor.directory.append(entry(FIRST_CELL + 2, "more"))
    reader.refresh()
    assert [found.name for found in reader.entries] == ["kept", "next", "more"]


@pytest.mark.parametrize("used", [1, 7, DIRECTORY_BYTES, 1 << 63])
def test_a_damaged_length_word_reads_nothing_wild(memory: Segment, used: int) -> None:
    """``used`` is bounded by the directory and every record by ``used``."""
    view = BlockView(memory.buf, 0)
    view.words[USED_WORD] = used
    view.directory.refresh()
    assert view.directory.entries == []
