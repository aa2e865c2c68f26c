"""The cache of a host: an answer is found whole, in time and under its own key, or not at all."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tpo_mp.errors import Fault, Shed
from tpo_mp.shm.cache import (
    HEAD_BYTES,
    LINE_BYTES,
    LOCK_ROW,
    SET_BYTES,
    WAYS,
    CacheSegment,
    SharedCache,
)
from tpo_mp.shm.rows import RowTable
from tpo_mp.types import TierResult

SEATS = 2
SIZE = 64 << 10


class Host:
    """Two seats, one clock."""

    def __init__(self, table: RowTable) -> None:
        self.segment = CacheSegment.create(SEATS, SIZE)
        self.table = table
        self.now = 1000.0

    def process(self, seat: int) -> SharedCache:
        """A seat's next occupant."""
        return SharedCache(self.segment, self.table, seat=seat, clock=lambda: self.now)

    def lines(self, key: bytes) -> int:
        """Where the set of a key begins."""
        mask = self.segment.sets - 1
        return self.segment.index_at + (int.from_bytes(key[:4], "little") & mask) * SET_BYTES


@pytest.fixture
def host(table: RowTable) -> Iterator[Host]:
    """Two seats."""
    made = Host(table)
    yield made
    made.segment.close()


def key(n: int, of: int = 0) -> bytes:
    """A key; those of one ``of`` share a set."""
    return of.to_bytes(4, "little") + (n + 1).to_bytes(4, "little") + b"\xff" * 8


def keep(cache: SharedCache, name: bytes, answer: bytes, ttl_s: float = 10.0) -> bool:
    """Keep an answer now."""
    return cache.keep(name, answer, ttl_s, cache.generation)


def test_what_one_process_keeps_every_process_finds(host: Host) -> None:
    """Its successor on the seat, too."""
    one, two = host.process(0), host.process(1)
    assert one.find(key(1)) is None
    assert keep(one, key(1), b"answer")
    assert keep(two, key(2), b"")
    assert (two.find(key(1)), one.find(key(2)), one.find(key(3))) == (b"answer", b"", None)
    successor = host.process(0)
    assert keep(successor, key(3), b"third")
    assert (successor.find(key(1)), two.find(key(3))) == (b"answer", b"third")
    for hit, process in ((True, one), (False, two), (True, successor)):
        process.count(hit=hit)
    assert successor.counts() == (2, 1, 3, 0)
    assert sorted(n for n in two.sizes() if n) == [5, 6]


def test_an_answer_is_replaced(host: Host) -> None:
    """By whoever keeps another under its key."""
    one, two = host.process(0), host.process(1)
    keep(one, key(1), b"old")
    keep(two, key(1), b"newer")
    assert one.find(key(1)) == two.find(key(1)) == b"newer"


def test_an_answer_has_its_time(host: Host) -> None:
    """Not a moment longer."""
    cache = host.process(0)
    keep(cache, key(1), b"answer", ttl_s=5.0)
    host.now += 4.999
    assert cache.find(key(1)) == b"answer"
    host.now += 0.001
    assert cache.find(key(1)) is None
    assert not any(cache.sizes())


def test_a_flush_is_everybodys(host: Host) -> None:
    """What was asked for before it is not kept after it."""
    one, two = host.process(0), host.process(1)
    keep(one, key(1), b"answer")
    asked_in = two.generation
    one.flush()
    assert two.find(key(1)) is None
    assert not two.keep(key(2), b"late", 10.0, asked_in)
    assert keep(two, key(1), b"again")
    assert one.find(key(1)) == b"again"


def test_a_flush_waits_for_nobody(host: Host) -> None:
    """Another process that is stopped in the middle of one makes it say so."""
    pid = os.fork()
    if pid == 0:
        host.table.acquire(LOCK_ROW)
        os.kill(os.getpid(), 19)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    try:
        with pytest.raises(Shed):
            host.process(0).flush()
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_old_answers_give_way_and_are_counted(host: Host) -> None:
    """A log goes round; nothing that was overwritten is found, the newest is."""
    cache = host.process(0)
    length = 1000 - HEAD_BYTES
    log_bytes = host.segment.log_bytes
    fit = log_bytes // 1024
    for n in range(3 * fit):
        assert keep(cache, key(n, n), bytes([n % 256]) * length)
        assert cache.find(key(n, n)) == bytes([n % 256]) * length
    found = [n for n in range(3 * fit) if cache.find(key(n, n)) is not None]
    assert found
    assert found[-1] == 3 * fit - 1
    assert len(found) <= fit
    assert cache.counts().evicted >= 3 * fit - len(found)


def test_lines_of_a_set_are_taken_in_turn(host: Host) -> None:
    """A set has eight; one that is replaced keeps its line, and one that is over is no loss."""
    cache = host.process(0)
    for n in range(WAYS):
        keep(cache, key(n), b"x", ttl_s=1.0 if n == 0 else 100.0)
        host.now += 0.01
    keep(cache, key(3), b"z")
    host.now += 1.0
    keep(cache, key(100), b"y")
    assert cache.counts().evicted == 0
    other = host.process(1)
    keep(other, key(101), b"y")
    assert cache.counts().evicted == 1
    found = [n for n in (*range(WAYS), 100, 101) if cache.find(key(n)) is not None]
    assert found == [2, 3, 4, 5, 6, 7, 100, 101]


def test_what_is_too_long_is_not_kept(host: Host) -> None:
    """One answer never drives out most others."""
    cache = host.process(0)
    assert keep(cache, key(1), b"x" * cache.most)
    assert not keep(cache, key(2), b"x" * (cache.most + 1))
    assert cache.find(key(1)) == b"x" * cache.most


@pytest.mark.parametrize("part", ["line", "record", "claim"])
def test_damage_is_a_miss(host: Host, part: str) -> None:
    """Any byte of a line or record that is not what it was; and a log claimed from under it."""
    rng = random.Random(5)
    segment = host.segment
    for n in range(300):
        cache = host.process(0)
        name = rng.randbytes(16)
        claimed = segment.words[LINE_BYTES // 8]
        keep(cache, name, b"answer")
        at = host.lines(name)
        if part == "claim":
            segment.words[LINE_BYTES // 8] += segment.log_bytes - LINE_BYTES + 1
        elif part == "line":
            line = segment.map[at : at + SET_BYTES].find(name)
            segment.map[at + line + rng.randrange(48)] ^= 1 << rng.randrange(8)
        else:
            place = segment.logs_at + claimed % segment.log_bytes
            segment.map[place + rng.randrange(HEAD_BYTES + 6)] ^= 1 << rng.randrange(8)
        assert cache.find(name) is None, n


def test_lines_of_nonsense_name_nothing(host: Host) -> None:
    """Whatever two writers leave of a line."""
    rng = random.Random(6)
    cache = host.process(0)
    keep(cache, key(1), b"answer")
    for _ in range(300):
        at = host.lines(key(2))
        host.segment.map[at : at + SET_BYTES] = (key(2) + rng.randbytes(48)) * WAYS
        assert cache.find(key(2)) is None
        assert not [n for n in cache.sizes() if n > 1 << 32]
        assert keep(cache, key(3), b"x")


def test_lookups_in_the_second_tier_are_counted_for_the_host(host: Host) -> None:
    """By every seat, and apart from its own."""
    for seat in range(SEATS):
        for result in TierResult:
            host.process(seat).count_tier(result)
    assert host.process(0).tier_counts() == (SEATS, SEATS, 3 * SEATS)
    assert host.process(0).counts() == (0, 0, 0, 0)


def test_another_segment_is_refused(host: Host) -> None:
    """A layout is checked before anything is read."""
    host.segment.words[1] = 99
    with pytest.raises(Fault):
        CacheSegment.attach(os.dup(host.segment.fd))
