"""The file with the open calls: a clean prefix wherever it is cut, one file or the other."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tpo_mp.store.framing import Disk, flush_to_disk
from tpo_mp.store.open_copy import (
    DRAFT,
    CallsOver,
    CopiedCall,
    CopyMark,
    OpenCopy,
    OpenCopyReader,
    encode,
)
from tpo_mp.store.sealing import Locked, Seals


def opened(place: int, body: bytes = b"body") -> bytes:
    """A record of a call at a place."""
    return encode(CopiedCall(place, place.to_bytes(16, "big"), 0, b"meta", body))


def over(*places: int) -> bytes:
    """A record of finished calls."""
    return encode(CallsOver(list(places)))


def bodies(path: Path) -> dict[int, bytes]:
    """What is open, by place."""
    return {call.place: call.body for call in OpenCopyReader(path).calls()}


class Broken:
    """A disk that breaks at one call."""

    def __init__(self, fail_at: int = 0, *, short: bool = False) -> None:
        self.fail_at = fail_at
        self.short = short
        self.calls = 0

    def disk(self) -> Disk:
        """It, as the product takes it."""
        return Disk(self.write, self.fsync)

    def write(self, fd: int, blob: bytes) -> int:
        """Write all, half or nothing."""
        if self._due():
            if not self.short:
                raise OSError(errno.ENOSPC, "no space left on device")
            return os.write(fd, blob[: len(blob) // 2])
        return os.write(fd, blob)

    def fsync(self, fd: int) -> None:
        """Sync or fail."""
        if self._due():
            raise OSError(errno.EIO, "input/output error")
        flush_to_disk(fd)

    def _due(self) -> bool:
        self.calls += 1
        return self.calls == self.fail_at


def test_what_is_open_at_the_end_comes_back(tmp_path: Path) -> None:
    """Later records win; finished calls are gone; the last mark counts."""
    path = tmp_path / "copy"
    file = OpenCopy(path)
    assert file.absent
    file.replace([encode(CopyMark(1, 8)), opened(1), opened(2), opened(3)])
    file.append([over(2), opened(3, b"again"), encode(CopyMark(2, 99))])
    file.append([opened(4, b"")])
    assert file.size == path.stat().st_size
    file.close()
    assert bodies(path) == {1: b"body", 3: b"again", 4: b""}
    reader = OpenCopyReader(path)
    assert (reader.mark, len(reader)) == ((2, 99), 3)
    reader.drop(3)
    assert [call.place for call in reader.calls()] == [1, 4]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_cut_anywhere_tells_a_clean_prefix(tmp_path: Path) -> None:
    """Cut at every byte offset: the state after some record, never an error, never a mixture."""
    path, cut = tmp_path / "copy", tmp_path / "cut"
    file = OpenCopy(path)
    file.replace([encode(CopyMark(1, 8)), opened(1, b"a"), opened(2, b"bb" * 9)])
    file.append([over(1), opened(2, b"c" * 40), opened(1, b"d")])
    file.close()
    states: list[dict[int, bytes]] = [
        {}, {1: b"a"}, {1: b"a", 2: b"bb" * 9}, {2: b"bb" * 9}, {2: b"c" * 40},
        {1: b"d", 2: b"c" * 40},
    ]  # fmt: skip
    whole, at = path.read_bytes(), 0
    for length in range(len(whole) + 1):
        cut.write_bytes(whole[:length])
        seen = bodies(cut)
        while seen != states[at]:
            at += 1
    assert at == len(states) - 1


def test_a_damaged_byte_ends_the_prefix(tmp_path: Path) -> None:
    """Each byte in turn: what comes before it is kept, nothing behind it is believed."""
    path = tmp_path / "copy"
    file = OpenCopy(path)
    file.replace([opened(1), opened(2)])
    file.close()
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        assert bodies(path) in ({}, {1: b"body"}), at


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("fail_at", [1, 2])
def test_a_failed_replacement_leaves_the_old_file(
    tmp_path: Path, fail_at: int, short: bool
) -> None:
    """Whether the write or the sync fails; no draft stays behind."""
    path = tmp_path / "copy"
    good = OpenCopy(path)
    good.replace([opened(1)])
    good.close()
    file = OpenCopy(path, Broken(fail_at, short=short).disk())
    with pytest.raises(OSError, match=r"no space|short write|input/output"):
        file.replace([opened(2)])
    assert not file.usable
    assert not file.absent
    assert bodies(path) == {1: b"body"}
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]
    file.replace([opened(3)])
    assert bodies(path) == {3: b"body"}
    file.close()


@pytest.mark.parametrize("fail_at", [3, 4])
def test_after_a_failed_append_the_file_must_be_replaced(tmp_path: Path, fail_at: int) -> None:
    """It still tells its clean prefix, but is never appended to again."""
    path = tmp_path / "copy"
    file = OpenCopy(path, Broken(fail_at, short=True).disk())
    file.replace([opened(1)])
    with pytest.raises(OSError, match=r"no space|short write|input/output"):
        file.append([opened(2, b"x" * 1000)])
    assert not file.usable
    assert bodies(path)[1] == b"body"
    file.replace([opened(3)])
    assert bodies(path) == {3: b"body"}
    file.close()


def test_large_bodies_are_written_in_chunks(tmp_path: Path) -> None:
    """Never are all of them in memory together."""
    made = 0

    def records() -> list[bytes]:
        nonlocal made
        made += 1
        return [opened(made, b"x" * (600 << 10))]

    sizes: list[tuple[int, int]] = []

    def write(fd: int, blob: bytes) -> int:
        sizes.append((made, len(blob)))
        return os.write(fd, blob)

    file = OpenCopy(tmp_path / "copy", Disk(write))
    file.replace(record for _ in range(6) for record in records())
    assert [seen for seen, _ in sizes] == [2, 4, 6, 6]
    assert file.size == (tmp_path / "copy").stat().st_size
    file.close()
    assert len(bodies(tmp_path / "copy")) == 6


def test_nothing_is_left_after_removal(tmp_path: Path) -> None:
    """Neither the file nor a draft; twice does no harm."""
    path = tmp_path / "copy"
    file = OpenCopy(path)
    file.replace([opened(1)])
    (tmp_path / f"copy{DRAFT}").write_text("")
    file.remove()
    file.remove()
    assert file.absent
    assert not list(tmp_path.iterdir())


def test_sealed_bodies_need_their_key(tmp_path: Path) -> None:
    """Of a call that is over nothing is needed; one that was changed comes without its body."""
    keys, path = Seals(["k" * 32]), tmp_path / "copy"

    def sealed(place: int, about: int) -> bytes:
        call_id = place.to_bytes(16, "big")
        body = keys.seal(b"secret", about.to_bytes(16, "big"))
        return encode(CopiedCall(place, call_id, 0, b"meta", body, True))

    copy = OpenCopy(path)
    copy.replace([sealed(1, 1), sealed(2, 1), opened(3)])
    found = {c.place: (c.body[:6], c.sealed) for c in OpenCopyReader(path, keys).calls()}
    assert found == {1: (b"secret", False), 2: (found[2][0], True), 3: (b"body", False)}
    with pytest.raises(Locked):
        OpenCopyReader(path, Seals(["x" * 32]))
    copy.append([over(1, 2)])
    assert bodies(path) == {3: b"body"}
    copy.remove()
