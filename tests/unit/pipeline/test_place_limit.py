"""One limit for all processes: what each sees counts once, and one of them judges."""

from __future__ import annotations

import asyncio
import dataclasses

from tests.support.fake_env import FakeLedger, FakeShares, FakeWorld
from tpo_mp.errors import BackendTimeout, RateLimited, Rejected, TpoError
from tpo_mp.pipeline.place_limit import TOLD_S, PlaceLimit
from tpo_mp.pipeline.place_math import LimitBounds


class Host:
    """Processes that share a ledger and places; ``own_ledger``: they do not."""

    def __init__(self, processes: int = 2, *, own_ledger: bool = False) -> None:
        self.shares = FakeShares()
        self.ledger = FakeLedger()
        self.worlds: list[FakeWorld] = []
        self.limits: list[PlaceLimit] = []
        self.changes = 0
        for seat in range(processes):
            world = FakeWorld()
            ledger = FakeLedger() if own_ledger else self.ledger
            env = dataclasses.replace(world.env, ledger=ledger)
            self.worlds.append(world)
            share = self.shares.other(seat).of("b")
            self.limits.append(PlaceLimit(env, "b", share, LimitBounds(start=16), self.changed))
        self.share = self.shares.of("b")

    def changed(self) -> None:
        """One was told."""
        self.changes += 1

    def advance(self, seconds: float) -> None:
        """Time passes everywhere, a tick of each process after the other."""
        for _ in range(round(seconds / TOLD_S)):
            for world in self.worlds:
                world.advance(TOLD_S)

    def see(
        self, took_s: float, each: int = 10, *, full: bool = True, seconds: float = 1.0
    ) -> None:
        """Every process sees so many replies."""
        for limit in self.limits:
            for _ in range(each):
                limit.whole(took_s)
            if full:
                limit.full()
        self.advance(seconds)

    def warm(self, probe_at: float = 1e9) -> None:
        """A first judgement: how long replies take at their best; and when the next probe is."""
        self.see(0.1, full=False)
        self.see(0.1, full=False)
        self.ledger.update("limit:b:best", lambda c: (c[0], c[1], probe_at, c[3]))
        self.ledger.update("limit:b:took", lambda _: (0.0, 0.0, 0.0, 0.0))


def test_the_limit_is_the_hosts_from_the_first_moment() -> None:
    """Whoever comes later finds it."""
    host = Host()
    assert host.share.limit == 16
    host.share.limit = 7
    PlaceLimit(host.worlds[0].env, "b", host.share, LimitBounds(start=16), host.changed)
    assert host.share.limit == 7


def test_what_one_process_sees_too_little_of_is_enough_together() -> None:
    """Six replies each are twelve; with numbers of their own they are none."""
    for own_ledger, judged in ((False, True), (True, False)):
        host = Host(own_ledger=own_ledger)
        host.see(0.1, each=1)
        host.see(0.1, each=4)
        ledger = host.limits[0].ledger
        assert (ledger.look("limit:b:best")[1] > 0) is judged


def test_samples_are_judged_once() -> None:
    """The same window does not raise the limit twice."""
    host = Host()
    host.warm()
    host.see(0.1)
    after = host.share.limit
    assert after == 20
    host.advance(5)
    assert host.share.limit == after


def test_a_slow_backend_loses_places_and_all_processes_are_told() -> None:
    """Down to half a window's way."""
    host = Host()
    host.warm()
    before = host.changes
    host.see(0.4)
    assert host.share.limit < 16
    assert host.changes > before


def test_only_what_tells_of_overload_is_lost() -> None:
    """An answer that refuses a request, or a caller who leaves early, says nothing."""
    host = Host()
    host.warm()
    one = host.limits[0]
    innocent: list[TpoError | asyncio.CancelledError] = [
        Rejected("no", reason="upstream_rejected"),
        RateLimited("the caller's own", reason="caller_rate_limited"),
        asyncio.CancelledError(),
    ]
    for error in innocent:
        one.failed(error, 0.05, stream=False)
    host.advance(1)
    assert host.ledger.look("limit:b:met")[0] == 0
    one.failed(RateLimited("no", reason="upstream_rate_limited"), 0.01, stream=False)
    one.failed(BackendTimeout("late", reason="first_byte_timeout"), 9.0, stream=False)
    host.advance(TOLD_S)
    assert host.ledger.look("limit:b:met")[0] == 2
    host.see(0.1, full=False)
    assert host.share.limit == 12  # four fifths


def test_a_caller_who_left_late_counts_as_slow() -> None:
    """A backend that all leave would look idle."""
    host = Host()
    host.warm()
    host.limits[0].failed(asyncio.CancelledError(), 5.0, stream=False)
    host.advance(TOLD_S)
    assert host.ledger.look("limit:b:took")[2:] == (1.0, 5.0)


def test_a_probe_ends_without_any_call() -> None:
    """The limit comes back although nobody asks."""
    host = Host()
    host.warm(probe_at=0)
    host.see(0.1)
    assert host.ledger.look("limit:b")[3] != 0
    probing = host.share.limit
    assert probing < 16
    host.advance(60)
    assert host.share.limit >= 16
    assert host.ledger.look("limit:b")[3] == 0
