"""A queue under more load than its backend answers: who is let in is served in time."""

from __future__ import annotations

from collections import Counter
from heapq import heappop, heappush
from itertools import count
from random import Random

import pytest

from tests.support.fake_env import FakeShares
from tpo_mp.pipeline.lanes import Waiter
from tpo_mp.pipeline.place_queue import PlaceQueue, Who

TICK_S = 0.05
STALL_EVERY_S = 0.1


class Overload:
    """A queue, a backend of 16 places behind it, and callers, in a time that a test makes pass.

    A tenth of the calls is another tenant's.  The machine stands still for the first ``stall_s``
    of each tenth of a second, and what happened meanwhile is heard of after that.
    """

    places, service_s = 16, 0.05

    def __init__(self, seed: int, *, alike: bool, stall_s: float = 0.0) -> None:
        self.random = Random(seed)
        self.alike = alike
        self.stall_s = stall_s
        self.now = 0.0
        shares = FakeShares()
        self.theirs = shares.other(1).of("b")
        self.queue = PlaceQueue(shares.of("b"), self, lambda _: (1, 1))
        self.told: list[Who] = []
        self.tenants: dict[Who, str] = {}
        self.forget()
        self.events: list[tuple[float, int, str]] = []
        self.numbers = count()

    def forget(self) -> None:
        """Count anew."""
        self.early = self.late = 0
        self.asked, self.served = Counter[str](), Counter[str]()

    def turn(self, who: Who, wait_s: float) -> bool:
        """A call has its place."""
        self.told.append(who)
        return True

    def refuse(self, who: Who, wait_s: float, *, early: bool) -> bool:
        """A call has none."""
        self.early += early
        self.late += not early
        return True

    def after(self, seconds: float, what: str) -> None:
        """Let something happen."""
        heappush(self.events, (self.now + seconds, next(self.numbers), what))

    def run(self, seconds: float, load: float, patience_s: float) -> None:
        """So many times what it can answer, from callers that wait so long."""
        rate, end = load * self.places / self.service_s, self.now + seconds
        if not self.events:
            self.after(self.random.expovariate(rate), "ask")
            self.after(TICK_S, "tick")
        while self.events[0][0] < end:
            at, number, what = heappop(self.events)
            self.now = max(at, at - at % STALL_EVERY_S + self.stall_s)
            if what == "ask":
                who = (1, number)
                tenant = self.tenants[who] = "guest" if self.random.random() < 0.1 else "flood"
                self.asked[tenant] += 1
                waiter = Waiter(who, tenant=tenant, arrived_at=at, deadline=at + patience_s)
                self.queue.ask(who, waiter, self.places, self.now)
                self.after(at - self.now + self.random.expovariate(rate), "ask")
            elif what == "tick":
                self.queue.tick(self.now)
                self.after(TICK_S, "tick")
            else:
                self.theirs.give(1)
                self.queue.pump(self.now)
            while self.told:
                told = self.told.pop(0)
                self.theirs.add(1)
                self.queue.kept(told, self.now)
                self.served[self.tenants[told]] += 1
                took_s = self.random.expovariate(1 / self.service_s)
                self.after(self.service_s if self.alike else took_s, "end")


@pytest.mark.parametrize("alike", [True, False], ids=["bunches", "by chance"])
@pytest.mark.parametrize("patience_s", [0.1, 0.5])
def test_hardly_anybody_who_was_let_in_is_refused_later(alike: bool, patience_s: float) -> None:
    """At twice the capacity: fewer than 5 in 100 refusals are late, and no place stays empty."""
    seed = 20
    load = Overload(seed, alike=alike)
    load.run(4.0, 2.0, patience_s)  # before, there is no rate
    load.forget()
    load.run(8.0, 2.0, patience_s)
    assert load.early > 2_000
    assert load.late < 0.05 * (load.early + load.late), f"seed {seed}: {load.late}"
    served = load.served.total()
    assert served > 0.95 * 8.0 * load.places / load.service_s, f"seed {seed}: {served}"


@pytest.mark.parametrize("stall_s", [0.0, 0.04], ids=["smooth", "stalls"])
def test_who_calls_now_and_then_is_served_beside_one_that_floods(stall_s: float) -> None:
    """Also where all are late, and a call waits hardly longer than a reply takes."""
    seed = 21
    load = Overload(seed, alike=False, stall_s=stall_s)
    load.run(4.0, 3.0, 0.06)
    load.forget()
    load.run(8.0, 3.0, 0.06)
    share = load.served["guest"] / load.asked["guest"]
    assert share > 0.85, f"seed {seed}: {share}"
