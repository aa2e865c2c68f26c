"""Segment files: clean prefixes, caps, and disks that refuse."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tpo_mp.store.framing import walk
from tpo_mp.store.segment_files import MAGIC, LogLimits
from tpo_mp.store.segments import SegmentError, SegmentLog

LIMITS = LogLimits(segment_bytes=4096, total_bytes=1 << 20, age_s=3600.0)


def payloads(log: SegmentLog) -> list[bytes]:
    """Everything in a log, oldest first."""
    return [payload for _, payload in log.scan()]


class Disk:
    """A disk that refuses when told to."""

    def __init__(self) -> None:
        self.fail_write = False
        self.fail_sync = False
        self.short = False
        self.syncs = 0

    def write(self, fd: int, blob: bytes) -> int:
        """Write all, half or nothing."""
        if self.fail_write:
            raise OSError(errno.ENOSPC, "no space left on device")
        return os.write(fd, blob[: len(blob) // 2] if self.short else blob)

    def fsync(self, fd: int) -> None:
        """Sync or fail."""
        self.syncs += 1
        if self.fail_sync:
            raise OSError(errno.EIO, "input/output error")


def test_records_come_back_in_order_with_their_places(tmp_path: Path) -> None:
    """What was appended is read back, by scan and by place, also after a reopen."""
    log = SegmentLog(tmp_path, LIMITS)
    places = log.append([b"one", b"two"]) + log.append([b"three"])
    log.close()
    again = SegmentLog(tmp_path, LIMITS)
    assert payloads(again) == [b"one", b"two", b"three"]
    assert [again.read(place) for place in places] == [b"one", b"two", b"three"]


def test_a_file_cut_anywhere_leaves_a_clean_prefix(tmp_path: Path) -> None:
    """Cut at every byte offset: a prefix of the records, the rest kept aside, appends go on."""
    source = SegmentLog(tmp_path / "source", LIMITS)
    records = [b"a", b"bb" * 9, b"ccc" * 5, b"d" * 40]
    for record in records:
        source.append([record])
    source.close()
    whole = (tmp_path / "source/00000001.seg").read_bytes()
    for cut in range(len(whole) + 1):
        folder = tmp_path / "cut"
        folder.mkdir()
        (folder / "00000001.seg").write_bytes(whole[:cut])
        log = SegmentLog(folder, LIMITS)
        kept = payloads(log)
        assert kept == records[: len(kept)], cut
        log.append([b"next"])
        log.close()
        again = SegmentLog(folder, LIMITS)
        assert payloads(again) == [*kept, b"next"], cut
        assert again.cut_bytes == 0
        aside = b"".join(p.read_bytes() for p in folder.glob("*.corrupt"))
        assert len(aside) == log.cut_bytes
        shutil.rmtree(folder)


def test_a_flipped_byte_never_yields_a_false_record(tmp_path: Path, rng: random.Random) -> None:
    """Any single damaged byte of the newest file shortens the log, and invents nothing."""
    source = SegmentLog(tmp_path / "source", LIMITS)
    records = [bytes([n]) * (n + 3) for n in range(12)]
    source.append(records)
    source.close()
    whole = (tmp_path / "source/00000001.seg").read_bytes()
    for at in rng.sample(range(len(whole)), 60):
        folder = tmp_path / "flip"
        folder.mkdir()
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        (folder / "00000001.seg").write_bytes(damaged)
        log = SegmentLog(folder, LIMITS)
        kept = payloads(log)
        assert kept == records[: len(kept)], at
        log.close()
        shutil.rmtree(folder)


def test_a_full_file_is_followed_by_a_new_one(tmp_path: Path) -> None:
    """Rotation happens at the size, and reading spans files."""
    log = SegmentLog(tmp_path, LIMITS)
    records = [bytes([n]) * 1500 for n in range(8)]
    for record in records:
        log.append([record])
    assert len(log.segments()) > 1
    assert payloads(log) == records
    assert log.total_bytes == sum(p.stat().st_size for p in tmp_path.glob("*.seg"))
    log.close()


def test_the_oldest_files_go_when_the_directory_is_full(tmp_path: Path) -> None:
    """The byte cap holds after a prune; the newest file stays."""
    log = SegmentLog(tmp_path, LogLimits(segment_bytes=1024, total_bytes=4096, age_s=3600.0))
    for n in range(20):
        log.append([bytes([n]) * 900])
    gone = log.prune()
    assert gone == sorted(gone)
    assert log.total_bytes <= 4096
    assert payloads(log)[-1] == bytes([19]) * 900
    log.close()


def test_old_files_go_by_age(tmp_path: Path) -> None:
    """A file not written for the age cap is deleted, unless it is the newest."""
    now = [tmp_path.stat().st_mtime]
    log = SegmentLog(tmp_path, LogLimits(1024, 1 << 20, 60.0), clock=lambda: now[0])
    for n in range(4):
        log.append([bytes([n]) * 1100])
    now[0] += 3600.0
    assert log.prune() == [1, 2, 3]
    assert payloads(log) == [bytes([3]) * 1100]
    log.close()


def test_files_are_private(tmp_path: Path) -> None:
    """Files are 0600, directories 0700: they hold prompts."""
    log = SegmentLog(tmp_path / "log", LIMITS)
    log.append([b"secret"])
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "log/00000001.seg").stat().st_mode & 0o777 == 0o600
    log.close()


@pytest.mark.parametrize("durability", ["no", "everysec", "always"])
def test_durability_decides_when_to_sync(tmp_path: Path, durability: str) -> None:
    """``no`` never syncs, ``everysec`` on demand, ``always`` per append."""
    disk = Disk()
    log = SegmentLog(tmp_path, LIMITS, durability, write=disk.write, fsync=disk.fsync)  # type: ignore[arg-type]
    log.append([b"one"])
    log.append([b"two"])
    after_append = disk.syncs
    log.sync()
    log.sync()
    assert (after_append, disk.syncs) == {"no": (0, 0), "everysec": (0, 1), "always": (2, 2)}[
        durability
    ]
    log.close()


def _fail_write(disk: Disk) -> None:
    disk.fail_write = True


def _fail_short(disk: Disk) -> None:
    disk.short = True


@pytest.mark.parametrize("fault", [_fail_write, _fail_short])
def test_a_failed_write_keeps_what_was_there_and_returns_the_rest(
    tmp_path: Path, fault: Callable[[Disk], None]
) -> None:
    """ENOSPC or a short write: earlier records stay, the batch comes back, nothing is doubled."""
    disk = Disk()
    log = SegmentLog(tmp_path, LIMITS, write=disk.write, fsync=disk.fsync)
    log.append([b"safe"])
    fault(disk)
    with pytest.raises(SegmentError) as caught:
        log.append([b"lost one", b"lost two"])
    assert caught.value.lost == [b"lost one", b"lost two"]
    with pytest.raises(SegmentError):
        log.append(caught.value.lost)
    disk.fail_write = disk.short = False
    log.append(caught.value.lost)
    assert payloads(log) == [b"safe", b"lost one", b"lost two"]
    assert log.write_errors == 2
    log.close()
    assert payloads(SegmentLog(tmp_path, LIMITS)) == [b"safe", b"lost one", b"lost two"]


def test_a_failed_sync_gives_the_unsynced_records_back(tmp_path: Path) -> None:
    """After a failed fsync the file is cut to what was synced, and the next try is a new file."""
    disk = Disk()
    log = SegmentLog(tmp_path, LIMITS, write=disk.write, fsync=disk.fsync)
    log.append([b"synced"])
    log.sync()
    log.append([b"unsynced one"])
    log.append([b"unsynced two"])
    disk.fail_sync = True
    with pytest.raises(SegmentError) as caught:
        log.sync()
    assert caught.value.lost == [b"unsynced one", b"unsynced two"]
    assert payloads(log) == [b"synced"]
    disk.fail_sync = False
    log.append(caught.value.lost)
    assert payloads(log) == [b"synced", b"unsynced one", b"unsynced two"]
    assert len(log.segments()) == 2
    log.close()


def test_a_disk_that_refuses_for_long_leaves_no_litter(tmp_path: Path) -> None:
    """Retries on a full disk do not leave empty files behind."""
    disk = Disk()
    disk.fail_write = True
    log = SegmentLog(tmp_path, LIMITS, write=disk.write, fsync=disk.fsync)
    for _ in range(20):
        with pytest.raises(SegmentError):
            log.append([b"x"])
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_appears_later_is_used(tmp_path: Path) -> None:
    """A log whose directory cannot be made yet tries again at the next append."""
    blocker = tmp_path / "blocked"
    blocker.write_text("")
    log = SegmentLog(blocker / "log", LIMITS)
    with pytest.raises(SegmentError):
        log.append([b"x"])
    blocker.unlink()
    log.append([b"x"])
    assert payloads(log) == [b"x"]
    log.close()


def test_walk_stops_at_a_length_that_cannot_be(tmp_path: Path) -> None:
    """A length of zero or beyond the data ends the walk."""
    assert list(walk(MAGIC + bytes(64))) == []
    assert list(walk(MAGIC + b"\xff" * 64)) == []
