"""A name is led by one living process, the first that asked for it, until it gives it back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tpo_mp.errors import Fault
from tpo_mp.shm.claims import NOBODY, SETS, WAYS, ClaimSegment, SharedClaims
from tpo_mp.shm.plane import Command, Plane, SeatState
from tpo_mp.shm.rows import RowTable
from tpo_mp.shm.segment import Segment


class Host:
    """Three seats that serve."""

    def __init__(self, table: RowTable) -> None:
        self.segment = ClaimSegment.create()
        self.plane = Plane.create(3, 3, bytes(16))
        self.table = table
        for seat in range(3):
            self.begin(seat)

    def begin(self, seat: int) -> None:
        """Put a process on a seat."""
        self.plane.seat(seat).occupy(seat, Command.RUN)
        self.plane.seat(seat).state = SeatState.READY

    def process(self, seat: int) -> SharedClaims:
        """That process."""
        return SharedClaims.of_host(self.segment, self.table, self.plane, seat)


@pytest.fixture
def host(table: RowTable) -> Iterator[Host]:
    """Three seats."""
    made = Host(table)
    yield made
    made.segment.close()
    made.plane.close()


def name(n: int) -> bytes:
    """A name; the bytes that say its set come first."""
    return bytes(2) + n.to_bytes(4, "big") + b"\xff" * 8 + n.to_bytes(2, "little")


def test_the_first_leads_until_it_gives_back(host: Host) -> None:
    """Who asks again is told the same; who leads nothing gives nothing back."""
    one, two, three = (host.process(seat) for seat in range(3))
    assert [c.leader(name(1)) for c in (two, one, three, two)] == [1, 1, 1, 1]
    one.release(name(1))
    assert three.leader(name(1)) == 1
    two.release(name(1))
    assert len(two) == 0
    assert [c.leader(name(1)) for c in (three, two)] == [2, 2]
    assert one.leader(name(2)) == 0


@pytest.mark.parametrize("state", [SeatState.EMPTY, SeatState.BOOTING, SeatState.PARKED])
def test_who_does_not_serve_leads_nothing(host: Host, state: SeatState) -> None:
    """Nor does its successor, which knows nothing of it."""
    one, two = host.process(0), host.process(1)
    assert two.leader(name(1)) == 1
    host.plane.seat(1).state = state
    assert one.leader(name(1)) == 0
    assert host.process(2).leader(name(2)) == 2
    host.begin(2)
    assert one.leader(name(2)) == 0
    two.release(name(1))
    assert host.process(2).leader(name(1)) == 0, "what another has since is not given back"


def test_one_that_bounced_is_passed_over(host: Host) -> None:
    """Its other names stay its own."""
    one, two = host.process(0), host.process(1)
    assert [two.leader(name(n)) for n in (1, 2)] == [1, 1]
    epoch = host.plane.seat(1).epoch
    assert one.leader(name(1), (1, epoch + 1)) == 1
    assert one.leader(name(1), (1, epoch)) == 0
    assert two.leader(name(1)) == 0
    assert one.leader(name(2)) == 1


def test_a_full_set_and_a_held_lock_give_nothing_away(host: Host) -> None:
    """But a look needs neither."""
    one, two = host.process(0), host.process(1)
    for n in range(WAYS):
        assert one.leader(name(n)) == 0
    assert two.leader(name(WAYS)) == NOBODY
    assert two.leader(name(3)) == 0
    one.release(name(3))
    assert two.leader(name(WAYS)) == 1
    elsewhere = (5).to_bytes(2, "little") + name(1)[2:]
    assert SETS > 5
    acquire, host.table.acquire = host.table.acquire, lambda *_: False  # type: ignore[method-assign]
    try:
        assert two.leader(elsewhere) == NOBODY
        assert two.leader(name(4)) == 0
    finally:
        host.table.acquire = acquire  # type: ignore[method-assign]
    assert two.leader(elsewhere) == 1


def test_damage_leads_nowhere(host: Host) -> None:
    """A claim of a seat that is not there, or for another name, is none."""
    one, two = host.process(0), host.process(1)
    assert one.leader(name(1)) == 0
    word = (64 + 16) // 8
    claim = host.segment.words[word]
    for wrong in (claim ^ 1, claim ^ 99 << 48, 0):
        host.segment.words[word] = wrong
        assert two.leader(name(1)) == 1
        two.release(name(1))
        host.segment.words[word] = claim


def test_another_segment_is_refused() -> None:
    """It says so."""
    made = ClaimSegment.create()
    made.words[1] += 1
    with pytest.raises(Fault, match="another layout"):
        ClaimSegment.attach(made.fd)
    made.close()
    small = Segment.create("small", 64)
    with pytest.raises(Fault, match="bytes long"):
        ClaimSegment.attach(small.fd)
    small.close()
