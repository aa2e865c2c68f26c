"""Reading a log backwards by blocks: each record once, whatever was cut, damaged or added."""

from __future__ import annotations

import os
from pathlib import Path

from tpo_mp.store.blocks import Block, BlockReader
from tpo_mp.store.segment_files import LogLimits
from tpo_mp.store.segments import SegmentLog

LIMITS = LogLimits(segment_bytes=4096, total_bytes=1 << 20, age_s=3600.0)
STEP = 512


def numbered(first: int, last: int) -> list[bytes]:
    """Payloads of different lengths."""
    return [b"%d" % n + b"x" * (n * 37 % 300) for n in range(first, last)]


def newest_first(reader: BlockReader, **where: int) -> list[bytes]:
    """All payloads, from the last to the first."""
    found = []
    for block in reader.backwards(**where):
        found += [p for _, p in reversed(reader.records(block, reader.read(block)))]
    return found


def test_a_log_is_read_backwards_as_it_grows(tmp_path: Path) -> None:
    """Over several files, without reading what it has seen again."""
    log = SegmentLog(tmp_path, LIMITS)
    reader = BlockReader(log, STEP)
    assert newest_first(reader) == []
    for first in range(0, 200, 7):
        log.append(numbered(first, first + 7))
        assert newest_first(reader) == numbered(0, first + 7)[::-1]
    assert len(log.segments()) > 3
    blocks = list(reader.backwards())
    assert [b.closed for b in blocks] == [False] + [True] * (len(blocks) - 1)
    assert max(b.end - b.start for b in blocks) < 2 * STEP


def test_reading_goes_on_before_a_block(tmp_path: Path) -> None:
    """From any block on, exactly the older ones follow."""
    log = SegmentLog(tmp_path, LIMITS)
    log.append(numbered(0, 120))
    reader = BlockReader(log, STEP)
    blocks = list(reader.backwards())
    for n, block in enumerate(blocks):
        assert list(reader.backwards(block.segment, block.start)) == blocks[n + 1 :]


def test_a_file_that_was_cut_is_looked_at_again(tmp_path: Path) -> None:
    """A failed sync takes records back; others come to lie in their place."""
    disk_full = [False]

    def write(fd: int, data: bytes) -> int:
        return os.write(fd, data[: len(data) // 2] if disk_full[0] else data)

    log = SegmentLog(tmp_path, LIMITS, write=write)
    reader = BlockReader(log, STEP)
    log.append(numbered(0, 10))
    assert len(newest_first(reader)) == 10
    path = log.path(log.segments()[-1])
    os.truncate(path, 8)
    log._sizes[log.segments()[-1]] = 8
    assert newest_first(reader) == []


def test_damage_costs_one_block(tmp_path: Path) -> None:
    """What lies behind it is still found; a file that went away has nothing."""
    log = SegmentLog(tmp_path, LIMITS)
    log.append(numbered(0, 20))
    reader = BlockReader(log, STEP)
    whole = newest_first(reader)
    (*_, second, first) = list(reader.backwards())
    path = log.path(first.segment)
    blob = bytearray(path.read_bytes())
    blob[first.start + 8] ^= 0xFF
    path.write_bytes(blob)
    lost = len(reader.records(first, b"") or whole) - len(newest_first(reader))
    assert 0 < lost < 20
    assert newest_first(reader) == whole[: len(whole) - lost]
    assert second.start > first.start
    path.unlink()
    assert reader.read(Block(first.segment, 8, 100, closed=True)) == b""
