"""A budget that workers spend together, while some of them are killed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from threading import Thread

import pytest

from tests.support.actor import Actor
from tests.support.fake_env import SilentMetrics
from tpo_mp.pipeline.allowance import KEPT
from tpo_mp.shm.ledger import LEAST_ROWS, SharedLedger
from tpo_mp.shm.rows import RowTable

LIMIT = 60_000
MOST = 400 + 100
"""More than any one call sets aside."""


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
        """And what was given back may have died with it, and one call that it could not tell."""
        return self.settled + sum(self.open) + (MOST if killed else 0)


@pytest.fixture
def table() -> Iterator[RowTable]:
    """A ledger that children inherit."""
    made = RowTable.create(LEAST_ROWS)
    yield made
    made.close()


def test_set_aside_and_spent_never_pass_the_limit(table: RowTable, rng: random.Random) -> None:
    """Four workers spend all there is; two are killed on the way, having spent what they held."""
    ledger = SharedLedger(table, SilentMetrics())
    fds = (table.fd, table.locks_fd)

    def used() -> tuple[float, float]:
        cells = ledger.update(f"{KEPT}global:month", lambda cells: cells)
        assert 0 <= cells[1] <= LIMIT
        return cells[1], cells[2]

    with ExitStack() as running:
        actors = [
            Actor("tests.integration.budgets.actors", "spend", *fds, LIMIT, rng.randrange(10**9),
                  fds=fds)
            for _ in range(4)
        ]  # fmt: skip
        for actor in actors:
            running.callback(actor.close)
            assert actor.said() == "ready"
        told = [Told() for _ in actors]
        deaths = {0: rng.randrange(5, 60), 1: rng.randrange(60, 120)}

        def listen(number: int) -> None:
            while line := actors[number].said():
                told[number].hear(line)
                if told[number].lines == deaths.get(number):
                    actors[number].process.kill()

        listeners = [Thread(target=listen, args=(number,)) for number in range(4)]
        for listener, actor in zip(listeners, actors, strict=True):
            listener.start()
            actor.go_on()
        while any(listener.is_alive() for listener in listeners):
            used()
            listeners[0].join(0.001)
            listeners[3].join(0.001)
    total, calls = used()
    least = sum(one.least for one in told)
    most = sum(one.most(number in deaths) for number, one in enumerate(told))
    assert least <= total <= most
    assert sum(one.calls for one in told) <= calls <= sum(one.calls for one in told) + len(deaths)
    assert not told[0].spent_all
    assert all(one.spent_all for one in told[2:])
    assert total > LIMIT - MOST  # nothing was lost that could still be spent
