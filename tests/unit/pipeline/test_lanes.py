"""Who is next, in cases small enough to be read."""

from __future__ import annotations

from typing import Any

import pytest

from tpo_mp.pipeline.lanes import REMEMBERED, RESCUE_EVERY, Lanes, Waiter, _Class
from tpo_mp.types import Priority


def lanes_of(*waiters: Waiter) -> Lanes:
    """Lanes in which those wait, in this order."""
    lanes = Lanes()
    for waiter in waiters:
        lanes.add(waiter)
    return lanes


def waiter(key: str, **facts: Any) -> Waiter:
    """One that is never overdue unless told."""
    return Waiter(key, **({"aging_s": 1e9} | facts))


def order(lanes: Lanes, now: float = 0.0) -> list[Any]:
    """The keys in the order in which places go to them."""
    return [lanes.pop(now).key for _ in range(len(lanes))]  # type: ignore[union-attr]


def test_higher_classes_go_first() -> None:
    """Whenever they came."""
    lanes = lanes_of(*(waiter(level.name, level=level) for level in Priority))
    assert order(lanes) == ["CRITICAL", "HIGH", "NORMAL", "LOW"]


def test_the_earliest_deadline_goes_first_then_the_oldest() -> None:
    """Inside a class, of one tenant; without a deadline is last."""
    lanes = lanes_of(
        waiter("never", arrived_at=0), waiter("late", deadline=9, arrived_at=1),
        waiter("soon", deadline=5, arrived_at=3), waiter("older", deadline=9, arrived_at=0.5),
    )  # fmt: skip
    assert order(lanes) == ["soon", "older", "late", "never"]


def test_a_retried_call_keeps_its_age() -> None:
    """It comes back behind nobody who came later."""
    lanes = lanes_of(waiter("b", arrived_at=5))
    lanes.add(waiter("a", arrived_at=1))
    assert order(lanes) == ["a", "b"]


def test_tenants_share_by_weight() -> None:
    """Of the first twelve places two thirds are the heavier one's, and neither comes in a block."""
    lanes = lanes_of(
        *(waiter("light", tenant="l", weight=1) for _ in range(20)),
        *(waiter("heavy", tenant="h", weight=2) for _ in range(20)),
    )
    first = order(lanes)[:12]
    assert first.count("heavy") == 8
    assert first[:6].count("heavy") == 4


def test_coming_one_at_a_time_wins_nothing() -> None:
    """A tenant that always has one call waiting gets half, not all."""
    lanes = lanes_of(*(waiter("many", tenant="m") for _ in range(50)), waiter("one", tenant="o"))
    served = []
    for _ in range(40):
        found = lanes.pop(0.0)
        assert found is not None
        served.append(found.key)
        if found.key == "one":
            lanes.add(waiter("one", tenant="o"))
    assert 19 <= served.count("one") <= 21


def test_every_fourth_place_is_for_the_longest_overdue() -> None:
    """A low one among critical ones that never end."""
    lanes = lanes_of(Waiter("low", level=Priority.LOW, arrived_at=0, aging_s=1))
    for number in range(RESCUE_EVERY):
        lanes.add(waiter(f"critical {number}", level=Priority.CRITICAL))
    assert order(lanes, now=3.9)[-1] == "low"
    lanes = lanes_of(Waiter("low", level=Priority.LOW, arrived_at=0, aging_s=1))
    for number in range(2 * RESCUE_EVERY):
        lanes.add(waiter(f"critical {number}", level=Priority.CRITICAL))
    assert order(lanes, now=4.0).index("low") == RESCUE_EVERY - 1


def test_too_late_is_told_once_and_never_served() -> None:
    """By ``expire``, or passed over by ``pop``."""
    lanes = lanes_of(waiter("a", deadline=1), waiter("b", deadline=3), waiter("c"))
    assert [w.key for w in lanes.expire(1.0)] == ["a"]
    assert lanes.expire(1.0) == []
    found = lanes.pop(3.0)
    assert found is not None
    assert found.key == "c"
    assert len(lanes) == 0


def test_who_left_is_not_served() -> None:
    """And leaves once."""
    gone = waiter("gone")
    lanes = lanes_of(gone, waiter("stays"))
    assert lanes.remove(gone)
    assert not lanes.remove(gone)
    assert order(lanes) == ["stays"]


def test_before_counts_higher_classes_and_the_fair_share_of_others() -> None:
    """A tenant of its own is hardly behind one that floods."""
    lanes = lanes_of(
        *(waiter("flood", tenant="f") for _ in range(100)),
        *(waiter("high", level=Priority.HIGH) for _ in range(3)),
    )
    assert lanes.before(Priority.NORMAL, "f", 1.0) == 103
    assert lanes.before(Priority.NORMAL, "other", 1.0) == 4
    assert lanes.before(Priority.CRITICAL, "other", 1.0) == 0


def test_clocks_of_many_tenants_are_forgotten() -> None:
    """Ten thousand that each came once, while one waits all the time."""
    lanes = lanes_of(*(waiter("stays", tenant="s", level=Priority.LOW) for _ in range(2)))
    for number in range(3 * REMEMBERED):
        lanes.add(waiter("passes", tenant=str(number), level=Priority.LOW, deadline=1e6))
        lanes.pop(0.0)
    lowest: Any = lanes._classes[Priority.LOW]  # nothing else tells what it keeps
    assert len(lowest._tenants) <= REMEMBERED + 8


def test_strangers_do_not_each_have_all_clocks_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the others catch up with one of them at a time, and with no light one."""
    looks = 0
    forget = _Class._forget

    def counted(lowest: _Class) -> None:
        nonlocal looks
        looks += 1
        forget(lowest)

    monkeypatch.setattr(_Class, "_forget", counted)
    lanes = lanes_of(*(waiter("stays", tenant="s") for _ in range(2)))

    def pass_by(name: str, weight: float) -> None:
        lanes.add(waiter(name, tenant=name, weight=weight, deadline=1e6))
        for _ in range(2):
            lanes.pop(0.0)
        lanes.add(waiter("stays", tenant="s"))

    for number in range(REMEMBERED - 4):
        pass_by(f"light-{number}", 1e-6)
    for number in range(1000):
        pass_by(f"stranger-{number}", 1.0)
    assert looks <= 20
