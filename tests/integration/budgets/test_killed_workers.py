"""A budget that workers spend together, while some of them are killed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from threading import Thread

import pytest

from tests.integration.budgets.actors import QUOTA_ROWS, ROWS, SEATS
from tests.support.actor import Actor
from tests.support.fake_env import SilentSeries
from tpo_mp.errors import Shed
from tpo_mp.pipeline.budgets import overall_row
from tpo_mp.shm.quotas import QuotaSegment, SharedQuotas
from tpo_mp.shm.rows import RowTable
from tpo_mp.shm.segment import Segment

MOST = 400 + 100
"""More than any one call sets aside."""
LINES_LATE = 20
"""After these the doomed wait for their death, however late it comes."""
REST_AT = 150
"""So many lines of all four spend far less than the smaller limit."""


class Told:
    """What one worker told until it died: the least and the most that it can have spent."""

    def __init__(self) -> None:
        self.settled = 0
        self.open: list[int] = []
        self.used: list[int] = []
        self.calls = 0
        self.lines = 0
        self.spent_all = False

    def hear(self, line: str) -> None:
        """One step."""
        self.lines += 1
        word, _, number = line.partition(" ")
        if word == "took":
            self.open.append(int(number))
            self.calls += 1
        elif word == "used":
            self.used.append(int(number))
        elif word == "even":
            self.settled += sum(self.used)
            self.open, self.used = [], []
        elif word == "spent":
            self.spent_all = True

    @property
    def least(self) -> int:
        """What ended counts as used, what was open as set aside."""
        return self.settled + sum(self.used) + sum(self.open[len(self.used) :])

    def most(self, killed: bool) -> int:
        """And what it had just settled, or set aside, and could not tell any more."""
        return self.least + (MOST if killed else 0)


class Host:
    """What the workers share, as the supervisor makes it; seat 4 only looks."""

    def __init__(self) -> None:
        self.table = RowTable.create(ROWS)
        self.quotas = QuotaSegment.make(SEATS, QUOTA_ROWS)
        self.epochs = Segment.create("epochs", 8 * SEATS)
        for seat in range(SEATS):
            self.epochs.words[seat] = 1
        self.fds = (self.table.fd, self.table.locks_fd, self.quotas.fd, self.epochs.fd)
        self.view = SharedQuotas(
            self.quotas, self.table, seat=4, epoch_of=lambda n: self.epochs.words[n], sharers=4,
            refused=SilentSeries(),
        )  # fmt: skip

    def close(self) -> None:
        """Leave nothing behind."""
        self.epochs.close()
        self.quotas.close()
        self.table.close()


@pytest.fixture
def host() -> Iterator[Host]:
    """A host of its own."""
    made = Host()
    yield made
    made.close()


@pytest.mark.parametrize("limit", [150_000, 600_000])
def test_set_aside_and_spent_never_pass_the_limit(
    host: Host, rng: random.Random, limit: int
) -> None:
    """Four workers spend all there is; two are killed on the way, having spent what they held.

    Of the smaller limit each call is asked for soon, of the larger one most come out of purses.
    """
    ahead = 0

    def used() -> tuple[float, float]:
        nonlocal ahead
        found = host.view.look(overall_row("month"))
        if found is None:
            return 0.0, 0.0
        ahead = max(ahead, found.tokens)
        assert found.cells[1] <= limit
        return found.spent()[1:3]

    deaths = {0: rng.randrange(5, 60), 1: rng.randrange(60, 120)}
    dead: list[int] = []
    rests = {number: line + LINES_LATE for number, line in deaths.items()}
    with ExitStack() as running:
        actors = [
            Actor("tests.integration.budgets.actors", "spend", *host.fds, seat, limit,
                  rng.randrange(10**9), rests.get(seat, REST_AT), fds=host.fds)
            for seat in range(4)
        ]  # fmt: skip
        for actor in actors:
            running.callback(actor.close)
            assert actor.said() == "ready"
        told = [Told() for _ in actors]

        def listen(number: int) -> None:
            while line := actors[number].said():
                told[number].hear(line)
                if told[number].lines == deaths.get(number):
                    actors[number].process.kill()
                    actors[number].process.wait()
                    host.epochs.words[number] += 1
                    dead.append(number)

        listeners = [Thread(target=listen, args=(number,)) for number in range(4)]
        for listener, actor in zip(listeners, actors, strict=True):
            listener.start()
            actor.go_on()
        resting = actors[2:]
        while any(listener.is_alive() for listener in listeners):
            all_dead = len(dead) == len(deaths)
            with suppress(Shed):  # who holds the row has no core for the moment
                used()
                while all_dead and resting:
                    resting.pop().go_on()
            listeners[0].join(0.001)
            listeners[3].join(0.001)
    total, calls = used()
    least = sum(one.least - (MOST if n in deaths else 0) for n, one in enumerate(told))
    most = sum(one.most(number in deaths) for number, one in enumerate(told))
    assert least <= total <= most
    assert sum(one.calls for one in told) <= calls <= sum(one.calls for one in told) + len(deaths)
    assert not any(told[number].spent_all for number in deaths)
    assert all(one.spent_all for one in told[2:])
    assert ahead > 0
    assert total > limit - MOST  # nothing was lost that could still be spent
