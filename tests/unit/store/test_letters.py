"""Dead letters: once per call, never lost while the disk refuses, found again after a rebuild."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from msgspec.structs import replace

from tpo_mp.store.letters import DeadLetters, Letter, LetterCaps
from tpo_mp.store.sealing import Seals
from tpo_mp.store.segment_files import LogLimits
from tpo_mp.store.segments import SegmentLog
from tpo_mp.store.tables import TableCaps, Tables


class Disk:
    """A disk that refuses when told to."""

    def __init__(self) -> None:
        self.broken = False
        self.unsyncable = False

    def write(self, fd: int, blob: bytes) -> int:
        """Write or refuse."""
        if self.broken:
            raise OSError(errno.ENOSPC, "no space left on device")
        return os.write(fd, blob)

    def fsync(self, fd: int) -> None:
        """Sync or refuse."""
        if self.unsyncable:
            raise OSError(errno.EIO, "input/output error")


class Office:
    """Letters with their log and tables, committed after each step."""

    def __init__(self, folder: Path, caps: LetterCaps | None = None) -> None:
        self.disk = Disk()
        self.log = SegmentLog(
            folder / "letters", LogLimits(), write=self.disk.write, fsync=self.disk.fsync
        )
        self.tables = Tables(folder / "t.sqlite", TableCaps())
        self.letters = DeadLetters(self.log, caps or LetterCaps())
        self.letters.attach(self.tables)

    def add(self, *call_ids: str) -> int:
        """Add letters and commit."""
        new = self.letters.add([letter(c) for c in call_ids])
        self.commit()
        return new

    def commit(self) -> None:
        """End the transaction."""
        self.tables.commit()
        self.letters.committed(True)

    def listed(self) -> list[str]:
        """Ids of the open letters, oldest first."""
        return [h.call_id for h in reversed(self.letters.page(1000, None, None))]

    def close(self) -> None:
        """Close log and tables."""
        self.log.close()
        self.tables.close()


def letter(call_id: str, body: bytes = b'{"x":1}') -> Letter:
    """A letter."""
    return Letter(call_id, "client", "session", "worker_lost", 12.5, "m", "t", "/v1/chat", body)


def test_a_letter_is_kept_once(tmp_path: Path) -> None:
    """The same call reported again changes nothing, also after a restart."""
    office = Office(tmp_path)
    assert office.add("a", "b") == 2
    assert office.add("a") == 0
    office.close()
    again = Office(tmp_path)
    assert again.add("a", "c") == 1
    assert again.listed() == ["a", "b", "c"]
    found = again.letters.read("a")
    assert found is not None
    assert found[1] == letter("a")
    again.close()


def test_the_index_is_rebuilt_from_the_segments(tmp_path: Path) -> None:
    """Without the database the letters and their statuses come back from the log."""
    office = Office(tmp_path)
    office.add("a", "b", "c")
    assert office.letters.set_status("b", "replayed", 1.0)
    office.commit()
    office.close()
    for path in tmp_path.glob("t.sqlite*"):
        path.unlink()
    again = Office(tmp_path)
    assert again.listed() == ["a", "c"]
    assert again.letters.depth() == 2
    again.close()


def test_a_letter_written_but_not_indexed_is_found_at_the_next_start(tmp_path: Path) -> None:
    """A crash between log and index loses nothing and doubles nothing."""
    office = Office(tmp_path)
    office.add("a")
    office.letters.add([letter("b")])
    office.tables.rollback()
    office.close()
    again = Office(tmp_path)
    assert again.listed() == ["a", "b"]
    again.close()


def test_a_refusing_disk_keeps_letters_in_memory(tmp_path: Path) -> None:
    """They are visible and readable meanwhile, and written once when the disk is back."""
    office = Office(tmp_path)
    office.add("a")
    office.disk.broken = True
    assert office.add("b", "c") == 2
    assert office.add("b") == 0
    assert office.listed() == ["a", "b", "c"]
    assert (office.letters.waiting, office.letters.depth()) == (2, 3)
    assert office.letters.read("b") is not None
    assert not office.letters.stored("b")
    office.disk.broken = False
    office.letters.flush()
    office.commit()
    assert (office.letters.waiting, office.letters.depth()) == (0, 3)
    assert office.letters.stored("b")
    assert office.listed() == ["a", "b", "c"]
    assert office.log.write_errors > 0
    office.close()
    again = Office(tmp_path)
    assert again.listed() == ["a", "b", "c"]
    again.close()


def test_memory_for_a_refusing_disk_is_capped(tmp_path: Path) -> None:
    """Over the cap the oldest waiting letters go, and are counted."""
    office = Office(tmp_path, LetterCaps(waiting=3))
    office.disk.broken = True
    for n in range(10):
        office.add(f"c{n}")
    assert office.listed() == ["c7", "c8", "c9"]
    assert office.letters.dropped == 7
    office.disk.broken = False
    office.close()


def test_letters_of_a_failed_sync_are_written_again(tmp_path: Path) -> None:
    """What an fsync lost goes into the next file, once."""
    office = Office(tmp_path)
    office.add("a")
    office.letters.sync()
    office.add("b")
    office.disk.unsyncable = True
    office.letters.sync()
    office.commit()
    assert office.listed() == ["a", "b"]
    office.disk.unsyncable = False
    office.letters.flush()
    office.commit()
    office.letters.sync()
    assert office.listed() == ["a", "b"]
    assert len(office.log.segments()) == 2
    office.close()
    again = Office(tmp_path)
    assert again.listed() == ["a", "b"]
    found = again.letters.read("b")
    assert found is not None
    assert found[1] == letter("b")
    again.close()


def test_a_sync_that_fails_between_index_and_commit_loses_nothing(tmp_path: Path) -> None:
    """The letters are indexed in the transaction whose end would free them: they stay in memory."""
    office = Office(tmp_path)
    office.letters.add([letter("a"), letter("b")])
    office.disk.unsyncable = True
    office.letters.sync()
    office.commit()
    assert office.letters.waiting == 2
    assert office.listed() == ["a", "b"]
    office.disk.unsyncable = False
    office.letters.flush()
    office.commit()
    assert office.letters.waiting == 0
    assert office.listed() == ["a", "b"]
    assert office.letters.read("a") is not None
    office.close()


def test_a_place_that_a_failed_commit_kept_is_replaced(tmp_path: Path) -> None:
    """Taken back, and the transaction that forgot the old place was rolled back."""
    office = Office(tmp_path)
    office.add("a")
    office.disk.unsyncable = True
    office.letters.sync()
    office.tables.rollback()
    office.letters.committed(False)
    office.disk.unsyncable = False
    office.letters.flush()
    office.commit()
    found = office.letters.read("a")
    assert found is not None
    assert found[1] == letter("a")
    office.close()


def test_a_failed_commit_keeps_the_letter_waiting(tmp_path: Path) -> None:
    """The index must be committed before memory lets go."""
    office = Office(tmp_path)
    office.letters.add([letter("a")])
    office.tables.rollback()
    office.letters.committed(False)
    assert (office.letters.waiting, office.listed()) == (1, ["a"])
    office.letters.flush()
    office.commit()
    assert (office.letters.waiting, office.listed()) == (0, ["a"])
    office.close()


def test_pruned_segments_take_their_letters_along(tmp_path: Path) -> None:
    """The index forgets what the log has forgotten."""
    office = Office(tmp_path)
    office.log.limits = LogLimits(segment_bytes=256, total_bytes=1024, age_s=3600.0)
    for n in range(20):
        office.add(f"c{n}")
    office.letters.prune()
    office.commit()
    listed = office.listed()
    assert 0 < len(listed) < 20
    assert all(office.letters.read(call_id) is not None for call_id in listed)
    assert office.letters.depth() == len(listed)
    office.close()


def test_without_a_database_letters_wait(tmp_path: Path) -> None:
    """Memory answers until a database is attached."""
    log = SegmentLog(tmp_path / "letters", LogLimits())
    letters = DeadLetters(log, LetterCaps())
    letters.add([letter("a")])
    letters.committed(True)
    assert [h.call_id for h in letters.page(10, None, None)] == ["a"]
    tables = Tables(tmp_path / "t.sqlite", TableCaps())
    letters.attach(tables)
    letters.flush()
    tables.commit()
    letters.committed(True)
    assert (letters.waiting, letters.depth()) == (0, 1)
    log.close()
    tables.close()


def test_redacted_letters_hold_no_text_in_memory_nor_on_disk(tmp_path: Path) -> None:
    """From their first moment: also while the disk refuses them."""
    office = Office(tmp_path, LetterCaps(redact=True))
    office.disk.broken = True
    secret = replace(letter("a"), body=b'{"prompt": "secret", "max_tokens": 3}')
    office.letters.add([secret])
    office.commit()
    for _ in range(2):
        found = office.letters.read("a")
        assert found is not None
        assert found[1] is not None
        assert (found[1].body, found[1].redacted) == (b'{"max_tokens":3}', True)
        office.disk.broken = False
        office.letters.flush()
        office.commit()
    assert office.letters.stored("a")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"max_tokens" in path.read_bytes() for path in files)
    assert not any(b"secret" in path.read_bytes() for path in files)
    office.close()


def test_sealed_letters_open_with_their_key_only(tmp_path: Path) -> None:
    """In memory, on the disk, and after the disk gave them back; without the key they are there."""
    keys = Seals(["k" * 32])
    office = Office(tmp_path, LetterCaps(seals=keys))
    office.disk.unsyncable = True
    office.letters.add([replace(letter("a"), body=b"secret")])
    office.letters.sync()  # the log gives the record back
    assert office.letters.waiting
    office.disk.unsyncable = False
    office.letters.flush()
    office.commit()
    office.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"secret" in path.read_bytes() for path in files)
    for seals, body in ((Seals(["x" * 32]), None), (Seals(["x" * 32, "k" * 32]), b"secret")):
        again = Office(tmp_path, LetterCaps(seals=seals))
        found = again.letters.read("a")
        assert found is not None
        assert (found[1] and found[1].body, again.listed()) == (body, ["a"])
        again.close()
