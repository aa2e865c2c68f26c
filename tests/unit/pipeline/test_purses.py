"""Purses of what a host may spend: what goes to the host, what comes back, whatever happens."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from tests.support.fake_env import FakeWorld
from tests.support.quota_host import QuotaHost
from tpo_mp.errors import Shed
from tpo_mp.pipeline.allowance import FOREVER, Span
from tpo_mp.pipeline.purses import (
    CALLS,
    CALLS_LET_IN,
    ONE_CALL,
    SINCE,
    TOKENS_AT,
    USED,
    Count,
    Purse,
    Purses,
)
from tpo_mp.types import Quota, QuotaReading, QuotaUse

T = TypeVar("T")
PLENTY = 1_000_000
FIRST, SECOND = Span(3600, 7200), Span(7200, 10800)


class Spender:
    """Purses of one worker of a host that stands still."""

    def __init__(self, world: FakeWorld, host: QuotaHost, seat: int) -> None:
        self.host = host
        self.updates = 0
        self.busy = False
        self.sharers = 2
        self.seat = host.seat(seat)
        self.now = 4000.0
        env = world.env
        self.purses = Purses(self, env.timers, env.clock, lambda: self.now)

    def update(self, name: str, change: Callable[[Quota], T], *, crowd: bool = False) -> T:
        """Count what goes to the host; refuse it when a test says so."""
        if self.busy:
            raise Shed("busy", reason="ledger_busy", retry_after_s=1)
        self.updates += 1
        return self.seat.update(name, change, crowd=crowd)

    def look(self, name: str, *, crowd: bool = False) -> QuotaUse | None:
        """As the host has it."""
        return self.seat.look(name, crowd=crowd)

    @property
    def rows(self) -> int:
        """Not asked for."""
        raise AssertionError

    def readings(self, first: int, rows: int) -> Iterator[QuotaReading]:
        """Nor this."""
        raise AssertionError(first, rows)

    def count(self, limit: float, *, crowd: bool = False) -> Count:
        """The count that all tests use."""
        return self.purses.count("n", limit, crowd=crowd)

    def hold(self, amount: int, span: Span = FOREVER, limit: float = 100, *,
             crowd: bool = False) -> Purse:  # fmt: skip
        """Set aside what there is room for, from the purse if it has as much."""
        count = self.count(limit, crowd=crowd)
        purse = count.purse
        if purse.word & CALLS and purse.word >> TOKENS_AT >= amount and purse.end == span.end:
            purse.word -= amount << TOKENS_AT | ONE_CALL
            purse.unspent[0] = purse.word
            return purse
        assert self.purses.take(count, span, amount) is None
        return count.purse

    def refused(self, amount: int, span: Span = FOREVER, limit: float = 100) -> float:
        """What is spent when there is no room."""
        found = self.purses.take(self.count(limit), span, amount)
        assert found is not None
        return found

    @property
    def spent(self) -> tuple[float, float]:
        """Tokens and calls, by whatever worker."""
        found = self.look("n") or self.look("n", crowd=True)
        assert found is not None
        return found.spent()[1:3]

    @property
    def ahead(self) -> int:
        """Tokens that anybody holds ahead."""
        found = self.look("n") or self.look("n", crowd=True)
        return 0 if found is None else found.tokens


class Host:
    """Workers of one host."""

    def __init__(self) -> None:
        self.world = FakeWorld()
        self.quotas = QuotaHost()

    def worker(self, seat: int) -> Spender:
        """A process on a seat."""
        return Spender(self.world, self.quotas, seat)

    def dies(self, one: Spender, seat: int) -> None:
        """A process is gone, and does nothing any more."""
        one.busy = True
        self.quotas.dies(seat)


@pytest.fixture
def host() -> Iterator[Host]:
    """A host of its own."""
    made = Host()
    yield made
    made.quotas.close()


@pytest.fixture
def one(host: Host) -> Spender:
    """Its first worker."""
    return host.worker(0)


def test_what_is_set_aside_is_spent_until_it_is_settled(one: Spender) -> None:
    """The rest comes back at once, near the limit, and makes room."""
    held = one.hold(60)
    assert one.refused(60) == 60
    assert one.spent == (60, 1)
    one.purses.settle(held, 50)
    assert (one.spent, one.ahead) == ((10, 1), 0)
    one.purses.settle(one.hold(90), 0)
    assert one.spent == (100, 2)
    assert one.refused(1) == 100
    assert one.purses.take(one.count(100), FOREVER, 0) is None


@pytest.mark.parametrize("limit", [100, PLENTY])
def test_what_was_undone_never_was(one: Spender, limit: int) -> None:
    """Neither an amount nor a call, wherever it came from."""
    for _ in range(3):
        one.purses.undo(one.hold(60, limit=limit), 60)
    assert one.spent == (0, 0)


def test_a_purse_saves_the_host(one: Spender) -> None:
    """Whatever is open; and the count is true all the time."""
    held = [one.hold(100, limit=PLENTY) for _ in range(30)]
    for _ in range(200):
        one.purses.settle(one.hold(100, limit=PLENTY), 95)
    assert one.updates == 1
    assert one.spent == (30 * 100 + 200 * 5, 230)
    for purse in held:
        one.purses.settle(purse, 100)
    assert one.updates == 1
    assert one.spent == (1000, 230)


def test_a_purse_is_given_back_soon(host: Host, one: Spender) -> None:
    """So that other workers may spend it; calls that are still open settle all the same."""
    held = one.hold(1000, limit=PLENTY)
    assert one.ahead > 0
    host.world.advance(0.06)
    assert (one.ahead, one.spent) == (0, (1000, 1))
    assert host.worker(1).refused(PLENTY - 999, limit=PLENTY) == 1000
    one.purses.settle(held, 990)
    assert one.spent == (10, 1)
    host.world.advance(0.06)
    assert (one.ahead, one.spent) == (0, (10, 1))
    updates = one.updates
    host.world.advance(10)
    assert one.updates == updates


def test_all_together_hold_little_of_what_is_left_ahead(host: Host, one: Spender) -> None:
    """And nothing near the limit."""
    two = host.worker(1)
    for worker in (one, two):
        worker.hold(10, limit=10_000)
    assert 0 < one.ahead <= 10_000 / 8
    host.world.advance(0.06)
    for worker in (one, two):
        worker.hold(4400, limit=10_000)
    assert one.ahead == 0


def test_a_dead_workers_purse_is_spent_by_the_others_and_its_open_calls_are_not(
    host: Host, one: Spender
) -> None:
    """To the token, and only once."""
    two = host.worker(1)
    one.hold(1000, limit=PLENTY)
    one.hold(700, limit=PLENTY)
    one.purses.settle(one.hold(500, limit=PLENTY), 495)
    assert one.ahead > 0
    host.dies(one, 0)
    assert two.spent == (1705, 3)
    assert two.refused(PLENTY - 1704, limit=PLENTY) == 1705
    two.hold(PLENTY - 1705, limit=PLENTY)
    assert two.spent == (PLENTY, 4)
    three = host.worker(0)
    assert three.refused(1, limit=PLENTY) == PLENTY


def test_a_busy_host_loses_nothing(host: Host, one: Spender) -> None:
    """What could not be given back is given back later."""
    held = one.hold(80)
    one.busy = True
    with pytest.raises(Shed):
        one.hold(90)
    one.purses.settle(held, 75)
    host.world.advance(0.06)
    assert one.spent == (80, 1)
    one.busy = False
    host.world.advance(0.06)
    assert one.spent == (5, 1)


def test_more_than_was_set_aside_is_taken_too(host: Host, one: Spender) -> None:
    """The count tells the truth, past its limit if need be."""
    one.purses.settle(one.hold(90), -40)
    assert one.spent[0] == 130
    assert one.refused(0) == 130
    held = one.hold(90, limit=PLENTY)
    one.purses.settle(held, -one.ahead - 7)
    assert one.spent[0] == 130 + 90 + CALLS_AHEAD_OF_90 + 7
    host.world.advance(0.06)
    assert one.spent[0] == 130 + 90 + CALLS_AHEAD_OF_90 + 7


CALLS_AHEAD_OF_90 = 128 * 90


def test_a_purse_never_overflows(one: Spender) -> None:
    """However much comes back into it."""
    limit = float(10**15)
    held = [one.hold(10**12, limit=limit) for _ in range(20)]
    for purse in held:
        one.purses.settle(purse, 10**12)
    assert one.spent == (0, 20)


def test_what_belongs_to_a_period_that_is_over_is_not_credited_to_the_next(
    host: Host, one: Spender
) -> None:
    """Set aside in the first hour, settled in the second: that has its own count."""
    early, late = one.hold(80, FIRST), one.hold(10, FIRST)
    assert one.refused(20, FIRST) == 90
    one.purses.settle(one.hold(60, SECOND), 30)
    one.purses.settle(early, 80)
    host.world.advance(0.06)
    assert one.spent == (30, 1)
    one.hold(70, SECOND)
    one.purses.settle(late, 10)
    host.world.advance(0.06)
    assert one.spent == (100, 2)


@pytest.mark.parametrize("dies", [False, True])
def test_purses_of_the_period_before_are_void_in_this_one(
    host: Host, one: Spender, dies: bool
) -> None:
    """Whoever turned the hour, and though their owner did not hear of it."""
    two = host.worker(1)
    held = one.hold(1000, FIRST, PLENTY)
    two.hold(50, SECOND, PLENTY)
    assert (two.spent, two.ahead) == ((50, 1), CALLS_AHEAD_OF_64)
    one.purses.settle(held, 1000)
    if dies:
        host.dies(one, 0)
    host.world.advance(0.06)
    assert two.spent == (50, 1)
    assert two.refused(PLENTY - 49, SECOND, PLENTY) == 50
    if not dies:
        one.purses.settle(held, 1000)
        one.hold(30, SECOND, PLENTY)
        assert two.spent == (80, 2)


CALLS_AHEAD_OF_64 = 128 * 64


def test_a_count_that_was_reset_owes_nothing(host: Host, one: Spender) -> None:
    """What was held ahead, or set aside before, is void."""
    one.hold(1000, limit=PLENTY)
    held = one.hold(1000, limit=PLENTY)

    def anew(quota: Quota) -> None:
        quota.void()
        quota.cells[:3] = 4500.0, 0.0, 0.0

    host.worker(1).update("n", anew)
    assert one.spent == (0, 0)
    one.purses.settle(held, 900)
    host.world.advance(0.06)
    assert one.spent == (0, 0)
    one.purses.settle(one.hold(500, limit=PLENTY), 400)
    one.purses.settle(held, 900)
    assert one.spent == (100, 1)


def test_a_worker_whose_clock_is_behind_does_not_go_back(host: Host, one: Spender) -> None:
    """Once the hour has turned for one it has for all."""
    one.hold(60, SECOND)
    behind = host.worker(1)
    assert behind.refused(60, FIRST) == 60
    behind.purses.settle(behind.hold(30, FIRST), 30)
    assert behind.seat.update("n", lambda quota: quota.cells[SINCE]) == 7200
    assert one.spent == (60, 2)


def test_names_of_clients_are_asked_for_until_they_come_again(host: Host, one: Spender) -> None:
    """A session that comes once is not written three times."""
    one.purses.settle(one.hold(100, limit=PLENTY, crowd=True), 50)
    assert (one.updates, one.ahead) == (2, 0)
    one.hold(100, limit=PLENTY, crowd=True)
    assert one.ahead > 0
    host.world.advance(0.06)
    assert one.spent == (150, 2)


def test_purses_are_bounded(one: Spender, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many names; beyond, each call asks the host, which is as exact."""
    monkeypatch.setattr("tpo_mp.pipeline.purses.MOST_NAMES", 6)
    monkeypatch.setattr("tpo_mp.pipeline.purses.MOST_PURSES", 2)
    for n in range(50):
        count = one.purses.count(f"n{n % 10}", PLENTY, crowd=False)
        assert one.purses.take(count, FOREVER, 10) is None
        one.purses.settle(count.purse, 5)
    assert len(one.purses._counts) <= 6
    assert len(one.purses._out) <= 2
    for n in range(10):
        found = one.look(f"n{n}")
        assert found is not None
        assert found.spent()[1:3] == (25, 5)


def test_an_old_pipelines_purse_and_the_new_ones_are_not_mixed_up(host: Host, one: Spender) -> None:
    """After a reload a process has two stages on one seat for as long as old calls run."""
    held = one.hold(1000, limit=PLENTY)
    new = host.worker(0)
    other = new.hold(1000, limit=PLENTY)
    for _ in range(3):
        new.purses.settle(new.hold(100, limit=PLENTY), 90)
        one.purses.settle(one.hold(100, limit=PLENTY), 90)
    one.purses.settle(held, 900)
    new.purses.settle(other, 900)
    assert one.spent == (260, 8)
    host.world.advance(0.06)
    assert (one.spent, one.ahead) == ((260, 8), 0)


def test_any_calls_of_any_workers_keep_the_invariants(host: Host, rng: random.Random) -> None:
    """Against simple arithmetic: spent and set aside, through deaths and turns of the hour."""
    limit, hour = 20_000, 1
    workers: list[Any] = [host.worker(seat) for seat in range(3)]
    open_calls: list[list[tuple[Purse, int]]] = [[], [], []]
    true = calls = 0
    started = False
    for _ in range(3000):
        seat = rng.randrange(3)
        one, span = workers[seat], Span(3600.0 * hour, 3600.0 * (hour + 1))
        step = rng.random()
        if step < 0.5:
            amount = rng.choice((0, 1, 20, rng.randrange(300), rng.randrange(6000)))
            count = one.count(limit)
            try:
                open_calls[seat].append((one.hold(amount, span, limit), amount))
            except AssertionError:
                assert true + one.ahead + amount > limit
                assert count is one.count(limit)
                continue
            true, calls, started = true + amount, calls + 1, True
        elif step < 0.9 and open_calls[seat]:
            purse, amount = open_calls[seat].pop(rng.randrange(len(open_calls[seat])))
            back = rng.randrange(amount + 1)
            one.purses.settle(purse, back)
            if purse.since == span.start and not purse.over:
                true -= back
        elif step < 0.97:
            host.world.advance(0.06)
        elif step < 0.99:
            host.dies(one, seat)
            workers[seat], open_calls[seat] = host.worker(seat), []
        elif started:
            hour, true, calls, started = hour + 1, 0, 0, False
        if started:
            assert one.spent == (true, calls)
            found = workers[seat].look("n")
            assert true <= found.cells[USED] <= limit
            assert calls <= found.cells[CALLS_LET_IN]
