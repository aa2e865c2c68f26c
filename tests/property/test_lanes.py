"""The order of waiting calls against one that is written down slowly, and the bounds it keeps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tpo_mp.pipeline.lanes import RESCUE_EVERY, Lanes, Waiter
from tpo_mp.types import NO_DEADLINE, Priority

LEVELS = st.sampled_from(list(Priority))
TENANTS = st.sampled_from("abc")
AGING_S = 4.0


@dataclass
class Behind:
    """How many places went to others since a call was overdue, and how many were before it."""

    before: int
    places: int = 0


class LanesAgainstAList(RuleBasedStateMachine):
    """Calls come, leave, are too late and are served; all that wait are in a plain list too."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes()
        self.now = 0.0
        self.list: list[Waiter] = []
        self.weights: dict[tuple[Priority, str], float] = {}
        self.overdue: dict[int, Behind] = {}
        self.number = 0

    @rule(level=LEVELS, tenant=TENANTS, patience=st.sampled_from([3.0, 30.0, NO_DEADLINE]),
          weight=st.sampled_from([1.0, 2.0]))  # fmt: skip
    def come(self, level: Priority, tenant: str, patience: float, weight: float) -> None:
        self.number += 1
        waiter = Waiter(
            self.number, level=level, tenant=tenant, weight=weight, arrived_at=self.now,
            deadline=self.now + patience, aging_s=AGING_S,
        )  # fmt: skip
        self.lanes.add(waiter)
        self.list.append(waiter)
        self.weights[level, tenant] = weight

    @rule(seconds=st.sampled_from([0.0, 0.5, 5.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        late = [w for w in self.list if w.deadline <= self.now]
        assert {w.key for w in self.lanes.expire(self.now)} == {w.key for w in late}
        for waiter in late:
            self.forget(waiter)

    @precondition(lambda self: self.list)
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        waiter = data.draw(st.sampled_from(self.list))
        assert self.lanes.remove(waiter)
        self.forget(waiter)

    @precondition(lambda self: self.list)
    @rule()
    def serve(self) -> None:
        for waiter in self.list:
            if waiter.overdue_at <= self.now and waiter.key not in self.overdue:
                before = sum(w.overdue_at <= waiter.overdue_at for w in self.list) - 1
                self.overdue[waiter.key] = Behind(before)  # type: ignore[index]  # a number
        served = self.lanes.pop(self.now)
        assert served is not None
        overdue = [w for w in self.list if w.overdue_at <= self.now]
        first = min(overdue, key=lambda w: w.overdue_at, default=None)
        if served.level != max(w.level for w in self.list):  # it was rescued
            assert first is not None
            assert served.overdue_at == first.overdue_at
        else:
            same = [w for w in self.list if (w.level, w.tenant) == (served.level, served.tenant)]
            order = lambda w: (w.deadline, w.arrived_at, w.key)  # noqa: E731 - said once
            assert served is min(same, key=order) or (
                first is not None and served.overdue_at == first.overdue_at
            )
        self.forget(served)
        for behind in self.overdue.values():
            behind.places += 1
            assert behind.places < RESCUE_EVERY * (behind.before + 1), "one starves"

    def forget(self, waiter: Waiter) -> None:
        self.list.remove(waiter)
        self.overdue.pop(waiter.key, None)  # type: ignore[call-overload]  # a number

    @invariant()
    def as_many_wait(self) -> None:
        assert len(self.lanes) == len(self.list)
        for level in Priority:
            assert self.lanes.waiting(level) == sum(w.level == level for w in self.list)

    @invariant()
    def who_is_in_front(self) -> None:
        higher = sum(w.level > Priority.NORMAL for w in self.list)
        mine = [w for w in self.list if w.level == Priority.NORMAL]
        own = sum(w.tenant == "a" for w in mine)
        others = 0.0
        for tenant in "bc":
            theirs = [w for w in mine if w.tenant == tenant]
            if theirs:
                weight = self.weights[Priority.NORMAL, tenant]
                others += min(len(theirs), (own + 1) * weight)
        assert self.lanes.before(Priority.NORMAL, "a", 1.0) == higher + own + others


TestLanes = LanesAgainstAList.TestCase


@given(
    weights=st.dictionaries(st.sampled_from("abcde"), st.sampled_from([1.0, 2.0, 3.0]), min_size=2),
    places=st.integers(10, 120), aging_s=st.sampled_from([0.0, 1e9]),
)  # fmt: skip
def test_backlogged_tenants_get_their_shares(
    weights: dict[str, float], places: int, aging_s: float
) -> None:
    """Within a call or two of it, at any moment, also while every fourth place is a rescue."""
    lanes = Lanes()
    for tenant, weight in weights.items():
        for number in range(places):
            lanes.add(
                Waiter(number, tenant=tenant, weight=weight, arrived_at=number, aging_s=aging_s)
            )
    got: Counter[str] = Counter()
    for place in range(1, places + 1):
        served = lanes.pop(1e6)
        assert served is not None
        got[served.tenant] += 1
        for tenant, weight in weights.items():
            share = place * weight / sum(weights.values())
            slack = 2 + (0 if aging_s else place / RESCUE_EVERY)
            assert abs(got[tenant] - share) <= slack, (place, got)


@given(
    overdue=st.lists(st.tuples(LEVELS, TENANTS), min_size=1, max_size=12),
    comers=st.lists(st.tuples(LEVELS, TENANTS), min_size=1, max_size=12),
)
def test_an_overdue_call_is_served_within_its_bound_whatever_comes_after_it(
    overdue: list[tuple[Priority, str]], comers: list[tuple[Priority, str]]
) -> None:
    """Two fresh calls come for every place, so the queue only grows."""
    lanes = Lanes()
    for age, (level, tenant) in enumerate(overdue):
        lanes.add(Waiter(age, level=level, tenant=tenant, arrived_at=age, aging_s=0.0))
    left, places = set(range(len(overdue))), 0
    while left:
        for level, tenant in (comers[places % len(comers)], (Priority.CRITICAL, "c")):
            lanes.add(Waiter("fresh", level=level, tenant=tenant, arrived_at=100, aging_s=1e6))
        served = lanes.pop(1e3)
        assert served is not None
        places += 1
        left.discard(served.key)  # type: ignore[arg-type]  # a number, or nobody's
        for age in left:
            assert places < RESCUE_EVERY * (age + 1), f"{age} starves"
