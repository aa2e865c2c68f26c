"""Limits between processes: exactly as many calls come in, whoever holds leases and is killed."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.support.actor import Actor, StartActor
from tpo_mp.shm.quotas import QuotaSegment
from tpo_mp.shm.rows import RowTable
from tpo_mp.shm.segment import Segment

SEATS, ROWS, QUOTA_ROWS = 5, 8, 64
EVERYBODY = 100_000


class Host:
    """What the processes share; the clock of their limits stands still."""

    def __init__(self, start: StartActor) -> None:
        self.table = RowTable.create(ROWS)
        self.quotas = QuotaSegment.make(SEATS, QUOTA_ROWS)
        self.epochs = Segment.create("epochs", 8 * SEATS)
        for seat in range(SEATS):
            self.epochs.words[seat] = 1
        self._start = start

    def worker(
        self, seat: int, limit: dict[str, int], times: int = EVERYBODY, *, told: bool = False
    ) -> Actor:
        """A process that lets calls in once it is told to go on."""
        fds = (self.table.fd, self.table.locks_fd, self.quotas.fd, self.epochs.fd)
        one = self._start(
            "let_in", fds, (ROWS, QUOTA_ROWS), SEATS, seat, {"global": limit}, times, told, fds=fds
        )
        assert one.said() == "ready"
        return one

    def kill(self, seat: int, one: Actor) -> None:
        """End a process; the supervisor reaps it."""
        one.kill()
        self.epochs.words[seat] += 1

    def close(self) -> None:
        """Leave nothing behind."""
        self.epochs.close()
        self.quotas.close()
        self.table.close()


@pytest.fixture
def host(platform: str, actor: StartActor) -> Iterator[Host]:
    """A host of its own."""
    made = Host(actor)
    yield made
    made.close()


def all_in(workers: list[Actor]) -> int:
    """How many all of them let in together, at the same time."""
    for one in workers:
        one.go_on()
    return sum(int(one.said()) for one in workers)


@pytest.mark.parametrize("limit", [{"rph": 20}, {"rph": 6000}, {"concurrent": 6000}])
def test_all_together_let_in_exactly_the_limit(host: Host, limit: dict[str, int]) -> None:
    """From idle, three at once; a small limit has no leases, a large one has many."""
    workers = [host.worker(seat, limit) for seat in range(3)]
    assert all_in(workers) == next(iter(limit.values()))


@pytest.mark.parametrize("limit", [{"rph": 6000}, {"rph": 6000, "concurrent": 5000}])
def test_a_killed_workers_lease_is_let_in_by_the_others(host: Host, limit: dict[str, int]) -> None:
    """It had spent 40 of 64, and held 40 places: the requests were made, the places are free."""
    doomed = host.worker(0, limit, 40)
    assert all_in([doomed]) == 40
    host.kill(0, doomed)
    rest = all_in([host.worker(seat, limit) for seat in (0, 1)])
    assert rest == min(6000 - 40, limit.get("concurrent", 6000))


def test_killed_at_any_moment(host: Host, rng: random.Random) -> None:
    """Five die while they let calls in: at most what each was just about to say is lost."""
    limit, said = {"rph": 9000}, 0
    for _ in range(5):
        # All five together leave something, however late their deaths come.
        doomed = host.worker(0, limit, 1500, told=True)
        doomed.go_on()
        for _ in range(rng.randrange(1, 200)):
            assert doomed.said() == "in"
            said += 1
        doomed.process.kill()
        assert doomed.process.stdout is not None
        said += doomed.process.stdout.read().count("in\n")
        host.kill(0, doomed)
    rest = all_in([host.worker(seat, limit) for seat in (0, 1)])
    assert 9000 - 5 <= said + rest <= 9000
