"""Shared memory exists in full before anyone maps it, and cannot shrink under anyone."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tpo_mp.errors import Fault
from tpo_mp.shm.segment import Segment, portable


@pytest.fixture(params=["0", "1"], ids=["linux", "portable"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of making memory."""
    monkeypatch.setenv("TPO_PORTABLE", request.param)
    return str(request.param)


def test_two_mappings_share_one_memory(mode: str) -> None:
    """What one end stores the other loads, by byte and by word."""
    made = Segment.create("test", 8192)
    other = Segment.attach(os.dup(made.fd), 8192)
    assert bytes(made.buf) == bytes(8192)
    made.words[3] = 0x0123456789ABCDEF
    assert other.words[3] == 0x0123456789ABCDEF
    other.map[100:103] = b"abc"
    assert made.map[100:103] == b"abc"


def test_every_page_is_real_from_the_start(mode: str) -> None:
    """No later store can meet a full file system: the blocks are allocated at creation."""
    made = Segment.create("test", 1 << 20)
    assert os.fstat(made.fd).st_blocks * 512 >= 1 << 20


def test_nobody_can_truncate_sealed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shrunk memfd would be a SIGBUS in another process; the kernel refuses."""
    monkeypatch.setenv("TPO_PORTABLE", "0")
    if portable():
        pytest.skip("seals exist on Linux only")
    made = Segment.create("test", 8192)
    for size in (4096, 16384):
        with pytest.raises(PermissionError):
            os.ftruncate(made.fd, size)


def test_anonymous_memory_leaves_no_name(mode: str) -> None:
    """Nothing to clean up after any death."""
    assert os.fstat(Segment.create("test", 4096).fd).st_nlink == 0


def test_file_stays_linked_and_private(mode: str, tmp_path: Path) -> None:
    """A file-backed segment is found again by path, by its owner alone, after it was closed."""
    path = tmp_path / "registry"
    made = Segment.create_file(path, 4096)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    made.buf[:3] = b"abc"
    made.close()
    again = Segment.attach(os.open(path, os.O_RDWR), 4096)
    assert bytes(again.buf[:3]) == b"abc"


def test_new_file_does_not_touch_who_still_maps_the_old(tmp_path: Path) -> None:
    """Replacing the path makes a fresh inode."""
    path = tmp_path / "registry"
    old = Segment.create_file(path, 4096)
    old.buf[0] = 7
    new = Segment.create_file(path, 4096)
    assert (old.buf[0], new.buf[0]) == (7, 0)


def test_wrong_size_is_refused() -> None:
    """A descriptor of another layout, or a half-made file, is not mapped."""
    made = Segment.create("test", 4096)
    with pytest.raises(Fault, match="4096 bytes long, expected 8192"):
        Segment.attach(made.fd, 8192)
    for size in (0, -8, 12):
        with pytest.raises(ValueError, match="multiple of 8"):
            Segment.create("test", size)


def test_full_memory_is_a_clear_error_not_a_crash(
    mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """ENOSPC names the size and the way out, leaves no descriptor and no file."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(os, "pwrite", full)
    before = set(Path("/dev/fd").iterdir())
    with pytest.raises(Fault, match="no room for 4096 bytes") as caught:
        Segment.create("test", 4096)
    assert caught.value.reason == "shm_too_small"
    with pytest.raises(Fault, match="no room"):
        Segment.create_file(tmp_path / "file", 4096)
    assert not (tmp_path / "file").exists()
    # What other tests left open may be collected meanwhile.
    assert set(Path("/dev/fd").iterdir()) <= before


def test_other_errors_of_the_system_are_not_disguised(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only "no room" is called no room."""

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "posix_fallocate", broken)
    monkeypatch.setattr(os, "pwrite", broken)
    with pytest.raises(OSError, match="Input/output"):
        Segment.create("test", 4096)


def test_close_twice_and_with_views_left() -> None:
    """Closing is idempotent, and a view that lives on keeps its memory."""
    made = Segment.create("test", 4096)
    view = made.buf[:4]
    view[0] = 9
    made.close()
    made.close()
    assert view[0] == 9


def test_who_expects_another_head_is_refused() -> None:
    """Every word counts, and whoever expects the right ones gets the memory."""
    made = Segment.create("test", 4096).signed(7, 1, 64)
    try:
        assert made.words[:4].tolist() == [7, 1, 64, 0]
        other = Segment.attach(os.dup(made.fd), 4096)
        assert other.checked("the test", 7, 1, 64) is other
        for wrong in ((8, 1, 64), (7, 2, 64), (7, 1, 65)):
            with pytest.raises(Fault, match="the test has another layout"):
                other.checked("the test", *wrong)
        other.close()
    finally:
        made.close()
