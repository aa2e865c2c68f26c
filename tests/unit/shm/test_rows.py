"""Shared rows: a reader sees a whole row or none, a dead writer's row is mended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import pytest

from tests.support.deaths import Died, dies_at
from tpo_mp.errors import Fault
from tpo_mp.shm import rows
from tpo_mp.shm.rows import BLANK, HEADER, PAYLOAD_BYTES, ROW_BYTES, RowTable

OLD = b"o" * PAYLOAD_BYTES
NEW = b"n" * PAYLOAD_BYTES
MENDED = b"m" * PAYLOAD_BYTES


@pytest.fixture(params=["native", "portable"])
def table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[RowTable]:
    """A table of eight rows."""
    if request.param == "portable":
        monkeypatch.setenv("TPO_PORTABLE", "1")
    made = RowTable.create(8)
    yield made
    made.close()


def write(table: RowTable, row: int, payload: bytes) -> None:
    """Write a row under its lock."""
    with table.lock(row) as held:
        assert held is not None
        held.write(payload)


def word(row: int) -> int:
    """Index of a row's first word."""
    return (HEADER + row * ROW_BYTES) // 8


def test_a_row_never_written_is_blank(table: RowTable) -> None:
    """Zeros, with and without the lock, and nothing to repair."""
    assert table.read(3) == BLANK
    with table.lock(3) as held:
        assert held is not None
        assert held.read() == BLANK
        assert not held.repaired


def test_what_is_written_is_read(table: RowTable) -> None:
    """By this mapping and by another; the neighbours stay as they were."""
    other = RowTable.attach(os.dup(table.fd), table.locks_fd, 8)
    write(table, 3, NEW)
    assert table.read(3) == NEW
    assert other.read(3) == NEW
    assert table.read(2) == table.read(4) == BLANK
    other._segment.close()


def test_a_row_may_be_written_back_as_zeros(table: RowTable) -> None:
    """Blank is a value like any other."""
    write(table, 0, NEW)
    write(table, 0, BLANK)
    assert table.read(0) == BLANK


@pytest.mark.parametrize("payload", [b"", b"x" * 55, b"x" * 57])
def test_a_payload_of_another_size_is_refused(table: RowTable, payload: bytes) -> None:
    """The row stays whole."""
    write(table, 1, OLD)
    with pytest.raises(ValueError, match="56 bytes"):
        write(table, 1, payload)
    assert table.read(1) == OLD


def test_a_row_outside_the_table_is_refused(table: RowTable) -> None:
    """Neither end wraps round."""
    for row in (-1, 8):
        with pytest.raises(IndexError):
            table.lock(row)


def test_a_lock_is_not_entered_twice(table: RowTable) -> None:
    """The kernel would grant it to the same process; the table does not."""
    with table.lock(1), pytest.raises(RuntimeError, match="already held"), table.lock(1):
        pass
    with table.lock(1) as held:
        assert held is not None


def test_the_version_wraps_round(table: RowTable) -> None:
    """After 2³¹ writes the row is still neither torn nor blank."""
    write(table, 0, OLD)
    table.words[word(0)] = table.words[word(0)] >> 32 << 32 | 0xFFFFFFFE
    assert table.read(0) == OLD
    write(table, 0, NEW)
    assert table.read(0) == NEW
    assert table.words[word(0)] & 0xFFFFFFFF == 2


def test_a_row_being_written_is_not_read(table: RowTable) -> None:
    """An odd version is "not now"."""
    write(table, 0, OLD)
    table.words[word(0)] |= 1
    assert table.read(0) is None


def test_no_flipped_byte_is_read(table: RowTable) -> None:
    """A payload that does not fit its checksum is never handed out."""
    write(table, 0, OLD)
    for at in range(HEADER + 4, HEADER + ROW_BYTES):
        table.map[at] ^= 0x40
        assert table.read(0) is None
        table.map[at] ^= 0x40
    assert table.read(0) == OLD


def test_a_holder_mends_a_row_that_fails_its_checksum(table: RowTable) -> None:
    """Damage counts as a torn write; without a rule the row is zeroed."""
    write(table, 0, OLD)
    table.map[HEADER + 20] ^= 1
    with table.lock(0) as held:
        assert held is not None
        assert held.repaired
        assert held.read() == BLANK
    assert table.repaired == 1


def test_a_writer_that_dies_leaves_the_old_row_the_new_one_or_a_repair(table: RowTable) -> None:
    """Whatever line it died at, nobody ever sees a mixture."""
    outcomes = set()
    for event in range(1, 100):
        write(table, 5, OLD)
        with table.lock(5) as held:
            assert held is not None
            died = dies_at(event, partial(held.write, NEW), rows)
        seen = table.read(5)
        assert seen in (OLD, NEW, None)
        with table.lock(5, lambda _: MENDED) as held:
            assert held is not None
            assert held.repaired == (seen is None)
            assert held.read() == (MENDED if seen is None else seen)
        assert table.read(5) == (MENDED if seen is None else seen)
        outcomes.add(seen)
        if not died:
            break
    assert outcomes == {OLD, NEW, None}


def test_a_repair_that_fails_leaves_the_lock_free(table: RowTable) -> None:
    """A rule's own error reaches the caller; the next one may try again."""
    table.words[word(2)] = 1
    with pytest.raises(Died), table.lock(2, _fail):
        pass
    with table.lock(2) as held:
        assert held is not None


def _fail(_: bytes) -> bytes:
    raise Died


def test_another_table_is_refused(table: RowTable) -> None:
    """A descriptor of another size or content is a fault, not a guess."""
    with pytest.raises(Fault):
        RowTable.attach(os.dup(table.fd), table.locks_fd, 9)
    table.words[1] += 1
    with pytest.raises(Fault, match="another layout"):
        RowTable.attach(os.dup(table.fd), table.locks_fd, 8)
