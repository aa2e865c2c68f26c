"""Rings between two real processes: order, deaths at every step, and damaged memory."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.support.ring_child import LOG_WORDS
from tests.support.ring_parent import RingPair
from tests.support.rings import number_of, numbered, random_sizes
from tests.support.wait import wait_for
from tpo_mp.shm.ring import RingReader
from tpo_mp.shm.ring_layout import DATA

MODES = {"linux": {}, "portable": {"TPO_PORTABLE": "1"}, "fenced": {"TPO_FENCE": "1"}}
KILLS = 200
FLIPS = 10_000


@pytest.fixture(params=MODES, ids=str)
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[RingPair]:
    """Two seats in each way shared memory is made."""
    environ = MODES[request.param]
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with RingPair(environ) as made:
        yield made


def test_random_records_cross_processes_in_order(pair: RingPair, seed: int) -> None:
    """Every record of another process arrives once, whole and in its place."""
    records = 4000
    reader = pair.mesh.reader(0, 1)
    child = pair.start("send", seed=seed, records=records)
    rng = random.Random(seed)
    expected = 0
    while expected < records:
        found = reader.drain()
        for record in found:
            size = random_sizes(rng, pair.mesh.capacity // 4 - 16 - 12)
            assert record == numbered(expected, size)
            rng.random()
            expected += 1
        if not found:
            assert child.poll() is None or reader.pending(), f"{expected} of {records} arrived"
            pair.wait(1)
    assert (reader.corrupt, reader.stale) == (0, 0)
    assert child.wait(60) == 0


def test_echo_keeps_64_in_flight_in_order(pair: RingPair) -> None:
    """Both directions at once, doorbells only, nothing lost and nothing stuck."""
    writer, reader = pair.mesh.writer(0, 1, 1), pair.mesh.reader(1, 0)
    child = pair.start("echo")
    sent = back = 0
    while back < 5000:
        while sent < 5000 and sent - back < 64 and writer.push(numbered(sent, sent % 400)):
            sent += 1
        pair.bells[1].ring()
        pair.wait(0)
        for record in reader.drain():
            assert number_of(record) == back
            back += 1
    assert reader.corrupt == 0
    assert child.stdin is not None
    child.stdin.write("\n")
    assert child.wait(60) == 0


def read_until_death(pair: RingPair, reader: RingReader) -> list[int]:
    """Drain while the fork lives, and what it left; answer the records' numbers."""
    got: list[int] = []
    status = None
    while status is None:
        pair.wait_or_death(1)
        status = pair.died()
        got += map(number_of, reader.drain())
    while left := reader.drain():
        got += map(number_of, left)
    assert status == -signal.SIGKILL
    return got


@pytest.mark.parametrize(
    "point",
    [
        "ring.claimed",
        "ring.payload_half",
        "ring.before_commit",
        "ring.after_commit",
        "ring.before_doorbell",
    ],
)
def test_killed_writer_leaves_whole_records_only(point: str, seed: int) -> None:
    """Killed ``KILLS`` times at one step: no false, double, lost or stuck record, ever."""
    rng = random.Random(f"{seed} {point}")
    with RingPair({}) as pair:
        pair.start("nursery")
        reader = pair.mesh.reader(0, 1)
        for epoch in range(1, KILLS + 1):
            armed = f"{point}=kill9:0.1:{rng.randrange(1, 30)}"
            environ = {"TPO_TEST": "1", "TPO_FAILPOINTS": armed, "TPO_FAILPOINTS_SEED": str(epoch)}
            pair.order(act="write_until_killed", epoch=epoch, seed=epoch, environ=environ)
            got = read_until_death(pair, reader)
            assert got == list(range(len(got)))
            assert 0 <= len(got) - pair.log[0] <= 1, "a confirmed record was not delivered"
            assert got, "the ring is stuck"
            pair.mesh.reset_seat(0)
        assert (reader.corrupt, reader.stale) == (0, 0)


def test_writer_killed_at_any_instant_leaves_whole_records_only(seed: int) -> None:
    """The unarmed writer, killed from outside at random instants of large and small pushes."""
    rng = random.Random(seed)
    total = 0
    with RingPair({}) as pair:
        pair.start("nursery")
        reader = pair.mesh.reader(0, 1)
        for epoch in range(1, KILLS + 1):
            pair.log[0] = 0
            pair.order(
                act="write_until_killed",
                epoch=epoch,
                seed=epoch,
                largest=rng.choice((100, 60_000)),
                kill_after_s=rng.uniform(0, 0.006),
            )
            got = read_until_death(pair, reader)
            assert got == list(range(len(got)))
            assert 0 <= len(got) - pair.log[0] <= 1, "a confirmed record was not delivered"
            total += len(got)
            pair.mesh.reset_seat(0)
        print(f"{total} records in {KILLS} lives")
        assert (reader.corrupt, reader.stale) == (0, 0)


@pytest.mark.parametrize("where", ["ring.in_consume", "anywhere"])
def test_killed_reader_hands_nothing_over_twice(where: str, seed: int) -> None:
    """Successors see strictly newer records; the live writer never stops or blocks."""
    rng = random.Random(f"{seed} {where}")
    with RingPair({}) as pair:
        pair.start("nursery")
        writer = pair.mesh.writer(0, 1, 1)
        number, lives, handed = 0, 0, [-1]
        # A reader that got no processor read nothing: more are killed then.
        while lives < KILLS or (len(handed) <= KILLS and lives < 10 * KILLS):
            lives += 1
            pair.log[0] = 0
            if where == "anywhere":
                death: dict[str, object] = {"kill_after_s": rng.uniform(0.001, 0.006)}
            else:
                armed = f"{where}=kill9:0.2:{rng.randrange(1, 20)}"
                death = {"environ": {"TPO_TEST": "1", "TPO_FAILPOINTS": armed}}
            pair.order(act="read_until_killed", limit=rng.choice((1, 7, 256)), **death)
            first = number
            while (status := pair.died()) is None:
                if writer.push(numbered(number, rng.randrange(300))):
                    number += 1
                pair.bells[1].ring()
            assert status == -signal.SIGKILL
            occupant = list(pair.log[1 : pair.log[0] + 1])
            assert all(a < b for a, b in pairwise([handed[-1], *occupant]))
            assert all(n >= first for n in occupant), "a record for the dead reached its successor"
            assert pair.log[LOG_WORDS - 1] == 0
            handed += occupant
            pair.mesh.reset_seat(1)
        assert len(handed) > KILLS


def test_random_byte_flips_never_crash_deliver_falsely_or_stick(seed: int) -> None:
    """R-13: ``FLIPS`` flips in the live ring; all that comes is genuine and new; then it heals."""
    rng = random.Random(seed)
    with RingPair({}) as pair:
        reader = pair.mesh.reader(0, 1)
        child = pair.start("flood", seed=seed)
        wait_for(reader.pending, what="first record")
        memory, size = pair.mesh.segment.buf, DATA + pair.mesh.capacity
        indices = [*range(64, 88), *range(128, 136)]
        last = 0
        for _ in range(FLIPS):
            at = rng.choice(indices) if rng.random() < 0.3 else rng.randrange(size)
            memory[at] ^= rng.randrange(1, 256)
            for record in reader.drain(rng.randrange(1, 64)):
                number = number_of(record)
                assert number > last
                last = number
        print(f"{last} records seen, {reader.corrupt} corrupt, {reader.stale} stale")
        assert reader.corrupt > 0
        assert child.poll() is None
        sent = pair.log[0]
        deadline = time.monotonic() + 40
        while last <= sent:
            assert time.monotonic() < deadline, f"stuck: {last} seen, {sent} sent"
            for record in reader.drain():
                assert number_of(record) > last
                last = number_of(record)


def test_lost_doorbell_costs_one_recheck(seed: int) -> None:
    """Every bell is dropped: records still arrive, because who waits rechecks."""
    environ = {"TPO_TEST": "1", "TPO_FAILPOINTS": "ring.before_doorbell=drop"}
    with RingPair(environ) as pair:
        reader = pair.mesh.reader(0, 1)
        pair.start("send", seed=seed, records=50)
        got: list[int] = []
        while len(got) < 50:
            pair.wait(1)
            got += map(number_of, reader.drain())
        assert got == list(range(50))
