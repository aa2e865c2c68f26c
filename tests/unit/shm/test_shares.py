"""Shares: never more than there is, and nothing left of the dead."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tpo_mp.errors import ConfigError, Fault
from tpo_mp.shm.rows import RowTable
from tpo_mp.shm.shares import LINES, LOCK_ROW, SharedShares, ShareSegment

SEATS = 3


class Host:
    """The shared half; ``epochs`` is what the plane says of each seat."""

    def __init__(self, table: RowTable) -> None:
        self.segment = ShareSegment.create(SEATS)
        self.table = table
        self.epochs = [1] * SEATS

    def process(self, seat: int) -> SharedShares:
        """A seat's present occupant."""
        return SharedShares(
            self.segment, self.table, seat=seat, epoch=self.epochs[seat],
            epoch_of=self.epochs.__getitem__,
        )  # fmt: skip


@pytest.fixture
def host(table: RowTable) -> Iterator[Host]:
    """Three seats."""
    made = Host(table)
    yield made
    made.segment.close()


def test_all_take_from_one(host: Host) -> None:
    """What one has, another cannot have."""
    one, two = host.process(0).of("x"), host.process(1).of("x")
    assert one.take(3, 5) == 3
    assert two.take(3, 5) == 2
    assert two.take(1, 5) == one.take(1, 5) == 0
    one.give(1)
    assert two.take(3, 5) == 1
    assert (one.held, two.held, one.total()) == (2, 3, 5)


def test_names_are_apart(host: Host) -> None:
    """And the same for everybody, whoever asked first."""
    one, two = host.process(0), host.process(1)
    mine = one.of("a")
    assert mine.take(1, 1) == 1
    assert two.of("b").take(1, 1) == 1
    assert two.of("a").take(1, 1) == 0


def test_the_limit_is_the_hosts(host: Host) -> None:
    """Nobody said it at first; then all read what one wrote, also after that one died."""
    one, two = host.process(0).of("x"), host.process(1).of("x")
    assert (one.limit, two.limit) == (0, 0)
    one.limit, one.wanted = 7, 3
    host.epochs[0] = 2
    assert (two.limit, two.wanted, two.total()) == (7, 3, 0)
    assert host.process(2).of("y").limit == 0


def test_the_dead_hold_nothing_and_leave_nothing(host: Host) -> None:
    """From the moment in which the supervisor reaps a process; its successor begins at none."""
    one, two = host.process(0).of("x"), host.process(1).of("x")
    assert one.take(4, 4) == 4
    assert two.take(1, 4) == 0
    host.epochs[0] += 1
    assert two.total() == 0
    assert two.take(9, 4) == 4
    host.epochs[0] += 1
    successor = host.process(0).of("x")
    assert (successor.held, successor.total()) == (0, 4)
    assert successor.take(1, 4) == 0


def test_a_limit_that_fell_lets_nobody_in_until_enough_is_given_back(host: Host) -> None:
    """Nothing is taken away from who has it."""
    share = host.process(0).of("x")
    share.add(6)
    assert share.take(1, 4) == 0
    share.give(3)
    assert share.take(2, 4) == 1


def test_whoever_cannot_have_the_lock_takes_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conservative answer."""
    share = host.process(0).of("x")
    monkeypatch.setattr(host.table, "acquire", lambda row, wait_ns=0: row != LOCK_ROW)
    assert share.take(1, 5) == 0


def test_how_many_wait_is_said_to_all(host: Host) -> None:
    """One word."""
    one, two = host.process(0).of("x"), host.process(1).of("x")
    one.wanted = 7
    assert two.wanted == 7


def test_there_is_an_end_to_names_that_are_in_use(host: Host) -> None:
    """Of the living: what the dead used, and what nobody has any more, goes to new names."""
    one, two, three = (host.process(seat) for seat in range(SEATS))
    lines = [one.of(str(number)) for number in range(LINES)]
    also = two.of("5")
    lines[5].limit = also.wanted = 3
    with pytest.raises(ConfigError, match="1024 names"):
        three.of("one more")
    assert lines[5].take(2, 2) == 2
    lines[5] = lines[6]  # this process has no more of it, the other has
    assert (also.held, also.total()) == (0, 0)
    with pytest.raises(ConfigError, match="1024 names"):
        three.of("one more")
    del also
    fresh = three.of("one more")
    assert (fresh.held, fresh.total(), fresh.limit, fresh.wanted) == (0, 0, 0, 0)
    with pytest.raises(ConfigError, match="1024 names"):
        two.of("5")
    host.epochs[0] += 1  # and with it all its lines
    again = two.of("5")
    assert again.take(1, 1) == 1
    assert (fresh.total(), again.limit) == (0, 0)


def test_configurations_may_come_and_go(host: Host) -> None:
    """Twice as many names as there are lines, one of them at a time; another stays."""
    one, two = host.process(0), host.process(1)
    kept = one.of("kept")
    assert kept.take(1, 5) == 1
    for number in range(2 * LINES):
        both = one.of(str(number)), two.of(str(number))
        both[0].add(1)
        assert both[1].total() == 1
    assert (two.of("kept").total(), one.of("kept") is kept) == (1, True)


def test_another_layout_is_refused(host: Host) -> None:
    """As many seats, or it is not the host's."""
    with pytest.raises(Fault):
        ShareSegment.attach(host.segment.fd, SEATS + 1)
