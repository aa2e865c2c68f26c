"""Slower under load: the curves, and the rate that a host's workers share."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from tests.support.fake_env import FakeLedger
from tpo_mp.errors import Shed
from tpo_mp.ports import Cells
from tpo_mp.simulator.degradation import MOST, Degradation, HostRate


@pytest.mark.parametrize(
    ("bend", "twice", "ten_times"),
    [
        (Degradation(), 1.0, 1.0),
        (Degradation(curve="linear", slope=0.3, base_per_s=10), 1.6 / 1.3, 4.0 / 1.3),
        (Degradation(curve="exponential", alpha=0.5, base_per_s=10),
         math.exp(0.5), math.exp(4.5)),
        (Degradation(curve="mm1", capacity_per_s=40, base_per_s=10), 1.5, 0.75 / 0.01),
        (Degradation(curve="piecewise", base_per_s=10, points=((0, 1), (10, 2), (30, 6))),
         2.0, 3.0),
    ],
    ids=lambda value: value.curve if isinstance(value, Degradation) else None,
)  # fmt: skip
def test_curve_is_one_up_to_its_base_and_as_configured_beyond(
    bend: Degradation, twice: float, ten_times: float
) -> None:
    """The curve's value divided by its value at the base, where the profile's figures hold."""
    assert bend.factor(0) == bend.factor(10) == 1
    assert bend.factor(20) == pytest.approx(twice)
    assert bend.factor(100) == pytest.approx(ten_times)


def test_nothing_takes_for_ever() -> None:
    """A curve that explodes is capped."""
    assert Degradation(curve="exponential", alpha=100, base_per_s=1).factor(1e6) == MOST


def test_rate_is_the_hosts() -> None:
    """Two workers with one ledger count together; the window slides."""
    ledger = FakeLedger()
    one, other = HostRate(ledger, "m", 5.0), HostRate(ledger, "m", 5.0)
    rate = 0.0
    for number in range(200):
        worker = one if number % 2 else other
        rate = worker.arrived(1000.0 + number * 0.1)
    assert rate == pytest.approx(10, rel=0.05)
    assert HostRate(ledger, "another", 5.0).arrived(1020.0) == pytest.approx(0.2)
    assert one.arrived(1100.0) == pytest.approx(0.2)


def test_host_without_its_ledger_counts_as_idle() -> None:
    """A call is not refused because its neighbours cannot be counted."""

    class Held(FakeLedger):
        def update(
            self, name: str, change: Callable[[Cells], Cells], *, crowd: bool = False
        ) -> Cells:
            raise Shed("held", reason="ledger_busy")

    assert HostRate(Held(), "m", 5.0).arrived(1.0) == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Degradation(curve="linear"), "needs slope"),
        (lambda: Degradation(curve="linear", slope=1, alpha=1), "has no alpha"),
        (lambda: Degradation(curve="mm1", capacity_per_s=5, base_per_s=5), "over base_per_s"),
        (lambda: Degradation(curve="piecewise", points=((2, 1), (1, 3))), "must rise"),
    ],
)
def test_contradictions_are_refused(make: Callable[[], Degradation], said: str) -> None:
    """Naming the option."""
    with pytest.raises(ValueError, match=said):
        make()
