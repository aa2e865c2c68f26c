"""The store as a whole: full disks, damaged databases, restarts."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from tpo_mp.store.framing import Disk, flush_to_disk
from tpo_mp.store.letters import Letter, LetterCaps
from tpo_mp.store.sealing import Seals
from tpo_mp.store.segment_files import LogLimits
from tpo_mp.store.shelf import Shelf, ShelfOptions
from tpo_mp.store.tables import TableCaps, Tables


class Weather:
    """A disk that is full while ``full`` says so, and a clock."""

    def __init__(self) -> None:
        self.full = False
        self.now = 1000.0

    def disk(self) -> Disk:
        """The system calls."""
        return Disk(self.write, self.fsync)

    def write(self, fd: int, blob: bytes) -> int:
        """Write or refuse."""
        if self.full:
            raise OSError(errno.ENOSPC, "no space left on device")
        return os.write(fd, blob)

    def fsync(self, fd: int) -> None:
        """Sync or refuse."""
        if self.full:
            raise OSError(errno.EIO, "input/output error")
        flush_to_disk(fd)


def open_shelf(folder: Path, weather: Weather, options: ShelfOptions | None = None) -> Shelf:
    """A shelf under that weather."""
    return Shelf(folder, options or ShelfOptions(), clock=lambda: weather.now, disk=weather.disk())


def letter(call_id: str) -> Letter:
    """A letter."""
    return Letter(call_id, "", "", "shed", 1.0, "m", "t", "/", b"{}")


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    """Records, letters and values are there again."""
    weather = Weather()
    shelf = open_shelf(tmp_path, weather)
    shelf.record(b"batch one")
    shelf.record(b"batch two")
    assert shelf.add_letters([letter("a")]) == 1
    assert shelf.put("results", "k", b"v", 60.0)
    assert shelf.commit()
    shelf.close()
    again = open_shelf(tmp_path, weather)
    assert again.recent_records() == [b"batch one", b"batch two"]
    assert again.letters.stored("a")
    assert again.get("results", "k") == (True, b"v")
    assert again.state().broken == ()
    again.close()


def test_a_full_disk_is_survived_and_shown(tmp_path: Path) -> None:
    """Letters and records wait in memory, counters grow, nothing is lost or doubled after."""
    weather = Weather()
    shelf = open_shelf(tmp_path, weather)
    shelf.commit()
    weather.full = True
    shelf.record(b"one")
    shelf.add_letters([letter("a")])
    shelf.commit()
    shelf.tick()
    state = shelf.state()
    assert set(state.broken) == {"calls", "letters"}
    assert state.letter_write_errors > 0
    assert state.call_write_errors > 0
    assert state.letters_open == 1
    weather.full = False
    shelf.tick()
    assert shelf.state().broken == ()
    assert shelf.state().letters_open == 1
    shelf.close()
    again = open_shelf(tmp_path, weather)
    assert again.recent_records() == [b"one"]
    assert again.letters.stored("a")
    again.close()


def test_a_database_that_finds_no_room_is_shown_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is taken for written, and a batch without a change proves nothing; it comes back."""
    weather = Weather()
    commit = Tables.commit
    settled = [0]

    def full(tables: Tables) -> None:
        (changes,) = tables.read("SELECT total_changes()").fetchone()
        changed, settled[0] = changes != settled[0], changes
        if weather.full and changed:
            raise sqlite3.OperationalError("database or disk is full")
        commit(tables)

    monkeypatch.setattr(Tables, "commit", full)
    shelf = Shelf(tmp_path, ShelfOptions(), clock=lambda: weather.now)
    weather.full = True
    assert shelf.put("results", "k", b"v", 60.0)
    assert not shelf.commit()
    shelf.add_letters([letter("a")])
    assert not shelf.commit()
    for _ in range(3):
        shelf.tick()
        assert shelf.state().broken == ("letters", "tables")
    shelf.letters.prune()
    errors = shelf.state().table_errors
    assert errors >= 2
    assert shelf.get("results", "k") == (True, None)
    assert not shelf.letters.stored("a")
    weather.full = False
    shelf.tick()
    shelf.tick()
    assert shelf.state().broken == ()
    assert shelf.letters.stored("a")
    assert shelf.put("results", "k", b"v", 60.0)
    assert shelf.commit()
    assert shelf.state().table_errors == errors
    shelf.close()


def test_memory_for_records_is_capped(tmp_path: Path) -> None:
    """While the disk refuses, old batches are dropped and counted."""
    weather = Weather()
    shelf = open_shelf(tmp_path, weather)
    weather.full = True
    for n in range(12):
        shelf.record(bytes([n]) * (1 << 20))
        shelf.commit()
    state = shelf.state()
    assert state.calls_waiting_bytes <= 8 << 20
    assert state.calls_dropped == 4
    weather.full = False
    shelf.commit()
    assert shelf.recent_records(16 << 20)[-1][:1] == bytes([11])
    shelf.close()


def test_a_database_damaged_at_rest_is_replaced(tmp_path: Path) -> None:
    """The letters come back from the log, the values are gone, service goes on."""
    weather = Weather()
    shelf = open_shelf(tmp_path, weather)
    shelf.add_letters([letter("a")])
    shelf.put("results", "k", b"v", 60.0)
    shelf.commit()
    shelf.close()
    (tmp_path / "tables.sqlite").write_bytes(b"garbage" * 1000)
    again = open_shelf(tmp_path, weather)
    assert again.letters.stored("a")
    assert again.get("results", "k") == (True, None)
    again.close()


def test_without_a_database_the_rest_works_and_it_is_tried_again(tmp_path: Path) -> None:
    """Values are unavailable, letters wait, and a later tick opens the database."""
    weather = Weather()
    blocker = tmp_path / "tables.sqlite"
    blocker.mkdir()
    shelf = open_shelf(tmp_path, weather)
    assert shelf.get("results", "k") == (False, None)
    assert not shelf.put("results", "k", b"v", 60.0)
    shelf.add_letters([letter("a")])
    shelf.commit()
    assert "tables" in shelf.state().broken
    blocker.rmdir()
    shelf.tick()
    assert "tables" in shelf.state().broken
    weather.now += 6.0
    shelf.tick()
    shelf.tick()
    assert shelf.state().broken == ()
    assert shelf.letters.stored("a")
    shelf.close()


def test_new_caps_apply_at_once(tmp_path: Path) -> None:
    """A reload shrinks the logs at the next tick."""
    weather = Weather()
    shelf = open_shelf(
        tmp_path, weather, ShelfOptions(calls=LogLimits(segment_bytes=1000, total_bytes=1 << 20))
    )
    for n in range(50):
        shelf.record(bytes([n]) * 900)
        shelf.commit()
    shelf.tick()
    assert shelf.state().calls_bytes > 20_000
    shelf.configure(ShelfOptions("no", calls=LogLimits(segment_bytes=1000, total_bytes=5000)))
    shelf.tick()
    assert shelf.state().calls_bytes <= 5000
    shelf.close()


def test_a_reload_in_the_middle_of_a_batch_undoes_none_of_it(tmp_path: Path) -> None:
    """What was put before another durability came is there, and so is what came after."""
    shelf = open_shelf(tmp_path, Weather())
    assert shelf.put("result", "before", b"1", 60.0)
    shelf.configure(ShelfOptions("no"))
    assert shelf.put("result", "after", b"2", 60.0)
    assert shelf.commit()
    assert [shelf.get("result", key)[1] for key in ("before", "after")] == [b"1", b"2"]
    shelf.close()


def test_a_word_that_is_said_again_keeps_its_place(tmp_path: Path) -> None:
    """Who heard no answer in time repeats it; a new state is a new word."""
    shelf = open_shelf(tmp_path, Weather(), ShelfOptions())
    said = [("a", "open"), ("b", "open"), ("a", "open"), ("c", "open"), ("b", "done"),
            ("a", "open"), ("b", "done")]  # fmt: skip
    for key, state in said:
        assert shelf.put("results", key, f"{key} {state}".encode(), 60.0, state=state)
    found = [
        value for _, value in shelf.labelled("results", 9, before=None, label=None, state=None)
    ]
    assert found == [b"b done", b"c open", b"a open"]
    shelf.close()


def test_sealed_values_open_with_their_key_only(tmp_path: Path) -> None:
    """Of one that is locked nothing is told, not even that there is none; pages leave it out."""
    keys = {name: Seals([name * 32]) for name in "kx"}
    caps = TableCaps(value_bytes=6)

    def shelf_with(seals: Seals) -> Shelf:
        options = ShelfOptions(letter_caps=LetterCaps(seals=seals), tables=caps)
        return open_shelf(tmp_path, Weather(), options)

    def page(shelf: Shelf) -> list[bytes]:
        found = shelf.labelled("results", 9, before=None, label=None, state=None)
        return [value for _, value in found]

    shelf = shelf_with(keys["k"])
    assert shelf.put("results", "a", b"secret", 60.0, state="done")
    assert not shelf.put("results", "b", b"secrets", 60.0), "a seal is no reason to refuse"
    assert (shelf.get("results", "a"), page(shelf)) == ((True, b"secret"), [b"secret"])
    shelf.commit()
    shelf.configure(ShelfOptions(letter_caps=LetterCaps(seals=keys["x"]), tables=caps))
    assert (shelf.get("results", "a"), page(shelf)) == ((False, None), [])
    shelf.close()
    assert not any(b"secret" in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    again = shelf_with(keys["k"])
    assert (again.get("results", "a"), again.get("results", "b")) == (
        (True, b"secret"),
        (True, None),
    )
    again.close()
